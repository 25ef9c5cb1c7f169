"""The forward kernel of attention over visibility intervals (Pallas, TPU).

One step of the grid is one visible tile for some heads. Their bodies are unrolled, so that the
matrix products of one head run beside the exponents of another. There are four bodies: with or
without mask, and with a running maximum or, where no score can be large, without any.

Source: online softmax of Milakov and Gimelshein (2018), tiles of FlashAttention (2022); the walk
over tiles, the mask and the bounded body are this project's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from inset_jax.core.visibility import FIRST, LAST, RUN
from inset_jax.core.visibility import MASKED as IS_MASKED
from inset_jax.kernels.interval_form import (
    LANES,
    LOWEST,
    UNSEEN,
    Form,
    Walk,
    column_of,
    dot,
    penalty,
    row_of,
)

VMEM_BYTES = 48 << 20


def forward(
    query: jax.Array,
    pairs: tuple[jax.Array, jax.Array],
    walk: Walk,
    bounded: jax.Array,
    form: Form,
) -> tuple[jax.Array, jax.Array]:
    """Returns the mixed values, laid like the queries, and the log-sum-exp of each row.

    Args:
      query: [R, H x width].
      pairs: keys and values, [C, N x width].
      bounded: int32 [head sets x P], 1 where no score of a set's pack exceeds BOUND.

    Returns:
      [R, H x width] of the query's dtype, and float32 [head sets x statistics, R] in powers of two,
      UNSEEN in rows that see nothing.
    """
    block, per_step = form.block, form.per_step
    sets = form.kv_heads // per_step
    heads, statistics = per_step * form.group, form.statistics
    of_query = lambda s, t, code, bounded: (row_of(code[t]), s)
    of_key = lambda s, t, code, bounded: (column_of(code[t]), s)
    of_mask = lambda s, t, code, bounded: (0, column_of(code[t]))
    of_statistics = lambda s, t, code, bounded: (s, row_of(code[t]))
    query_spec = pl.BlockSpec((block.query, heads * form.width), of_query)
    key_spec = pl.BlockSpec((block.key, per_step * form.width), of_key)
    mask_spec = pl.BlockSpec((1, block.key), of_mask)
    row_sums = pltpu.VMEM((heads, block.query, LANES), jnp.float32)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(sets, walk.count),
        in_specs=[query_spec, key_spec, key_spec, mask_spec, mask_spec],
        out_specs=[query_spec, pl.BlockSpec((statistics, block.query), of_statistics)],
        scratch_shapes=[
            row_sums,
            row_sums,
            pltpu.VMEM((heads, block.query, form.width), jnp.float32),
            pltpu.VMEM((block.query, block.key), jnp.float32),
        ],
    )
    call = pl.pallas_call(
        functools.partial(_kernel, form=form),
        grid_spec=grid,
        name="interval_forward",
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((sets * statistics, query.shape[0]), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
            # a hundred bundles a step; the walk stays inside by construction
            disable_bounds_checks=True,
        ),
        interpret=form.interpret,
    )
    return call(walk.code, bounded, query, *pairs, walk.low, walk.length)


def _kernel(code, bounded, query, key, value, low, length, out, lse, *scratch, form: Form):
    peak, total, mixed, hidden = scratch
    step = code[pl.program_id(1)]
    row = row_of(step)

    @pl.when((step & FIRST) != 0)
    def _():
        peak[...] = jnp.full_like(peak, LOWEST)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def tile(masked: bool, limited: bool):
        if masked:
            hidden[...] = penalty(low[...], length[...], row * form.block.query, hidden.shape, 1)
        for head in range(mixed.shape[0]):
            at = (head // form.group) * form.width
            keys, values = key[:, at : at + form.width], value[:, at : at + form.width]
            own = slice(head * form.width, (head + 1) * form.width)
            # the scale waits for the exponent: in the queries it would round them once more
            score = dot(query[:, own], keys, (1, 1))
            if masked:
                score = score + hidden[...]
            if limited:
                added, sums = _mix(jnp.exp2(score * form.exponent_scale), values, form)
                total[head] += sums
                mixed[head] += added
                continue
            new_peak = jnp.maximum(peak[head], jnp.max(score, axis=1, keepdims=True))
            fade = jnp.exp2((peak[head] - new_peak) * form.exponent_scale)
            peak[head] = new_peak
            weight = jnp.exp2((score - _across(new_peak, score)) * form.exponent_scale)
            added, sums = _mix(weight, values, form)
            total[head] = fade * total[head] + sums
            mixed[head] = _across(fade, added) * mixed[head] + added

    is_limited = bounded[pl.program_id(0) * form.packs + row // form.rows] != 0
    for masked in (False, True):
        kind = RUN | IS_MASKED if masked else RUN
        for limited in (False, True):
            chosen = ((step & (RUN | IS_MASKED)) == kind) & (is_limited == limited)
            pl.when(chosen)(functools.partial(tile, masked, limited))

    @pl.when((step & LAST) != 0)
    def _():
        _finish(out, lse, (peak, total, mixed), is_limited, form)


def _mix(weight, values, form: Form):
    """Returns weight @ values [B, width], and sums of each row over lanes' shares [B, LANES]."""
    rounded = weight.astype(values.dtype)
    if form.block.sum_by_product:
        # each of the columns added holds the whole sum; `_finish` wants lanes that add up to it
        ones = jnp.full((values.shape[0], LANES), 1 / LANES, values.dtype)
        both = dot(rounded, jnp.concatenate([values, ones], axis=1), (1, 0))
        return both[:, : form.width], both[:, form.width :]
    sums = weight[:, :LANES]
    for start in range(LANES, weight.shape[1], LANES):
        sums = sums + weight[:, start : start + LANES]
    return dot(rounded, values, (1, 0)), sums


def _finish(out, lse, sums, is_limited, form: Form):
    """Divides by the sums, and writes one log-sum-exp a row and head."""
    peak, total, mixed = sums
    heads, rows, width = mixed.shape
    lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    statistics = jnp.full((rows, LANES), UNSEEN, jnp.float32)
    for head in range(heads):
        whole = jnp.broadcast_to(jnp.sum(total[head], axis=1, keepdims=True), (rows, LANES))
        lonely = whole == 0
        inverse = jnp.where(lonely, 0.0, 1 / whole)
        own = slice(head * width, (head + 1) * width)
        out[:, own] = (mixed[head] * _across(inverse, mixed[head])).astype(out.dtype)
        highest = jnp.where(is_limited, 0.0, peak[head] * form.exponent_scale)
        own_lse = jnp.where(lonely, UNSEEN, highest + jnp.log2(whole))
        statistics = jnp.where(lane == head, own_lse, statistics)
    lse[...] = statistics.T[: lse.shape[0]]


def _across(lanes: jax.Array, like: jax.Array) -> jax.Array:
    """Repeats [B, LANES] to the width of `like`."""
    return jnp.tile(lanes, (1, like.shape[1] // LANES))
