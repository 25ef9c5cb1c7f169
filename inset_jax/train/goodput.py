"""When a run was first started, and the share of the time since then that went into it."""

from __future__ import annotations

import json
import os
import pathlib
import time
import uuid
from typing import NamedTuple

from inset_jax.train.stopwatch import Stopwatch

FILE = "run.json"


class Started(NamedTuple):
    """What stays the same over all restarts of a run."""

    began: float  # seconds since 1970
    id: str  # of the run, for services that collect metrics


def started(workdir: pathlib.Path) -> Started:
    """Reads `run.json`, or writes it at the first start; for process 0.

    Raises:
      ValueError: the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps({"began": time.time(), "id": uuid.uuid4().hex[:8]}) + "\n")
        os.replace(beside, path)
    try:
        told = json.loads(path.read_text())
        return Started(float(told["began"]), str(told["id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to count time anew") from error


class Goodput:
    """The share of the wall time since a run was first started that went into steps that count.

    Steps that a crash or an older checkpoint threw away do not count, nor do bad ones (`guard`);
    the time in which no process ran does count as wall time.
    """

    def __init__(self, watch: Stopwatch, began: float, before: float):
        """Args:
        began: see `Started`.
        before: `useful` of the checkpoint that this process goes on from.
        """
        self._watch, self._began, self._before = watch, began, before

    def useful(self) -> float:
        """Seconds of the steps that count, to be kept in the next checkpoint."""
        return self._before + self._watch.seconds["step"]

    def share(self) -> float:
        return self.useful() / max(time.time() - self._began, 1e-9)
