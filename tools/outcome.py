"""How the commands of this folder end: errors in words and an exit status, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from inset_jax.core import host


def status(work: Callable[[], int | None], failure: int = 2, resumes: bool = False) -> int:
    """Runs the work of a command and returns its exit status.

    Args:
      work: returns the status; None is 0.
      failure: the status after an error of the user's or of a disk (ValueError, OSError).
      resumes: the same command goes on after an interruption.
    """
    try:
        with host.raising_sigterm():
            return work() or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return failure
    except (KeyboardInterrupt, host.Terminated) as error:
        print("interrupted" + "; the same command goes on from here" * resumes, file=sys.stderr)
        return host.status(error)
