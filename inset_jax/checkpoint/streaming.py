"""Weights into a checkpoint without the memory: read, hashed, cut, written and read back in parts.

At most a file's worth of numbers (`arrays.FILE_BYTES`) is held a few times by each worker, whatever
the size of the model.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from inset_jax.checkpoint import arrays, errors, hashes, names, tensors
from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.plan import Feed, Plan
from inset_jax.checkpoint.progress import Progress
from inset_jax.checkpoint.sweep import Sweep, collect
from inset_jax.checkpoint.unfinished import Journal

# all exponent bits set: an infinity or no number
EXPONENT = {
    "float64": 0x7FF0000000000000,
    "float32": 0x7F800000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}


class Written(NamedTuple):
    """One file of a parameter."""

    key: str  # inside the item
    bytes: int
    crc: int


class Work(NamedTuple):
    """One conversion on its way."""

    plan: Plan
    source: tensors.Tensors
    step: Place  # where the step is being written
    journal: Journal
    progress: Progress
    jobs: int


def pour(work: Work) -> dict[str, str]:
    """Writes every parameter of a plan that is not written yet.

    Returns:
      source file -> SHA-256.

    Raises:
      Damaged: a source file is not what its hash says, or got shorter.
      Unwritable: the destination is full, or may not be written.
      ValueError: numbers are not finite: every such tensor is named.
    """
    plan, journal = work.plan, work.journal
    item = work.step.inside("params")
    by_source = collect(plan.feeds, journal.done)
    rows = {name: _rows(plan, feeds) for name, feeds in by_source.items()}
    known = {path: journal.done.get(f"file {path}") for path in work.source.files}
    found = {path: sha for path, sha in known.items() if sha}

    def told(path, sha: str) -> None:
        hashes.check(path, sha)
        journal.add(f"file {path}", sha)
        found[path] = sha

    sweep = Sweep(work.source, rows, dict(found), told, work.progress)
    written: dict[str, list[Written]] = collections.defaultdict(list)
    broken: dict[str, int] = collections.Counter()

    def settle(feed: Feed, is_last: bool, future: concurrent.futures.Future) -> None:
        name = feed.link.source
        files, bad = future.result()
        written[name] += files
        if bad:
            broken[name] += bad
        if is_last and name not in broken:
            journal.add(name, written.pop(name))

    with concurrent.futures.ThreadPoolExecutor(work.jobs) as pool:
        queue: collections.deque = collections.deque()
        try:
            for feed, start, numbers, is_last in _all(sweep, by_source, plan, journal):
                queue.append((feed, is_last, pool.submit(_put, item, plan, feed, start, numbers)))
                if len(queue) > work.jobs:
                    settle(*queue.popleft())
            while queue:
                settle(*queue.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
    if broken:
        raise errors.not_finite(broken, work.source.files[0].parent)
    return {str(path): sha for path, sha in found.items()}


def _all(
    sweep: Sweep, by_source: Mapping[str, list[Feed]], plan: Plan, journal: Journal
) -> Iterator[tuple[Feed, int, np.ndarray | None, bool]]:
    for piece in sweep:
        for feed in by_source[piece.name]:
            yield feed, piece.start, piece.rows, piece.is_last
    for feed in plan.feeds:
        if feed.source is None and feed.link.source not in journal.done:
            count, step = _count(plan, feed.link), _file_rows(plan, feed.link)
            for start in range(0, count, step):
                yield feed, start, None, start + step >= count


def _rows(plan: Plan, feeds: list[Feed]) -> int:
    """How many rows of a source tensor are read at once: those of a file, or all."""
    if any(feed.make is not None for feed in feeds):
        return np.iinfo(np.int64).max
    rows = {_file_rows(plan, feed.link) for feed in feeds}
    return rows.pop() if len(rows) == 1 else np.iinfo(np.int64).max


def _file_rows(plan: Plan, link: names.Link) -> int:
    """Rows of a BAGEL tensor in one file of its parameter."""
    cut = plan.cuts[link.path]
    if link.transform == "conv" or not cut.shape:
        return np.iinfo(np.int64).max
    return cut.file[_long(link)]


def _count(plan: Plan, link: names.Link) -> int:
    """Rows of a BAGEL tensor."""
    return names.source_shape(link, plan.cuts[link.path].shape)[0]


def _long(link: names.Link) -> int:
    """The dim of the parameter that a BAGEL tensor's rows lie along."""
    return -1 if link.transform == "linear" else 0 if link.layer is None else 1


def _put(
    item: Place, plan: Plan, feed: Feed, start: int, numbers: np.ndarray | None
) -> tuple[list[Written], int]:
    """Writes some rows of a BAGEL tensor and reads them back.

    Returns:
      the files, and how many numbers are not finite (then nothing is written).
    """
    link, dtype = feed.link, plan.dtype(feed)
    if numbers is None:
        numbers = feed.make(start, min(start + _file_rows(plan, link), _count(plan, link)))
    elif feed.make is not None:
        numbers = feed.make(numbers)
    bad = count_broken(numbers)
    if not bad and numbers.dtype != dtype:
        with np.errstate(over="ignore"):  # counted instead
            numbers = numbers.astype(dtype)
        bad = count_broken(numbers)
    if bad:
        return [], bad
    cut, files = plan.cuts[link.path], []
    step = min(_file_rows(plan, link), max(len(numbers), 1) if numbers.ndim else 1)
    for first in range(0, len(numbers) if numbers.ndim else 1, step):
        block = names.to_ours(link, numbers[first : first + step] if numbers.ndim else numbers)
        at = [0] * len(cut.shape)
        if link.layer is not None:
            at[0] = link.layer
        if cut.shape and link.transform != "conv":
            at[_long(link)] += (start + first) // cut.file[_long(link)]
        files.append(_write(item, arrays.key(link.path, at), arrays.encode(cut, block)))
    return files, 0


def _write(item: Place, key: str, data: np.ndarray) -> Written:
    item.write(key, data)
    return Written(key, len(data), item.check(key, data))


def count_broken(numbers: np.ndarray) -> int:
    """Returns how many numbers are infinite or none; a fast pass where there are none."""
    mask = EXPONENT[numbers.dtype.name]
    bits = np.atleast_1d(numbers).view(f"u{numbers.dtype.itemsize}")
    sign = 1 << 8 * bits.itemsize - 1
    signed = bits.view(f"i{bits.itemsize}")  # its largest is the largest positive number
    if np.max(bits, initial=0) < mask | sign and np.max(signed, initial=0) < mask:
        return 0
    return int(np.sum((bits & bits.dtype.type(sign - 1)) >= mask))
