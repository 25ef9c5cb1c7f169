"""Attention over visibility intervals: the one function that models call, and its plain reference.

An implementation takes (query, key, value, visibility, scale) and refuses what it cannot do with
`NotImplementedError(reason)`; `IMPLEMENTATIONS` lists them in the order in which "auto" tries them.
Whatever of its result spares the backward pass a second forward, it marks by
`checkpoint_name(..., "attention")`, for remat policies (`model.decoder.REMAT`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.core.config import ComputeConfig
from inset_jax.core.visibility import Listed, Steps
from inset_jax.kernels.chunked import chunked
from inset_jax.kernels.interval_attention import pallas
from inset_jax.kernels.interval_form import block_for
from inset_jax.kernels.whole import whole


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


IMPLEMENTATIONS: dict[str, Callable] = {
    "pallas": pallas,
    "whole": whole,
    "chunked": chunked,
    "reference": reference,
}


def chosen(compute: ComputeConfig) -> str | Callable:
    """Returns the implementation that a config asks for, as `attend` takes it."""
    on_tpu = compute.attention == "auto" and mesh.platform() == "tpu"
    if compute.attention_block and (on_tpu or compute.attention == "pallas"):
        return functools.partial(pallas, block=block_for(compute.attention_block))
    return compute.attention


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility | Listed,
    implementation: str | Callable = "auto",
    scale: float | None = None,
) -> jax.Array:
    """Mixes the values that each query sees, by the softmax of its scores.

    Query head h uses key-value head h // (H / N). A query that sees nothing gives exact zeros.
    Differentiable in query, key and value. Under a mesh (`jax.set_mesh`) every device works on its
    own packs, heads and queries.

    Args:
      query: [P, Q, H, D].
      key, value: [P, K, N, D] of the query's dtype; N divides H.
      visibility: int32 [P, K], intervals over the Q queries; the kernels also take them with the
        list of visible tiles (`interval_form.listed`) and otherwise make it themselves.
      implementation: a name in IMPLEMENTATIONS, or "auto": the first that does not refuse; or a
        function of the same arguments as these.
      scale: factor on the scores; None means 1 / sqrt(D).

    Returns:
      [P, Q, H, D] of the query's dtype; sums are float32 inside.

    Raises:
      ValueError: shapes or dtypes that do not fit together, or an unknown name.
      NotImplementedError: the named implementation, or every one, refuses; the message says why.
    """
    _check(query, key, value, visibility)
    if not callable(implementation) and implementation not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(
            f"attention implementation {implementation!r}: have 'auto' and {list(IMPLEMENTATIONS)}"
        )
    if not query.size or not key.size:
        return jnp.zeros_like(query)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if callable(implementation):
        return _per_device(implementation, query, key, value, visibility, scale)
    names = list(IMPLEMENTATIONS) if implementation == "auto" else [implementation]
    refusals = []
    for name in names:
        if name == "pallas" and implementation == "auto" and mesh.platform() != "tpu":
            refusals.append("pallas: no TPU; elsewhere it is interpreted, and only if named")
            continue
        try:
            return _per_device(IMPLEMENTATIONS[name], query, key, value, visibility, scale)
        except NotImplementedError as refusal:
            refusals.append(f"{name}: {refusal}")
    raise NotImplementedError("attention is refused by " + "; ".join(refusals))


def _per_device(function: Callable, query, key, value, visibility, scale: float):
    """Runs an implementation on each device's packs, heads and queries, where these divide evenly.

    The keys of a pack are whole on every device; their gradients are summed over the devices that
    share the pack's queries.
    """
    pack = mesh.dividing("pack", query.shape[0])
    heads = mesh.dividing("heads", query.shape[2], key.shape[2])
    token = mesh.dividing("token", query.shape[1])
    split = token is not None and mesh.ways(token) > 1
    lists = function is pallas or getattr(function, "func", None) is pallas
    if split or not lists:  # only the kernels read a list, and only of whole packs
        visibility = Visibility(visibility.low, visibility.high)

    def local(query, key, value, visibility):
        if split:
            visibility = _of_part(visibility, mesh.index(token), query.shape[1])
        return function(query, key, value, visibility, scale)

    intervals = Visibility((pack, None), (pack, None))
    if isinstance(visibility, Listed):
        intervals = Listed(*intervals, Steps((pack, None), (pack,)))
    tokens, keys = (pack, token, heads, None), (pack, None, heads, None)
    inputs = (tokens, keys, keys, intervals)
    return mesh.per_device(local, inputs, tokens)(query, key, value, visibility)


def _of_part(visibility: Visibility, part: jax.Array, queries: int) -> Visibility:
    """Renumbers intervals to the queries of one of several equal parts, `queries` each."""
    clipped = lambda side: jnp.clip(side - part * queries, 0, queries)
    return Visibility(clipped(visibility.low), clipped(visibility.high))


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
    for name, bound in (("low", visibility.low), ("high", visibility.high)):
        if bound.shape != key.shape[:2]:
            raise ValueError(f"attend: visibility.{name} {bound.shape}, keys are {key.shape[:2]}")
