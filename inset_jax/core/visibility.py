"""Visibility intervals: the attention mask of a pack as two integers a key.

In reading order a key is seen by one contiguous run of queries (README, design notes):

    causal   [itself, end of its example)
    full     [start of its segment, end of its example)
    noise    [start of its segment, end of its segment)

and restricting the queries to any subset (one stream, only the noisy tokens of a sampling step)
keeps their order, so the run stays a run. NumPy only: the data pipeline, the sampler and the
kernels share it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Visibility

CAUSAL, FULL, NOISE = 0, 1, 2  # the codes of BAGEL's attn_modes


class Segments(NamedTuple):
    """Consecutive segments of attention in reading order, one entry a segment."""

    length: np.ndarray  # int [segment], tokens
    kind: np.ndarray  # int [segment], CAUSAL, FULL or NOISE
    example: np.ndarray  # int [segment], not decreasing


def reading_intervals(segments: Segments) -> Visibility:
    """Returns each token's interval of queries, both in reading order: int64 [token]."""
    length = np.asarray(segments.length, np.int64)
    kind = np.asarray(segments.kind)
    example = np.asarray(segments.example)
    end = np.cumsum(length)
    start = end - length
    # the last segment of each example, found from the right
    example_end = end[np.searchsorted(example, example, side="right") - 1]
    token = np.arange(end[-1] if len(end) else 0)
    own_start, own_end = np.repeat(start, length), np.repeat(end, length)
    token_kind = np.repeat(kind, length)
    low = np.where(token_kind == CAUSAL, token, own_start)
    high = np.where(token_kind == NOISE, own_end, np.repeat(example_end, length))
    return Visibility(low, high)


def for_queries(visibility: Visibility, is_query: np.ndarray) -> Visibility:
    """Renumbers intervals over reading order to intervals over the chosen queries.

    Args:
      visibility: intervals over all tokens in reading order.
      is_query: bool [token], which tokens ask; they are numbered in reading order.
    """
    before = np.concatenate([[0], np.cumsum(is_query)])
    return Visibility(before[visibility.low], before[visibility.high])


def dense(visibility: Visibility, queries: int) -> np.ndarray:
    """Returns bool [query, key], the mask that the intervals stand for. For tests and pictures."""
    query = np.arange(queries)[:, None]
    return (np.asarray(visibility.low) <= query) & (query < np.asarray(visibility.high))


def dense_rule(segments: Segments) -> np.ndarray:
    """Returns bool [token, token] straight from the rule, without intervals.

    Key j is visible to query i iff they share the example, and j <= i or both lie in the same full
    or noise segment, and j is not in a noise segment other than i's.
    """
    length = np.asarray(segments.length)
    number = np.repeat(np.arange(len(length)), length)
    example = np.asarray(segments.example)[number]
    kind = np.asarray(segments.kind)[number]
    token = np.arange(len(number))
    same = number[:, None] == number[None, :]
    before = token[None, :] <= token[:, None]
    visible = before | (same & (kind != CAUSAL)[None, :])
    foreign_noise = (kind == NOISE)[None, :] & ~same
    return (example[:, None] == example[None, :]) & visible & ~foreign_noise


class Tiles(NamedTuple):
    """Which tiles (block of queries x block of keys) of a mask hold anything."""

    seen: np.ndarray  # bool [..., query block, key block]: somebody sees something
    whole: np.ndarray  # bool, same shape: everybody sees everything, no mask is needed


class Schedule(NamedTuple):
    """For each block of queries, the blocks of keys in the order in which to visit them."""

    column: np.ndarray  # int [..., query block, key block]: whole ones, other seen ones, unseen
    whole: np.ndarray  # int [..., query block], how many of them are whole
    seen: np.ndarray  # int [..., query block], how many of them are seen


def tiles(visibility: Visibility, queries: int, query_block: int, key_block: int) -> Tiles:
    """Returns what each tile of the mask holds, exactly, without building the mask.

    The work is keys x query blocks. Only operators and methods are used, so that it serves NumPy
    arrays and traced JAX arrays alike.

    Args:
      visibility: intervals [..., key]; the number of keys is a multiple of `key_block`.
      queries: number of queries; those that fill up the last block count as seeing everything.
    """
    start = np.arange(0, queries, query_block)[:, None]
    end = np.minimum(start + query_block, queries)
    low, high = visibility.low[..., None, :], visibility.high[..., None, :]
    *lead, keys = visibility.low.shape
    blocked = (*lead, len(start), keys // key_block, key_block)
    seen = (low < end) & (start < high) & (low < high)
    whole = (low <= start) & (end <= high)
    return Tiles(seen.reshape(blocked).any(-1), whole.reshape(blocked).all(-1))


def schedule(tiles: Tiles) -> Schedule:
    """Returns the order in which each block of queries visits the blocks of keys."""
    rank = 2 - tiles.seen.astype(np.int32) - tiles.whole.astype(np.int32)
    column = rank.argsort(axis=-1, stable=True).astype(np.int32)
    return Schedule(column, (rank == 0).sum(-1), (rank < 2).sum(-1))


# What one step of a kernel's walk over the visible tiles has to do, as bits of its code; the row of
# the tile is in the bits from ROW_SHIFT, its column in those from COLUMN_SHIFT.
FIRST, LAST, MASKED, RUN = 1, 2, 4, 8
COLUMN_SHIFT, ROW_SHIFT = 4, 18
MOST_ROWS, MOST_COLUMNS = 1 << 13, 1 << 14
UNUSED = (1 << 31) - 1
LANES = 128  # of a TPU's vector registers; blocks are padded to a multiple


class Steps(NamedTuple):
    """The walk of a kernel over the visible tiles: row by row, columns ascending.

    FIRST and LAST mark the ends of a row (a block of queries), MASKED a tile in which somebody sees
    only a part, RUN a tile to compute: a row that sees nothing is one step without it.
    """

    code: np.ndarray  # int32 [..., capacity]; UNUSED after the first `count`
    count: np.ndarray  # int32 [...]


def steps(tiles: Tiles, capacity: int | None = None, every_row: bool = True) -> Steps:
    """Returns the walk over the seen tiles of each pack, for NumPy and traced JAX arrays alike.

    Args:
      capacity: most steps of a pack; None means one a tile, which no pack exceeds. Traced arrays
        cannot raise: `count` then tells that steps are missing from `code`.
      every_row: a row without a seen tile is one step; else it is none.

    Raises:
      ValueError: a pack needs more steps than `capacity`; the message names it.
    """
    numbers = tiles.seen.__array_namespace__()
    *lead, rows, columns = tiles.seen.shape
    assert rows <= MOST_ROWS and columns <= MOST_COLUMNS, (rows, columns)
    row, column = np.arange(rows, dtype=np.int32)[:, None], np.arange(columns, dtype=np.int32)
    place = (row << ROW_SHIFT) | (column << COLUMN_SHIFT)
    visited = tiles.seen
    if every_row:
        visited = visited | (~tiles.seen.any(-1)[..., None] & (column == 0))
    before = numbers.cumsum(visited.astype(np.int32), axis=-1)
    flags = (
        numbers.where(before == 1, FIRST, 0)
        | numbers.where(before == before[..., -1:], LAST, 0)
        | numbers.where(tiles.whole, 0, MASKED)
        | numbers.where(tiles.seen, RUN, 0)
    ).astype(np.int32)
    code = numbers.where(visited, place | flags, np.int32(UNUSED))
    count = visited.sum((-2, -1)).astype(np.int32)
    capacity = rows * columns if capacity is None else capacity
    if isinstance(count, np.ndarray | np.generic):
        _check_capacity(count, capacity)
    code = numbers.sort(code.reshape(*lead, rows * columns), axis=-1)
    return Steps(code[..., :capacity], count)


class Listed(NamedTuple):
    """Visibility with the walk over its tiles; goes wherever a `Visibility` goes."""

    low: np.ndarray  # int32 [..., key]
    high: np.ndarray  # int32 [..., key]
    steps: Steps


def listed(
    visibility: Visibility, queries: int, block: tuple[int, int], capacity: int | None = None
) -> Listed:
    """Adds the walk over the visible tiles to [..., key] intervals over `queries` queries.

    On the host for NumPy arrays, by the data pipeline; traced under jit for JAX arrays.

    Args:
      block: queries and keys of a tile, the same as the kernels'; short sequences get smaller ones.
      capacity: see `steps`, which also says how it fails.
    """
    numbers = visibility.low.__array_namespace__()
    keys = visibility.low.shape[-1]
    query_block, key_block = fitting(queries, keys, block)
    padding = [(0, 0)] * (visibility.low.ndim - 1) + [(0, -keys % key_block)]
    padded = Visibility(*(numbers.pad(side, padding) for side in visibility[:2]))
    walk = steps(tiles(padded, queries, query_block, key_block), capacity)
    return Listed(visibility.low, visibility.high, walk)


def fitting(queries: int, keys: int, block: tuple[int, int]) -> tuple[int, int]:
    """Returns the blocks for these lengths: equal ones, no larger than `block`, whole lanes."""
    parts = (_equal_parts(length, most) for length, most in zip((queries, keys), block))
    return tuple(parts)


def _equal_parts(length: int, most: int) -> int:
    unit = min(LANES, most)
    parts = -(-length // most)
    return -(-length // (unit * parts)) * unit


def _check_capacity(count: np.ndarray, capacity: int) -> None:
    """Names every pack whose walk is longer than `capacity`."""
    over = np.argwhere(np.asarray(count) > capacity)
    if len(over):
        packs = ", ".join(
            " ".join(["pack", *map(str, index), "has", str(count[tuple(index)])]) for index in over
        )
        raise ValueError(
            f"more visible tiles than attention_tiles={capacity}: {packs}; raise it, or set it to "
            "0 for as many as there are"
        )
