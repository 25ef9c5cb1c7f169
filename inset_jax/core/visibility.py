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
