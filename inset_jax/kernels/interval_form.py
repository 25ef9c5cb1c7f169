"""How attention over visibility intervals is cut up for a TPU: blocks by chip, packs, heads.

The packs of a batch are laid end to end: what a query of one pack sees never lies in another, so to
the kernels a batch is one long mask. A tile is a block of queries x a block of keys. A kernel walks
over the visible ones (`core.visibility.Steps`) once for each set of heads.

Letters beside those of `core.batch`: R rows, the queries of all packs, padded to whole blocks; C
columns, the keys of all packs, likewise; S query heads of one step, with their key-value heads; B
queries of a block; J keys of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from inset_jax.core import mesh
from inset_jax.core import visibility as intervals
from inset_jax.core.batch import Visibility
from inset_jax.core.visibility import (
    COLUMN_SHIFT,
    LANES,
    MOST_COLUMNS,
    MOST_ROWS,
    ROW_SHIFT,
    UNUSED,
    Listed,
)

SUBLANES = 8
LOG2E = 1.4426950408889634
MASKED = -2.4e38  # added to a hidden score: far below LOWEST, so that its exponent is 0 ...
LOWEST = -1e30  # ... even against the running maximum of a row that has seen nothing yet
UNSEEN = 1e30  # the log-sum-exp of a row that sees nothing: 2^(score - UNSEEN) is 0
# Scores within +-90 (in powers of two) need no maximum: 2^90 x 2^20 keys x values of 2^16 are
# finite in float32, and the smallest weight, 2^-90, is a normal number.
BOUND = 90.0
WINDOW_BYTES = 40 << 20  # of fast memory for the gradients of the keys that a backward pass sums


class Block(NamedTuple):
    """The size of a tile, and how its weights are summed."""

    query: int
    key: int
    sum_by_product: bool = False  # as a column of the values: free where units are 256 wide


# By device kind; the figures that chose them are in docs/kernels.md, "Blocks".
BLOCKS = {
    "TPU v5": Block(256, 512),  # v5p
    "TPU v6 lite": Block(512, 256, sum_by_product=True),
    "TPU7x": Block(512, 256, sum_by_product=True),
}
DEFAULT = Block(256, 256)


class Form(NamedTuple):
    """Everything static about one call."""

    block: Block
    packs: int
    rows: int  # blocks of queries of one pack
    columns: int  # blocks of keys of one pack
    kv_heads: int
    per_step: int  # key-value heads of one step
    group: int  # query heads of a key-value head
    width: int  # of a head, padded to whole lanes
    scale: float
    interpret: bool

    @property
    def exponent_scale(self) -> float:
        """Factor on the scores, after which 2^score is the weight."""
        return self.scale * LOG2E

    @property
    def statistics(self) -> int:
        """Rows of the statistics of a step's heads, one a head, padded to whole registers."""
        return -(-self.per_step * self.group // SUBLANES) * SUBLANES


def penalty(low: jax.Array, length: jax.Array, first_row, shape, keys_dim: int) -> jax.Array:
    """Returns 0 where a row sees a key, else MASKED: float32 of `shape`, keys along `keys_dim`.

    Args:
      low, length: int32 [1, J].
      first_row: number of the first row of the tile.
    """
    if keys_dim == 0:
        turn = lambda side: jnp.broadcast_to(side, (SUBLANES, shape[0])).T[:, :1]
        low, length = turn(low), turn(length)
    row = lax.broadcasted_iota(jnp.int32, shape, 1 - keys_dim) + first_row
    # row - low is a huge unsigned number for the rows before `low`
    since = lax.bitcast_convert_type(row - low, jnp.uint32)
    seen = since < lax.bitcast_convert_type(jnp.broadcast_to(length, shape), jnp.uint32)
    return jnp.where(seen, 0.0, MASKED)


def block_for(size: tuple[int, int] | None = None) -> Block:
    """Returns the block of the device at hand, or one of the given size (queries, keys)."""
    block = BLOCKS.get(mesh.device_kind(), DEFAULT)
    return block._replace(query=size[0], key=size[1]) if size else block


def make(query, key, block: Block, scale: float, interpret: bool) -> Form:
    """Returns the form of attention of query [P, Q, H, D] to key [P, K, N, D].

    Short sequences take smaller blocks, equal ones that waste little padding. A step of the kernel
    takes as many heads as fit into one register of statistics.

    Raises:
      NotImplementedError: more blocks than a step's code can tell apart.
    """
    packs, queries, heads, width = query.shape
    query_block, key_block = intervals.fitting(queries, key.shape[1], block[:2])
    block = block._replace(query=query_block, key=key_block)
    rows, columns = -(-queries // query_block), -(-key.shape[1] // key_block)
    if packs * rows > MOST_ROWS or packs * columns > MOST_COLUMNS:
        raise NotImplementedError(
            f"{packs} packs of {rows} x {columns} tiles: at most {MOST_ROWS} x {MOST_COLUMNS}"
        )
    kv_heads = key.shape[2]
    width = -(-width // LANES) * LANES
    group = heads // kv_heads
    per_step = largest_divisor(kv_heads, SUBLANES // group)
    return Form(block, packs, rows, columns, kv_heads, per_step, group, width, scale, interpret)


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of `number` up to `most`, at least 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(most, 1))


def for_backward(form: Form) -> Form:
    """Returns the form of the backward pass: fewer heads a step or fewer keys at a time.

    The float32 gradients of the keys and values of a pack and step are to fit into WINDOW_BYTES.
    """
    of_column = 2 * 4 * form.block.key * form.width
    heads = largest_divisor(form.per_step, WINDOW_BYTES // (of_column * form.columns))
    columns = min(form.columns, max(WINDOW_BYTES // of_column, 1))
    return form._replace(per_step=heads, columns=columns)


class Walk(NamedTuple):
    """The mask as the kernels read it: all packs in one."""

    low: jax.Array  # int32 [1, C], the first row that sees the key
    length: jax.Array  # int32 [1, C], how many rows see it
    code: jax.Array  # int32 [steps], see core.visibility.Steps
    count: jax.Array  # int32, how many of them to walk
    complete: jax.Array | None  # bool, False if a pack's list is too short; None: made in walk()


def walk(visibility: Visibility | Listed, queries: int, form: Form) -> Walk:
    """Returns the walk over the visible tiles of [P, K] intervals, listed here if not already."""
    given = isinstance(visibility, Listed)
    low, high = (_pad(side, form.columns * form.block.key) for side in visibility[:2])
    if not given:  # in whole tiles: for fewer keys `listed` would take smaller ones
        visibility = intervals.listed(Visibility(low, high), queries, form.block[:2])
    steps = visibility.steps
    pack = jnp.arange(form.packs, dtype=jnp.int32)[:, None]
    offset = (pack * form.rows << ROW_SHIFT) | (pack * form.columns << COLUMN_SHIFT)
    code = jnp.where(steps.code == UNUSED, UNUSED, steps.code + offset).reshape(-1)
    code = jnp.sort(code) if form.packs > 1 else code  # the unused ones to the end
    low = low + pack * form.rows * form.block.query
    length = jnp.maximum(high + pack * form.rows * form.block.query - low, 0)
    listed = jnp.minimum(steps.count, steps.code.shape[1])
    complete = jnp.all(listed == steps.count) if given else None
    return Walk(low.reshape(1, -1), length.reshape(1, -1), code, jnp.sum(listed), complete)


def bounded(query: jax.Array, key: jax.Array, form: Form) -> jax.Array:
    """Returns int32 [head sets x P], 1 where no score of a set in a pack exceeds BOUND.

    By Cauchy and Schwarz: a score is at most the length of the query times that of the key.
    """
    sets = form.kv_heads // form.per_step

    def longest(array):
        square = jnp.sum(jnp.square(array.astype(jnp.float32)), -1)
        by_set = square.reshape(form.packs, -1, sets, array.shape[2] // sets)
        return jnp.max(by_set, axis=(1, 3))

    bound = form.exponent_scale * jnp.sqrt(longest(query) * longest(key))
    return (bound <= BOUND).T.reshape(-1).astype(jnp.int32)


def lay(array: jax.Array, length: int, width: int) -> jax.Array:
    """Pads and lays packs end to end: [P, T, heads, D] -> [P x length, heads x width]."""
    padded = jnp.pad(
        array,
        ((0, 0), (0, length - array.shape[1]), (0, 0), (0, width - array.shape[3])),
    )
    return padded.reshape(-1, array.shape[2] * width)


def unlay(array: jax.Array, like: jax.Array, width: int) -> jax.Array:
    """Undoes `lay`: [P x length, heads x width] -> the shape of `like`."""
    packs, length, heads, own = like.shape
    return array.reshape(packs, -1, heads, width)[:, :length, :, :own]


def dot(left: jax.Array, right: jax.Array, dims: tuple[int, int]) -> jax.Array:
    """A product with float32 sums over dimension dims[0] of `left` and dims[1] of `right`.

    float32 inputs are not rounded on the way.
    """
    exact = left.dtype == jnp.float32
    return lax.dot_general(
        left,
        right,
        (((dims[0],), (dims[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def row_of(code):
    """The row of a step's tile, counted over all packs."""
    return code >> ROW_SHIFT


def column_of(code):
    """The column of a step's tile, counted over all packs."""
    return (code >> COLUMN_SHIFT) & (MOST_COLUMNS - 1)


def _pad(array: jax.Array, length: int) -> jax.Array:
    """Pads the last dimension with zeros: empty intervals."""
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])])
