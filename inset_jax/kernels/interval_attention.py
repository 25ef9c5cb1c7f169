"""Attention over visibility intervals as TPU kernels: `attend(..., implementation="pallas")`.

Off TPUs the kernels run in Pallas' interpreter: exact, slow, for tests.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.kernels import interval_form as forms
from inset_jax.kernels.interval_backward import backward
from inset_jax.kernels.interval_form import Block, Form
from inset_jax.kernels.interval_forward import forward
from inset_jax.kernels.interval_shift import exact


def pallas(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    block: Block | None = None,
) -> jax.Array:
    """Attends; arguments and result as in `attend.attend`.

    Args:
      visibility: [P, K], with or without a list of visible tiles.
      block: None takes the row of `interval_form.BLOCKS` for the device at hand.

    Raises:
      NotImplementedError: dtypes other than float32 and bfloat16, a scale that is not positive, or
        too many tiles.
    """
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"{query.dtype}: the kernels take float32 and bfloat16")
    if scale <= 0:
        raise NotImplementedError(f"scale {scale}: the kernels' maximum is that of unscaled scores")
    on_tpu = mesh.platform() == "tpu"
    if block is None:
        block = forms.block_for()
        if on_tpu and query.dtype == jnp.float32:  # numbers twice as large, the same fast memory
            block = block._replace(query=block.query // 2)
    form = forms.make(query, key, block, scale, interpret=not on_tpu)
    return _attention(query, key, value, visibility, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, visibility, form: Form):
    return _attention_forward(query, key, value, visibility, form)[0]


def _attention_forward(query, key, value, visibility, form: Form):
    walk = forms.walk(visibility, query.shape[1], form)
    queries, pairs = _lay_queries(query, form), _lay_keys(key, value, form)
    out, lse = forward(queries, pairs, walk, forms.bounded(query, key, form), form)
    out = forms.unlay(out, query, form.width)
    if walk.complete is not None:
        # a traced list that is too short cannot raise; it must not go unnoticed either
        out = jnp.where(walk.complete, out, jnp.asarray(jnp.nan, out.dtype))
    lse = _unlay_statistics(lse, form)
    # named, so that a remat policy may keep them and spare the backward pass a second forward
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (query, key, value, visibility, out, lse)


def _attention_backward(form: Form, residual, grad):
    query, key, value, visibility, out, lse = residual
    whole, form = form, forms.for_backward(form)
    lse = _lay_statistics(lse, form)
    queries = tuple(_lay_queries(x, form) for x in (query, out, grad))
    whole = whole._replace(per_step=form.per_step)  # with all keys, however long
    every_pair = _lay_keys(key, value, whole)
    statistics = exact((queries[0], queries[2]), lse, every_pair, visibility, whole)
    window = form.columns * form.block.key
    grad_query, grads = 0.0, []
    for start in range(0, key.shape[1], window):
        part = slice(start, start + window)
        seen = visibility
        if key.shape[1] > window:
            seen = Visibility(visibility.low[:, part], visibility.high[:, part])
        walk = forms.walk(seen, query.shape[1], form)
        pairs = _lay_keys(key[:, part], value[:, part], form)
        share, *pair = backward(queries, statistics, pairs, walk, form)
        grad_query += share.astype(jnp.float32)
        grads.append([forms.unlay(x, key[:, part], form.width) for x in pair])
    grad_query = forms.unlay(grad_query, query, form.width).astype(query.dtype)
    grad_key, grad_value = (jnp.concatenate(x, 1).astype(key.dtype) for x in zip(*grads))
    return grad_query, grad_key, grad_value, None


_attention.defvjp(_attention_forward, _attention_backward)


def _lay_queries(array: jax.Array, form: Form) -> jax.Array:
    return forms.lay(array, form.rows * form.block.query, form.width)


def _lay_keys(key: jax.Array, value: jax.Array, form: Form) -> tuple[jax.Array, jax.Array]:
    lay = functools.partial(forms.lay, length=form.columns * form.block.key, width=form.width)
    return lay(key), lay(value)


def _unlay_statistics(lse: jax.Array, form: Form) -> jax.Array:
    """[head sets x statistics, R] -> [H, R]: one number a row and head."""
    heads = form.per_step * form.group
    return lse.reshape(-1, form.statistics, lse.shape[1])[:, :heads].reshape(-1, lse.shape[1])


def _lay_statistics(lse: jax.Array, form: Form) -> jax.Array:
    """Undoes `_unlay_statistics`, for the head sets of `form`."""
    heads = form.per_step * form.group
    by_set = lse.reshape(-1, heads, lse.shape[1])
    padding = ((0, 0), (0, form.statistics - heads), (0, 0))
    return jnp.pad(by_set, padding).reshape(-1, lse.shape[1])
