"""Two models tensor by tensor, in either form: names, shapes, dtypes, bytes, largest difference."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from inset_jax.checkpoint import bagel, differences, place, tensors
from inset_jax.checkpoint.errors import counted
from inset_jax.checkpoint.progress import Progress
from inset_jax.checkpoint.stored import Checkpoint


class Result(NamedTuple):
    """One tensor of the two."""

    name: str
    found: str  # "" where shape, dtype and bytes are equal; otherwise what differs
    largest: float | None  # difference of two numbers; None where they cannot be compared


def open_model(path: str | os.PathLike, weights: str | None = None) -> tensors.Tensors | Checkpoint:
    """Opens a BAGEL folder or a checkpoint as BAGEL's tensors.

    Raises:
      ValueError: it is neither, or unfinished, or damaged.
    """
    if not place.is_remote(path) and bagel.is_bagel(path):
        return tensors.open_folder(path, weights)
    return Checkpoint(path, weights)


def compare(a, b, progress: Progress, jobs: int = 2) -> Iterator[Result]:
    """Yields a result for every name of two models, as `open_model` gives them."""
    only_a = [name for name in a if name not in b]
    only_b = [name for name in b if name not in a]
    for name in only_a:
        yield Result(name, f"missing in B{differences.near(name, only_b)}", None)
    for name in only_b:
        yield Result(name, f"missing in A{differences.near(name, only_a)}", None)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        pending: collections.deque = collections.deque()
        for name in a:
            if name in b:
                pending.append(pool.submit(_one, a, b, name, progress))
            if len(pending) > jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _one(a, b, name: str, progress: Progress) -> Result:
    left, right = a[name], b[name]
    if left.shape != right.shape:
        return Result(name, f"shape {list(left.shape)} in A, {list(right.shape)} in B", None)
    phrases = []
    if left.dtype != right.dtype:
        phrases.append(f"{left.dtype} in A, {right.dtype} in B")
    at_once = max(model.rows_at_once(name) for model in (a, b))
    unequal, largest = 0, 0.0
    for start in range(0, left.rows, at_once):
        stop = min(start + at_once, left.rows)
        one, two = a.rows(name, start, stop), b.rows(name, start, stop)
        count, apart = _difference(one, two)
        unequal, largest = unequal + count, max(largest, apart)
        progress.add(one.nbytes)
    if unequal:
        phrases.append(f"{counted(unequal, 'number')} unequal")
    return Result(name, "; ".join(phrases), largest)


def _difference(one: np.ndarray, two: np.ndarray) -> tuple[int, float]:
    """Returns how many numbers are unequal, to the bit if of one dtype, and the largest difference.

    The difference is infinite where only one of two numbers is finite.
    """
    one, two = np.atleast_1d(one), np.atleast_1d(two)
    unequal = None
    if one.dtype == two.dtype:
        bits = f"u{one.dtype.itemsize}"
        unequal = int(np.sum(one.view(bits) != two.view(bits)))
        if not unequal:
            return 0, 0.0
    wide = np.float64 if 8 in (one.dtype.itemsize, two.dtype.itemsize) else np.float32
    one, two = one.astype(wide), two.astype(wide)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.abs(one - two))
    apart = np.where(np.isnan(apart), np.inf, apart)
    largest = float(np.max(apart, initial=0.0))
    return int(np.sum(~same)) if unequal is None else unequal, largest


def summary(results: list[Result]) -> dict[str, Any]:
    """Counts results, as JSON can hold it."""
    different = [result for result in results if result.found]
    largest = [result.largest for result in results if result.largest is not None]
    return {
        "tensors": len(results),
        "equal": len(results) - len(different),
        "different": [result._asdict() for result in different],
        "largest_difference": max(largest, default=0.0),
    }
