"""Attention of short packs in plain XLA: all scores of a pack at once, each pass written by hand.

Where a pack is one tile (`chunked`), loops over tiles cost more than they save. The forward pass
keeps one number a row, the scaled inverse of its sum of exponents, beside its maximum; the backward
pass makes the probabilities again. Half the time of differentiating `attend.reference` on a CPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core.batch import Visibility

MOST_SCORES = 512 * 512  # of a pack and head; above that `chunked` has the smaller memory
MASKED = -1e30


class _Rows(NamedTuple):
    """One number a row of scores, [P, N, H / N, Q, 1]."""

    highest: jax.Array  # the largest seen score
    inverse: jax.Array  # 1 / the sum of exponents; 0 where a row sees nothing


def whole(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, scale: float
) -> jax.Array:
    """Attends as `attend.attend` says, in float32 inside (float64 stays float64).

    Raises:
      NotImplementedError: the scores of a pack are too many to exist at once.
    """
    scores = query.shape[1] * key.shape[1]
    if scores > MOST_SCORES:
        raise NotImplementedError(
            f"{query.shape[1]} queries x {key.shape[1]} keys are {scores} scores a head; "
            f"whole packs are for at most {MOST_SCORES}"
        )
    row = jnp.arange(query.shape[1])[:, None]
    mask = (visibility.low[:, None] <= row) & (row < visibility.high[:, None])
    # added, not selected: XLA fuses a sum with the product before it
    return _attend(query, key, value, jnp.where(mask, 0.0, MASKED), scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, hidden, scale: float):
    return _forward(query, key, value, hidden, scale)[0]


def _forward(query, key, value, hidden, scale: float):
    q, k, v = _heads_first(query, key, value)
    score = _scores(q, k, hidden, scale)
    highest = jnp.max(score, -1, keepdims=True)
    weight = jnp.exp(score - highest)
    inverse = jnp.where(highest > MASKED / 2, 1 / jnp.sum(weight, -1, keepdims=True), 0)
    out = _product("pnrk,pnkd->pnrd", _flat(weight), v) * _flat(inverse)
    out = checkpoint_name(_tokens_first(out, query.shape).astype(query.dtype), "attention")
    rows = _Rows(*(checkpoint_name(x, "attention") for x in (highest, inverse)))
    return out, (query, key, value, hidden, out, rows)


def _backward(scale: float, kept, gradient):
    query, key, value, hidden, out, rows = kept
    q, k, v = _heads_first(query, key, value)
    pull, seen = _queries_first_heads(gradient, k), _queries_first_heads(out, k)
    weight = _flat(jnp.exp(_scores(q, k, hidden, scale) - rows.highest) * rows.inverse)
    shift = jnp.sum(pull * seen, -1, keepdims=True)
    slope = weight * (_product("pnrd,pnkd->pnrk", pull, v) - shift) * scale
    to_query = _tokens_first(_product("pnrk,pnkd->pnrd", slope, k), query.shape)
    to_key = _product("pnrk,pnrd->pnkd", slope, q).transpose(0, 2, 1, 3)
    to_value = _product("pnrk,pnrd->pnkd", weight, pull).transpose(0, 2, 1, 3)
    cast = lambda x: x.astype(query.dtype)
    return cast(to_query), cast(to_key), cast(to_value), None


_attend.defvjp(_forward, _backward)

_product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _scores(q, k, hidden, scale: float) -> jax.Array:
    """Scaled scores and, where nobody may look, MASKED: [P, N, H / N, Q, K]."""
    score = _product("pnrd,pnkd->pnrk", q, k) * scale
    score = score.reshape(*score.shape[:2], -1, *hidden.shape[1:])
    return score + hidden[:, None, None].astype(score.dtype)


def _heads_first(query, key, value) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[P, T, heads, D] -> query [P, N, H / N x Q, D], key and value [P, N, K, D], exact."""
    exact = jnp.promote_types(query.dtype, jnp.float32)
    k, v = (x.astype(exact).transpose(0, 2, 1, 3) for x in (key, value))
    return _queries_first_heads(query, k), k, v


def _queries_first_heads(x: jax.Array, k: jax.Array) -> jax.Array:
    """[P, Q, H, D] -> [P, N, H / N x Q, D] of the dtype and the heads of k [P, N, K, D]."""
    packs, queries, heads, width = x.shape
    groups = heads // k.shape[1]
    x = x.astype(k.dtype).reshape(packs, queries, k.shape[1], groups, width)
    return x.transpose(0, 2, 3, 1, 4).reshape(packs, k.shape[1], groups * queries, width)


def _tokens_first(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[P, N, H / N x Q, D] -> `shape`, [P, Q, H, D]."""
    packs, queries, heads, width = shape
    x = x.reshape(packs, x.shape[1], heads // x.shape[1], queries, width)
    return x.transpose(0, 3, 1, 2, 4).reshape(shape)


def _flat(x: jax.Array) -> jax.Array:
    """[P, N, H / N, Q, *] -> [P, N, H / N x Q, *]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
