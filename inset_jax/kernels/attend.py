"""Attention over visibility intervals: one function, several implementations by name."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inset_jax.core.batch import Visibility


def reference(query, key, value, visibility: Visibility, scale: float) -> jax.Array:
    """Dense attention in float32; the meaning of every other implementation."""
    group = query.shape[2] // key.shape[2]
    row = jnp.arange(query.shape[1])[None, :, None]
    mask = (visibility.low[:, None] <= row) & (row < visibility.high[:, None])  # [P, Q, K]
    key, value = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (key, value))
    scores = jnp.einsum("pqhd,pkhd->phqk", query.astype(jnp.float32), key) * scale
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    weights = jnp.where(mask.any(-1)[:, None, :, None], weights, 0.0)
    return jnp.einsum("phqk,pkhd->pqhd", weights, value).astype(query.dtype)


IMPLEMENTATIONS = {"reference": reference}


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    implementation: str = "auto",
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention where key k is seen by the queries low[k] <= q < high[k].

    Args:
      query: [P, Q, H, D].
      key, value: [P, K, N, D]; query head h reads key-value head h // (H // N).
      visibility: int32 [P, K] twice.

    Returns:
      [P, Q, H, D] in the query's dtype; rows that see nothing are exactly 0.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    name = "reference" if implementation == "auto" else implementation
    return IMPLEMENTATIONS[name](query, key, value, visibility, scale)
