"""Statistics of rows that see few keys, exact: a kernel before the backward one (Pallas, TPU).

A slope of attention is weight x (pull - shift), the shift being the mean of the pulls. The backward
kernel takes it from the rounded result of the forward pass; the fewer keys a row sees, the more of
its slopes cancels, and the more of what is left is rounding (docs/kernels.md, "Exactness"). So for
rows that see less than FEW keys the mean is taken here, from the very weights and pulls that the
backward kernel is to use, and the log-sum-exp is made such that these weights add up to one (the
forward kernel may have summed rounded ones). Such rows begin an example: only the tiles in which
one of them sees anything are walked, some in a hundred.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from inset_jax.core import visibility as intervals
from inset_jax.core.batch import Visibility
from inset_jax.core.visibility import FIRST, LANES, LAST, RUN, UNUSED, Listed, Tiles
from inset_jax.kernels import interval_form as forms
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

FEW = 64  # keys; with as many the rounding of the result no longer shows
VMEM_BYTES = 20 << 20


def exact(
    queries: tuple[jax.Array, jax.Array],
    lse: jax.Array,
    pairs: tuple[jax.Array, jax.Array],
    visibility: Visibility,
    form: Form,
) -> tuple[jax.Array, jax.Array]:
    """Returns `lse` and shifts, float32 like it, exact in rows that see few keys.

    Other rows keep their log-sum-exp; their shift is UNSEEN.

    Args:
      queries: [R, H x width] each: queries, and the gradient of the result.
      lse: float32 [head sets x statistics, R], sets of `form.per_step`.
      pairs: keys and values, [C, N x width], all that the visibility speaks of.
      visibility: [P, K].
    """
    few = few_rows(visibility, form.rows * form.block.query)
    found, shift = _call(queries, lse, pairs, few_walk(visibility, few, form), form)
    few = few.reshape(1, -1)  # elsewhere nothing may have been written
    return jnp.where(few, found, lse), jnp.where(few, shift, UNSEEN)


def few_rows(visibility: Visibility, queries: int) -> jax.Array:
    """Says which rows see a key but less than FEW: bool [P, queries]."""
    is_open = (visibility.low < visibility.high)[:, None]

    def begun(side):
        """Histogram by two one-hot factors, exact: float32 [P, queries], without a scatter.

        Keys lie along the lanes, as they come: turned, the factors would take ten times as long.
        """
        high, low = (side // LANES)[:, None], (side % LANES)[:, None]
        of_high = (high == jnp.arange(-(-queries // LANES))[:, None]) & is_open
        of_low = low == jnp.arange(LANES)[:, None]
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        counts = product("prk,plk->prl", *(x.astype(jnp.bfloat16) for x in (of_high, of_low)))
        return counts.reshape(len(side), -1)[:, :queries]

    seen = jnp.cumsum(begun(visibility.low) - begun(visibility.high), axis=1)
    return (seen > 0) & (seen < FEW)


def few_tiles(visibility: Visibility, few: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Returns the tiles in which a row of `few` sees anything, and perhaps some more.

    For NumPy arrays and traced JAX arrays alike.

    Args:
      few: bool [P, rows x block[0]].
      block: queries and keys of a tile.

    Returns:
      bool [P, rows, columns].
    """
    numbers = few.__array_namespace__()
    padding = ((0, 0), (0, -visibility.low.shape[1] % block[1]))
    low, high = (numbers.pad(side, padding)[:, None] for side in visibility[:2])
    by_block = few.reshape(len(few), -1, block[0])
    row = numbers.arange(few.shape[1]).reshape(-1, block[0])
    # between the first and the last of them other rows only add tiles
    first = numbers.where(by_block, row, row.size).min(-1)[..., None]
    end = numbers.where(by_block, row + 1, 0).max(-1)[..., None]
    seen = (low < end) & (first < high) & (low < high)
    return seen.reshape(*by_block.shape[:2], -1, block[1]).any(-1)


def few_walk(visibility: Visibility, few: jax.Array, form: Form) -> Walk:
    """Returns the walk over `few_tiles`; a grid has a step, so one that does nothing if need be."""
    seen = few_tiles(visibility, few, form.block[:2])
    steps = intervals.steps(Tiles(seen, jnp.zeros_like(seen)), every_row=False)
    walk = forms.walk(Listed(*visibility[:2], steps), few.shape[1], form)
    code = jnp.where(walk.code == UNUSED, 0, walk.code)
    return walk._replace(code=code, count=jnp.maximum(walk.count, 1))


def _call(queries, lse, pairs, walk: Walk, form: Form) -> list[jax.Array]:
    block, heads = form.block, form.per_step * form.group
    of_query = lambda s, t, code: (row_of(code[t]), s)
    of_key = lambda s, t, code: (column_of(code[t]), s)
    of_mask = lambda s, t, code: (0, column_of(code[t]))
    of_statistics = lambda s, t, code: (s, row_of(code[t]))
    query_spec = pl.BlockSpec((block.query, heads * form.width), of_query)
    key_spec = pl.BlockSpec((block.key, form.per_step * form.width), of_key)
    mask_spec = pl.BlockSpec((1, block.key), of_mask)
    statistics_spec = pl.BlockSpec((form.statistics, block.query), of_statistics)
    sums = pltpu.VMEM((heads * SUBLANES, block.query), jnp.float32)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(form.kv_heads // form.per_step, walk.count),
        in_specs=[query_spec, query_spec, statistics_spec, *2 * [key_spec], *2 * [mask_spec]],
        out_specs=2 * [statistics_spec],
        scratch_shapes=[sums, sums, pltpu.VMEM((block.key, block.query), jnp.float32)],
    )
    call = pl.pallas_call(
        functools.partial(_kernel, form=form),
        grid_spec=grid,
        name="interval_shift",
        out_shape=2 * [jax.ShapeDtypeStruct(lse.shape, jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
            disable_bounds_checks=True,  # as in the forward kernel
        ),
        interpret=form.interpret,
    )
    return call(walk.code, *queries, lse, *pairs, walk.low, walk.length)


def _kernel(code, query, grad, lse, key, value, low, length, *results, form: Form):
    new_lse, shift, pulled, total, hidden = results
    step = code[pl.program_id(1)]

    @pl.when((step & FIRST) != 0)
    def _():
        pulled[...] = jnp.zeros_like(pulled)
        total[...] = jnp.zeros_like(total)

    @pl.when((step & RUN) != 0)
    def _():
        hidden[...] = penalty(
            low[...], length[...], row_of(step) * form.block.query, hidden.shape, 0
        )
        for head in range(form.per_step * form.group):
            at = (head // form.group) * form.width
            own = slice(head * form.width, (head + 1) * form.width)
            keys, values = key[:, at : at + form.width], value[:, at : at + form.width]
            # as in the backward kernel, to the bit
            score_JB = dot(keys, query[:, own], (1, 1)) * form.exponent_scale + hidden[...]
            weight_JB = jnp.exp2(score_JB - lse[head : head + 1])
            pull_JB = dot(values, grad[:, own], (1, 1))
            sums = slice(head * SUBLANES, (head + 1) * SUBLANES)
            total[sums] += _by_sublane(weight_JB)
            pulled[sums] += _by_sublane(weight_JB * pull_JB)

    @pl.when((step & LAST) != 0)
    def _():
        for head in range(form.per_step * form.group):
            sums = slice(head * SUBLANES, (head + 1) * SUBLANES)
            weights = jnp.sum(total[sums], axis=0, keepdims=True)
            new_lse[head : head + 1] = lse[head : head + 1] + jnp.log2(weights)
            shift[head : head + 1] = jnp.sum(pulled[sums], axis=0, keepdims=True) / weights


def _by_sublane(array_JB):
    """Adds up keys as far as whole registers do: [J, B] -> [SUBLANES, B]."""
    return jnp.sum(array_JB.reshape(-1, SUBLANES, array_JB.shape[1]), axis=0)
