"""Attention in plain XLA with memory linear in length, forward and backward, on any backend.

Queries and keys are cut into blocks. For each block of queries a loop of dynamic length visits the
blocks of keys that somebody in it sees: first those that everybody sees whole, without any mask
arithmetic, then the others. The backward pass walks the same tiles again and rebuilds the
probabilities from one number a row, the log of the sum of exponents.

Letters beside those of `core.batch`: B blocks of queries (of all packs), J blocks of keys (of all
packs), R rows of a query block = query heads of one key-value head x queries, S keys of a block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core import visibility as intervals
from inset_jax.core.batch import Visibility

# Tuned on two CPU cores (docs/lab_log.md); lengths below a block make one block.
QUERY_BLOCK = 256
KEY_BLOCK = 512

# A masked score is far below the start of the running maximum, so that its exponent is 0 even in
# a row that has seen nothing yet.
MASKED = -2.4e38
LOWEST = -1e30
UNSEEN = 1e30  # the log-sum-exp of a row that sees nothing: exp(score - UNSEEN) is 0


class Blocks(NamedTuple):
    """What the loops run over. The query side has one entry a block of queries, of all packs."""

    query: jax.Array  # [B, N, R, D]
    row: jax.Array  # int32 [B, R], number of the query in its pack
    column: jax.Array  # int32 [B, :], blocks of keys: those seen whole, other seen ones, unseen
    whole: jax.Array  # int32 [B], how many blocks of `column` are seen whole
    seen: jax.Array  # int32 [B], how many are seen at all


class Keys(NamedTuple):
    """The key side, one entry a block of keys, of all packs."""

    key: jax.Array  # [J, N, S, D]
    value: jax.Array  # [J, N, S, D]
    turned: jax.Array  # [J, N, D, S], the keys again: CPU is slow to read an operand transposed
    low: jax.Array  # int32 [J, S]
    high: jax.Array  # int32 [J, S]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, scale: float
) -> jax.Array:
    """Attends; arguments and result as in `attend.attend`.

    Raises:
      NotImplementedError: float64, which float32 sums would betray.
    """
    return _chunked_forward(query, key, value, visibility, scale)[0]


def _chunked_forward(query, key, value, visibility, scale):
    if query.dtype == jnp.float64:
        raise NotImplementedError("float64: sums are float32 here")
    blocks, keys = _cut(query, key, value, visibility)
    out, lse = lax.map(functools.partial(_forward_block, keys=keys, scale=scale), blocks)
    out = _join(out, query).astype(query.dtype)
    # named, so that a remat policy may keep them and spare the backward pass a second forward
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (query, key, value, visibility, out, lse)


def _chunked_backward(scale, residual, grad):
    query, key, value, visibility, out, lse = residual
    blocks, keys = _cut(query, key, value, visibility)
    size = blocks.row.shape[1] * key.shape[2] // query.shape[2]
    cut = lambda x: _cut_queries(x, key.shape[2], size)
    per_block = (blocks, cut(grad), cut(out), lse)
    zeros = jnp.zeros(keys.key.shape, jnp.float32)
    step = functools.partial(_backward_block, keys=keys, scale=scale)
    (grad_key, grad_value), grad_query = lax.scan(step, (zeros, zeros), per_block)
    return (
        _join(grad_query, query).astype(query.dtype),
        _join(grad_key, key).astype(key.dtype),
        _join(grad_value, value).astype(value.dtype),
        None,
    )


chunked.defvjp(_chunked_forward, _chunked_backward)


def _forward_block(block: Blocks, keys: Keys, scale: float):
    """One block of queries over the keys it sees: ([N, R, D], log-sum-exp [N, R]), float32."""

    def tile(i, carry, masked):
        peak, total, mixed = carry
        at = _take(keys, block.column[i])
        # the scale waits for the exponent: scaled scores would be written and read once more
        score_NRS = _dot("nrd,nsd->nrs", block.query, at.key)
        if masked:
            row_R1 = block.row[:, None]
            seen_RS = (at.low <= row_R1) & (row_R1 < at.high)
            score_NRS = jnp.where(seen_RS, score_NRS, MASKED)
        new_peak = jnp.maximum(peak, score_NRS.max(-1))
        fade = jnp.exp(scale * (peak - new_peak))
        weight_NRS = jnp.exp(scale * (score_NRS - new_peak[..., None]))
        total = total * fade + weight_NRS.sum(-1)
        mixed = mixed * fade[..., None] + _dot(
            "nrs,nsd->nrd", weight_NRS.astype(at.value.dtype), at.value
        )
        return new_peak, total, mixed

    rows = block.query.shape[:2]
    carry = (
        jnp.full(rows, LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(block.query.shape, jnp.float32),
    )
    peak, total, mixed = _over_tiles(tile, block, carry)
    lonely = total == 0
    total = jnp.where(lonely, 1, total)
    return mixed / total[..., None], jnp.where(lonely, UNSEEN, scale * peak + jnp.log(total))


def _backward_block(carry, per_block, keys: Keys, scale: float):
    """Adds one block's share to the gradients of keys and values; returns its queries' gradient.

    Scores are held as [keys, rows]: of the four products that read them, three then find them in
    the order they want, against one in the forward's order.
    """
    block, grad_NRD, out_NRD, lse_NR = per_block
    # what the softmax's sum of one takes back: sum over keys of weight x pull = grad . out
    shift_NR = jnp.sum(grad_NRD.astype(jnp.float32) * out_NRD.astype(jnp.float32), -1)

    def tile(i, carry, masked):
        grad_key, grad_value, grad_query_NDR = carry
        column = block.column[i]
        at = _take(keys, column)
        score_NSR = _dot("nsd,nrd->nsr", at.key, block.query)
        if masked:
            seen_SR = (at.low[:, None] <= block.row) & (block.row < at.high[:, None])
            score_NSR = jnp.where(seen_SR, score_NSR, MASKED)
        weight_NSR = jnp.exp(scale * score_NSR - lse_NR[:, None])
        pull_NSR = _dot("nsd,nrd->nsr", at.value, grad_NRD) - shift_NR[:, None]
        slope_NSR = (scale * weight_NSR * pull_NSR).astype(block.query.dtype)
        weight_NSR = weight_NSR.astype(grad_NRD.dtype)
        grad_value = _add_at(grad_value, column, _dot("nsr,nrd->nsd", weight_NSR, grad_NRD))
        grad_key = _add_at(grad_key, column, _dot("nsr,nrd->nsd", slope_NSR, block.query))
        grad_query_NDR += _dot("nds,nsr->ndr", at.turned, slope_NSR)
        return grad_key, grad_value, grad_query_NDR

    grad_query_NDR = jnp.zeros_like(block.query.swapaxes(1, 2), jnp.float32)
    *carry, grad_query_NDR = _over_tiles(tile, block, (*carry, grad_query_NDR))
    return tuple(carry), grad_query_NDR.swapaxes(1, 2)


def _over_tiles(tile, block: Blocks, carry):
    """Runs `tile(i, carry, masked)` over the seen blocks of keys: whole ones, then the others."""
    if block.column.shape[0] == 1:
        return tile(0, carry, masked=True)  # short sequences: no loops to compile
    carry = lax.fori_loop(0, block.whole, functools.partial(tile, masked=False), carry)
    return lax.fori_loop(block.whole, block.seen, functools.partial(tile, masked=True), carry)


def _take(keys: Keys, column: jax.Array) -> Keys:
    """Returns one block of keys: [N, S, D] and [S]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, column, keepdims=False), keys)


def _add_at(array: jax.Array, index: jax.Array, block: jax.Array) -> jax.Array:
    """array[index] += block; `.at[].add` would become a scatter with checks of its bounds."""
    block = block + lax.dynamic_index_in_dim(array, index, keepdims=False)
    return lax.dynamic_update_index_in_dim(array, block, index, 0)


def _dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A product with float32 sums; float32 inputs are not rounded on the way, on any backend."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(
        equation, left, right, precision=precision, preferred_element_type=jnp.float32
    )


def _cut(query, key, value, visibility: Visibility) -> tuple[Blocks, Keys]:
    """Pads to whole blocks, cuts, and lists the tiles that are seen."""
    packs, queries, heads, _ = query.shape
    kv_heads = key.shape[2]
    query_block = _block_size(queries, QUERY_BLOCK)
    key_block = _block_size(key.shape[1], KEY_BLOCK)
    low, high = (_pad(x, key_block) for x in visibility)  # interval [0, 0): seen by nobody
    tiles = intervals.tiles(Visibility(low, high), queries, query_block, key_block)
    order = intervals.schedule(tiles)
    per_query_block = lambda x: rearrange(x, "p b ... -> (p b) ...")
    first_block = jnp.arange(packs)[:, None, None] * (low.shape[1] // key_block)
    first_row = jnp.arange(tiles.seen.shape[1]) * query_block
    row = first_row[:, None] + jnp.tile(jnp.arange(query_block), heads // kv_heads)
    blocks = Blocks(
        query=_cut_queries(query, kv_heads, query_block),
        row=jnp.tile(row, (packs, 1)),
        column=per_query_block(order.column + first_block),
        whole=per_query_block(order.whole),
        seen=per_query_block(order.seen),
    )
    cut_keys = lambda x: rearrange(_pad(x, key_block), "p (j s) n d -> (p j) n s d", s=key_block)
    cut_range = lambda x: rearrange(x, "p (j s) -> (p j) s", s=key_block)
    cut_key = cut_keys(key)
    sides = (cut_range(low), cut_range(high))
    return blocks, Keys(cut_key, cut_keys(value), cut_key.swapaxes(2, 3), *sides)


def _cut_queries(array: jax.Array, kv_heads: int, size: int) -> jax.Array:
    """[P, Q, H, D] -> [B, N, R, D], padded to whole blocks of `size` queries."""
    return rearrange(_pad(array, size), "p (b q) (n g) d -> (p b) n (g q) d", q=size, n=kv_heads)


def _join(blocks: jax.Array, like: jax.Array) -> jax.Array:
    """Undoes the cut: [blocks, N, rows, D] -> the shape of `like`, [P, length, heads, D]."""
    packs, length, heads, _ = like.shape
    group = heads // blocks.shape[1]
    joined = rearrange(blocks, "(p b) n (g q) d -> p (b q) (n g) d", p=packs, g=group)
    return joined[:, :length]


def _block_size(length: int, most: int) -> int:
    """Returns the size of equal blocks of at most `most` that waste little padding."""
    blocks = -(-length // most)
    return -(-length // (8 * blocks)) * 8


def _pad(array: jax.Array, block: int) -> jax.Array:
    """Pads dimension 1 with zeros to a multiple of `block`."""
    missing = -array.shape[1] % block
    return jnp.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))
