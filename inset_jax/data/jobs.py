"""Independent jobs in processes that may die: a decoder that crashes costs one row, not the work.

A job walks over rows. Before each it writes the row's number into its diary, a small file. When a
process dies, the jobs that were under way are run again alone; the one that dies again is told, by
its diary, which row to leave out.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

CRASHED = "the process died on this row: a crash in a decoder, or no memory left"

J, R = TypeVar("J"), TypeVar("R")
Skip = Mapping[int, str]  # row -> why it is left out
Function = Callable[[J, Skip, Path | None], R]  # job, rows to leave out, where its diary is


def run(
    function: Function, jobs: Mapping[int, J], workers: int, folder: Path
) -> Iterator[tuple[int, R]]:
    """Yields (number, result) of all jobs, in the order in which they finish.

    Args:
      function: can be pickled, as can the jobs and results.
      workers: processes; 0 runs them here, in order, and a crash is then a crash.
      folder: of the diaries; exists.

    Raises:
      whatever the function raises.
    """
    if not workers:
        yield from ((number, function(job, {}, None)) for number, job in jobs.items())
        return
    waiting = dict(jobs)
    diary = lambda number: folder / f"{number:05d}.diary"
    while waiting:
        try:
            with _pool(min(workers, len(waiting))) as pool:
                futures = {
                    pool.submit(function, job, {}, diary(number)): number
                    for number, job in waiting.items()
                }
                for future in as_completed(futures):
                    number = futures[future]
                    yield number, future.result()
                    del waiting[number]
        except BrokenProcessPool:
            suspects = [number for number in waiting if diary(number).exists()]
            assert suspects, "a process died before its job began"
            for number in suspects:
                yield number, _alone(function, waiting[number], diary(number))
                del waiting[number]


def _alone(function: Function, job: J, diary: Path) -> R:
    """Runs one job in a process of its own, again without the row that killed it, if one did."""
    skip: dict[int, str] = {}
    while True:
        with _pool(1) as pool, contextlib.suppress(BrokenProcessPool):
            return pool.submit(function, job, skip, diary).result()
        row = int(diary.read_text())
        assert row not in skip, f"the process died after row {row}"
        skip = {**skip, row: CRASHED}


def _pool(workers: int) -> ProcessPoolExecutor:
    # not fork: threads of libraries may hold locks
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


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
