"""Attention over visibility intervals: the one function that models call, and its plain reference.

An implementation takes (query, key, value, visibility, scale) and refuses what it cannot do with
`NotImplementedError(reason)`; `IMPLEMENTATIONS` lists them in the order in which "auto" tries them.
Whatever of its result spares the backward pass a second forward, it marks by
`checkpoint_name(..., "attention")`, for remat policies (`model.decoder.REMAT`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.kernels.chunked import chunked


def reference(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, scale: float
) -> jax.Array:
    """Attends with the whole mask and all scores at once, in float32 (float64 stays float64)."""
    packs, queries, heads, width = query.shape
    kv_heads = key.shape[2]
    exact = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v = (x.astype(exact) for x in (query, key, value))
    q = q.reshape(packs, queries, kv_heads, heads // kv_heads, width)
    row = jnp.arange(queries)[:, None]
    mask = (visibility.low[:, None] <= row) & (row < visibility.high[:, None])
    mask = mask[:, None, None]  # [P, 1, 1, Q, K]
    score = scale * jnp.einsum("pqngd,pknd->pngqk", q, k, precision=lax.Precision.HIGHEST)
    # a row that sees nothing takes a softmax of zeros, which the mask then clears: no NaN, and no
    # gradient either
    score = jnp.where(mask, score, jnp.where(mask.any(-1, keepdims=True), -jnp.inf, 0))
    weight = jnp.where(mask, jax.nn.softmax(score, axis=-1), 0)
    out = jnp.einsum("pngqk,pknd->pqngd", weight, v, precision=lax.Precision.HIGHEST)
    return checkpoint_name(out.reshape(query.shape).astype(query.dtype), "attention")


IMPLEMENTATIONS: dict[str, Callable] = {"chunked": chunked, "reference": reference}


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    implementation: str = "auto",
    scale: float | None = None,
) -> jax.Array:
    """Mixes the values that each query sees, by the softmax of its scores.

    Query head h uses key-value head h // (H / N). A query that sees nothing gives exact zeros.
    Differentiable in query, key and value. Under a mesh (`jax.set_mesh`) every device works on its
    own packs and heads.

    Args:
      query: [P, Q, H, D].
      key, value: [P, K, N, D] of the query's dtype; N divides H.
      visibility: int32 [P, K], intervals over the Q queries.
      implementation: a name in IMPLEMENTATIONS, or "auto": the first that does not refuse.
      scale: factor on the scores; None means 1 / sqrt(D).

    Returns:
      [P, Q, H, D] of the query's dtype; sums are float32 inside.

    Raises:
      ValueError: shapes or dtypes that do not fit together, or an unknown name.
      NotImplementedError: the named implementation, or every one, refuses; the message says why.
    """
    _check(query, key, value, visibility)
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r}: have 'auto' and {list(IMPLEMENTATIONS)}"
        )
    if not query.size or not key.size:
        return jnp.zeros_like(query)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    names = list(IMPLEMENTATIONS) if implementation == "auto" else [implementation]
    refusals = []
    for name in names:
        try:
            return _per_device(IMPLEMENTATIONS[name], query, key, value, visibility, scale)
        except NotImplementedError as refusal:
            refusals.append(f"{name}: {refusal}")
    raise NotImplementedError("attention is refused by " + "; ".join(refusals))


def _per_device(function: Callable, query, key, value, visibility: Visibility, scale: float):
    """Runs an implementation on each device's packs and heads, as far as these divide evenly."""
    pack = mesh.dividing("pack", query.shape[0])
    heads = mesh.dividing("heads", query.shape[2], key.shape[2])
    tokens = (pack, None, heads, None)
    local = lambda query, key, value, visibility: function(query, key, value, visibility, scale)
    inputs = (tokens, tokens, tokens, Visibility((pack, None), (pack, None)))
    return mesh.per_device(local, inputs, tokens)(query, key, value, visibility)


def _check(query, key, value, visibility: Visibility) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"attend expects query [P, Q, H, D] and key, value [P, K, N, D]: {shapes}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"attend: packs or head widths differ: {shapes}")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"attend: query heads are no multiple of key-value heads: {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"attend: dtypes differ: {query.dtype}, {key.dtype}, {value.dtype}")
    for name, bound in visibility._asdict().items():
        if bound.shape != key.shape[:2]:
            raise ValueError(f"attend: visibility.{name} {bound.shape}, keys are {key.shape[:2]}")
