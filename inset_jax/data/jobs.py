"""Independent jobs in processes that may die: a decoder that crashes costs one row, not the work.

A job walks over rows. Before each it writes the row's number into its diary, a small file. When a
process dies, its job is run again when the others are done, alone. The row at which one dies a
second time is left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from inset_jax.data.pool import DEATHS, Died, Pool

CRASHED = "the process died on this row: a crash in a decoder, or no memory left"

J, R = TypeVar("J"), TypeVar("R")
Skip = Mapping[int, str]  # row -> why it is left out
Function = Callable[[J, Skip, Path | None], R]  # job, rows to leave out, where its diary is

log = logging.getLogger(__name__)


def run(
    function: Function,
    jobs: Mapping[int, J],
    workers: int,
    folder: Path,
    name: Callable[[int], str] = "job {}".format,
) -> Iterator[tuple[int, R]]:
    """Yields (number, result) of all jobs, in the order in which they finish.

    Args:
      function: can be pickled, as can the jobs and results.
      workers: processes; 0 runs them here, in order, and a crash is then a crash.
      folder: of the diaries; exists.
      name: says which job it is, for messages.

    Raises:
      ChildProcessError: a process died, and again, without a row that could be left out.
      whatever the function raises.
    """
    if not workers:
        yield from ((number, function(job, {}, None)) for number, job in jobs.items())
        return
    diary = lambda number: folder / f"{number:05d}.diary"
    waiting, suspects = deque(jobs), deque()
    skip: dict[int, dict[int, str]] = {number: {} for number in jobs}
    deaths: Counter[tuple[int, int | None]] = Counter()
    with Pool(function, min(workers, len(jobs))) as pool:
        while waiting or suspects or pool.busy:
            while pool.has_room and (waiting or (suspects and not pool.busy)):
                number = (waiting or suspects).popleft()
                diary(number).unlink(missing_ok=True)  # of another run
                pool.start(number, jobs[number], skip[number], diary(number))
            number, result = pool.wait()
            if not isinstance(result, Died):
                yield number, result
                continue
            row = _row(diary(number))
            deaths[number, row] += 1
            told = f"{name(number)}: {result} " + (
                "before its first row" if row is None else f"at row {row}"
            )
            if deaths[number, row] >= DEATHS:
                if row is None or row in skip[number]:
                    raise ChildProcessError(f"{told}, the second time")
                skip[number][row] = CRASHED
            log.warning("%s; tried again%s", told, " without it" * (row in skip[number]))
            suspects.append(number)


def _row(diary: Path) -> int | None:
    """Returns the row that a process was at."""
    words = diary.read_text() if diary.exists() else ""
    return int(words) if words else None


@contextlib.contextmanager
def diary(path: Path | None) -> Iterator[Callable[[int], None]]:
    """Gives what a job calls with the number of each row; the file is gone when the job is done."""
    if path is None:
        yield lambda row: None
        return
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        yield lambda row: os.pwrite(file, b"%012d" % row, 0)
    finally:
        os.close(file)
    path.unlink()
