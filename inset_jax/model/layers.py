"""The small parts every network here is made of, and how a parameter is declared.

A parameter is one row: shape, logical names of its dimensions (`core.mesh.RULES`), initialiser.
Parameters are float32; matrix work happens in the dtype of the activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core import mesh

PRODUCT = "product"  # what `affine` returns, as remat policies know it

# Variance 1 / (numbers that are summed): 0.017 at the width of the 7B, where Qwen2 starts from
# 0.02. At a demo's width 0.02 would make what a picture shows a hundredth of where it stands.
normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
normal_rows = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")  # of tables
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def parameter(
    rngs: nnx.Rngs, shape: Sequence[int], logical: Sequence[str | None], init: Callable
) -> nnx.Param:
    """Declares one float32 parameter; `logical` names each dimension of `shape`."""
    assert len(shape) == len(logical), (shape, logical)
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), logical=tuple(logical))


def by_rows(call: Callable) -> Callable:
    """Lets a method written for [rows, in] -> [rows, out] take any dimensions in front of `in`.

    Gradients of parameters then are sums over one dimension, which XLA does in place. Over several,
    it first writes a transposed copy of x: on CPU that takes as long as the product itself. Where
    tokens or heads are split over the mesh beside packs, one dimension cannot hold both splits
    (devices would gather and repeat each other's work), and nothing is flattened.
    """

    @functools.wraps(call)
    def flat(self, x: jax.Array) -> jax.Array:
        if mesh.ways("token") > 1 or mesh.ways("heads") > 1:
            return call(self, x)
        y = call(self, x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    return flat


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x @ kernel (+ bias) in the dtype of x; gradients of the two leave in their own, float32.

    Automatic ones are in the dtype of x, and so are their sums over devices.
    """
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)


def _affine_forward(x, kernel, bias):
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept, grad):
    x, kernel, bias = kept
    rows = tuple(range(x.ndim - 1))
    of_kernel = jnp.tensordot(x, grad, (rows, rows), preferred_element_type=kernel.dtype)
    of_bias = None if bias is None else jnp.sum(grad, rows, dtype=bias.dtype)
    return grad @ kernel.astype(grad.dtype).T, of_kernel, of_bias


affine.defvjp(_affine_forward, _affine_backward)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), kernel [in, out]; if that is int8, times its scales [out]."""

    def __init__(self, shape, logical, rngs: nnx.Rngs, *, bias: bool = True, init=normal):
        self.kernel = parameter(rngs, shape, logical, init)
        self.kernel_scale = None  # see `model.int8`
        self.bias = parameter(rngs, shape[-1:], logical[-1:], zeros) if bias else None
        self.sums_in_float32 = False  # see `sum_in_float32`

    @by_rows
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.sums_in_float32:
            bias = None if self.bias is None else self.bias[...]
            # policies that keep products do not see into `affine`
            return checkpoint_name(affine(x, self.kernel[...], bias), PRODUCT)
        y = x @ self.kernel[...].astype(x.dtype)
        if self.kernel_scale is not None:
            y = (y * self.kernel_scale[...]).astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def sum_in_float32(module: nnx.Module) -> None:
    """Has the gradients of all linear layers in a module summed in float32, over devices as well.

    Those of norms and tables always are.
    """
    for _, node in nnx.iter_graph(module):
        if isinstance(node, Linear):
            node.sums_in_float32 = True


class RmsNorm(nnx.Module):
    """Root-mean-square norm over the last dimension, in float32."""

    def __init__(self, dim: int, logical: str, eps: float, rngs: nnx.Rngs):
        self.scale = parameter(rngs, (dim,), (logical,), ones)
        self.eps = eps

    @by_rows
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean-and-variance norm over the last dimension, in float32."""

    def __init__(self, dim: int, logical: str, eps: float, rngs: nnx.Rngs):
        self.scale = parameter(rngs, (dim,), (logical,), ones)
        self.bias = parameter(rngs, (dim,), (logical,), zeros)
        self.eps = eps

    @by_rows
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Table(nnx.Module):
    """Rows looked up by an integer: token embeddings and position tables."""

    def __init__(self, shape, logical, rngs: nnx.Rngs, *, init=normal_rows):
        self.table = parameter(rngs, shape, logical, init)

    def __call__(self, index: jax.Array, dtype) -> jax.Array:
        return jnp.take(self.table[...], index, axis=0).astype(dtype)


class Embedding(Table):
    """Token embeddings [vocab, M], looked up by packs of tokens.

    On a mesh that splits the width of the table, each device looks up its columns for the packs of
    all that share them, and they exchange the results: activations are sent, never the table nor
    its gradient. (Left to the partitioner, two slices summed the whole gradient in float32.)

    An id that is no row of the table gives NaN on any mesh, so that no loss stays finite; the host
    refuses such ids by name before (`data.layout`).
    """

    def __call__(self, index: jax.Array, dtype) -> jax.Array:
        """index int32 [P, T] -> [P, T, M]."""
        table = self.table[...]
        index = jnp.where(index < 0, len(table), index)  # else counted from the end
        sizes = zip(("vocab", "embed", "pack", "token"), table.shape + index.shape, strict=True)
        if mesh.ways("embed") == 1 or any(size % mesh.ways(name) for name, size in sizes):
            return super().__call__(index, dtype)
        rows = functools.partial(_rows, dtype=dtype)
        inputs = (("vocab", "embed"), ("pack", "token"))
        return mesh.per_device(rows, inputs, ("pack", "token", "feature"))(table, index)


def _rows(table: jax.Array, index: jax.Array, dtype) -> jax.Array:
    """One device's share: some rows and columns of the table, some packs [p, t] -> [p, t, M]."""
    wanted = mesh.gathered(index, "embed", 0)
    row = wanted - mesh.index("vocab") * len(table)
    here = (row >= 0) & (row < len(table))
    elsewhere = jnp.where(wanted < len(table) * mesh.ways("vocab"), 0, jnp.nan)
    found = jnp.take(table, jnp.where(here, row, 0), axis=0).astype(dtype)
    found = jnp.where(here[..., None], found, elsewhere[..., None].astype(dtype))
    found = mesh.total(found, "vocab")
    return mesh.exchanged(found, "embed", 0, 2)


def stack(build: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `layers` modules of one kind with their parameters stacked in front, for `scan`."""
    stacked = nnx.vmap(build, in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=layers)(stacked)(rngs)


def rotary(position: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotation, float32 [P, T, 1, D/2].

    Args:
      position: int32 [P, A, T]; with more than one axis, each turns an equal share of the pairs.
    """
    half = head_dim // 2
    # the reference's rounding, step by step: at position 30,000 its last bit is worth 2e-3
    exponent = (np.arange(half, dtype=np.float32) / np.float32(half)).astype(np.float64)
    frequency = np.float32(1) / (theta**exponent).astype(np.float32)
    axis_of_pair = np.arange(half) * position.shape[1] // half
    angle = jnp.moveaxis(position.astype(jnp.float32)[:, axis_of_pair], 1, -1) * frequency
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns pairs (i, i + D/2) of each head: x [P, T, heads, D], in float32, back in x's dtype."""
    cos, sin = cos_sin
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
