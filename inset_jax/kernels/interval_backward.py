"""The backward kernel of attention over visibility intervals (Pallas, TPU): one for all gradients.

It walks over the tiles as the forward kernel does, queries outside, so that the gradient of a
block's queries is summed in fast memory. The gradients of keys and values are smaller by the heads
of a group: those of a whole pack stay in fast memory until its walk is done. So nothing is summed
in the main memory, by this kernel or after it. Scores are held as [keys, queries]; four of the five
products then find them in the order they want, and the statistics of a query are one row.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from inset_jax.core.visibility import FIRST, LAST, RUN
from inset_jax.core.visibility import MASKED as IS_MASKED
from inset_jax.kernels.interval_form import (
    SUBLANES,
    UNSEEN,
    Form,
    Walk,
    column_of,
    dot,
    penalty,
    row_of,
)

VMEM_BYTES = 20 << 20  # beside the gradients of a pack's keys and values


def backward(
    queries: tuple[jax.Array, jax.Array, jax.Array],
    statistics: tuple[jax.Array, jax.Array],
    pairs: tuple[jax.Array, jax.Array],
    walk: Walk,
    form: Form,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of queries, keys and values, laid as these are.

    Args:
      queries: [R, H x width] each: queries, the forward result, and the gradient of it.
      statistics: float32 [head sets x statistics, R] each, sets of `form.per_step`: log-sum-exps,
        and the shifts of rows that see few keys (`interval_shift`), UNSEEN in others.
      pairs: keys and values, [C, N x width].

    Returns:
      the queries' of their dtype; the other two float32.
    """
    query, key = queries[0], pairs[0]
    block, per_step = form.block, form.per_step
    heads = per_step * form.group
    of_query = lambda s, t, code: (row_of(code[t]), s)
    of_key = lambda s, t, code: (column_of(code[t]), s)
    of_mask = lambda s, t, code: (0, column_of(code[t]))
    of_statistics = lambda s, t, code: (s, row_of(code[t]))
    of_pack = lambda s, t, code: (row_of(code[t]) // form.rows, s)
    query_spec = pl.BlockSpec((block.query, heads * form.width), of_query)
    key_spec = pl.BlockSpec((block.key, per_step * form.width), of_key)
    mask_spec = pl.BlockSpec((1, block.key), of_mask)
    statistics_spec = pl.BlockSpec((form.statistics, block.query), of_statistics)
    window = (form.columns * block.key, per_step * form.width)
    window_spec = pl.BlockSpec(window, of_pack, pipeline_mode=pl.Buffered(1))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(form.kv_heads // per_step, walk.count),
        in_specs=[
            query_spec,
            query_spec,
            query_spec,
            statistics_spec,
            statistics_spec,
            key_spec,
            key_spec,
            mask_spec,
            mask_spec,
        ],
        out_specs=[query_spec, window_spec, window_spec],
        scratch_shapes=[
            pltpu.VMEM((heads * SUBLANES, block.query), jnp.float32),
            pltpu.VMEM((heads, form.width, block.query), jnp.float32),
            pltpu.VMEM((block.key, block.query), jnp.float32),
        ],
    )
    call = pl.pallas_call(
        functools.partial(_kernel, form=form),
        grid_spec=grid,
        name="interval_backward",
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(key.shape, jnp.float32),
            jax.ShapeDtypeStruct(key.shape, jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES + 2 * 4 * window[0] * window[1],
            disable_bounds_checks=True,  # as in the forward kernel
        ),
        interpret=form.interpret,
    )
    return call(walk.code, *queries, *statistics, *pairs, walk.low, walk.length)


def _kernel(code, query, out, grad, lse, exact, key, value, low, length, *results, form: Form):
    grad_query, grad_key, grad_value, shift, turned, hidden = results
    step = code[pl.program_id(1)]
    row = row_of(step)
    start = (column_of(step) % form.columns) * form.block.key
    columns = pl.ds(pl.multiple_of(start, form.block.key), form.block.key)
    is_first = (step & FIRST) != 0

    @pl.when(is_first & (row % form.rows == 0))
    def _():
        grad_key[...] = jnp.zeros_like(grad_key)
        grad_value[...] = jnp.zeros_like(grad_value)

    @pl.when(is_first)
    def _():
        turned[...] = jnp.zeros_like(turned)
        _shifts(shift, out, grad, exact, form)

    def tile(masked: bool):
        if masked:
            hidden[...] = penalty(low[...], length[...], row * form.block.query, hidden.shape, 0)
        for pair in range(form.per_step):
            at = slice(pair * form.width, (pair + 1) * form.width)
            keys, values = key[:, at], value[:, at]
            turned_keys = keys.T
            of_keys, of_values = [], []
            for head in range(pair * form.group, (pair + 1) * form.group):
                own = slice(head * form.width, (head + 1) * form.width)
                queries, grads = query[:, own], grad[:, own]
                score_JB = dot(keys, queries, (1, 1)) * form.exponent_scale
                if masked:
                    score_JB = score_JB + hidden[...]
                weight_JB = jnp.exp2(score_JB - lse[head : head + 1])
                pull_JB = dot(values, grads, (1, 1)) - shift[pl.ds(head * SUBLANES, 1)]
                slope_JB = (weight_JB * pull_JB).astype(keys.dtype)
                of_values.append(dot(weight_JB.astype(keys.dtype), grads, (1, 0)))
                of_keys.append(dot(slope_JB, queries, (1, 0)))
                turned[head] += dot(turned_keys, slope_JB, (1, 0))
            grad_value[columns, at] += sum(of_values[1:], of_values[0])
            grad_key[columns, at] += sum(of_keys[1:], of_keys[0]) * form.scale

    kind = step & (RUN | IS_MASKED)
    pl.when(kind == RUN)(functools.partial(tile, False))
    pl.when(kind == RUN | IS_MASKED)(functools.partial(tile, True))

    @pl.when((step & LAST) != 0)
    def _():
        for head in range(turned.shape[0]):
            own = slice(head * form.width, (head + 1) * form.width)
            grad_query[:, own] = (turned[head].T * form.scale).astype(grad_query.dtype)


def _shifts(shift, out, grad, exact, form: Form):
    """What the softmax's sum of one takes back: grad . out of every row, one row of lanes a head.

    The sum over lanes is a product with ones, which also turns the result. Rows that see few keys
    bring theirs.
    """
    ones = jnp.ones((SUBLANES, form.width), jnp.float32)
    for head in range(shift.shape[0] // SUBLANES):
        own = slice(head * form.width, (head + 1) * form.width)
        product = out[:, own].astype(jnp.float32) * grad[:, own].astype(jnp.float32)
        given = jnp.broadcast_to(exact[head : head + 1], (SUBLANES, shift.shape[1]))
        shift[head * SUBLANES : (head + 1) * SUBLANES] = jnp.where(
            given < UNSEEN, given, dot(ones, product, (1, 1))
        )
