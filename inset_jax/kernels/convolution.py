"""Convolutions of 3 x 3 whose training is as fast on a CPU as their use.

XLA's CPU backend runs a convolution and its gradient towards the input at the speed of a matrix
product, but the gradient towards the kernel of a large image at a tenth of it. There it is summed
over blocks of rows instead, each one product (docs/lab_log.md has the figures). Everywhere else
this is `jax.lax.conv_general_dilated` and its own gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]

SIDE = 3  # of the kernel
BLOCK = 512  # output pixels in one product
LARGE = 8192  # output pixels of a batch from which blocks are faster


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves images with a kernel of 3 x 3.

    Args:
      x: [B, H, W, in].
      kernel: [3, 3, in, out] of x's dtype.
      stride: the same down and across.
      padding: zeros (before, after) down, and across.

    Returns:
      [B, H', W', out] of x's dtype.
    """
    assert kernel.shape[:2] == (SIDE, SIDE), kernel.shape
    return _plain(x, kernel, stride, padding)


def _plain(x, kernel, stride: int, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x, kernel, stride: int, padding: Padding):
    return convolution(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Padding, saved, grad: jax.Array):
    x, kernel = saved
    (to_x,) = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)[1](grad)

    def native(x, grad):
        return jax.vjp(lambda k: _plain(x, k, stride, padding), kernel)[1](grad)[0]

    if grad.size // grad.shape[-1] < LARGE:
        return to_x, native(x, grad)
    in_blocks = functools.partial(kernel_gradient, stride=stride, padding=padding)
    return to_x, jax.lax.platform_dependent(x, grad, cpu=in_blocks, default=native)


convolution.defvjp(_forward, _backward)


def kernel_gradient(x: jax.Array, grad: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """The gradient towards the kernel, [3, 3, in, out], summed over blocks of rows in float32.

    Args:
      x: [B, H, W, in].
      grad: towards the output, [B, H', W', out].
    """
    batch, height, width, channels_out = grad.shape
    channels = x.shape[-1]
    rows = max(
        n for n in range(1, height + 1) if height % n == 0 and n * width <= max(BLOCK, width)
    )
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    spans = [(rows - 1) * stride + SIDE, padded.shape[2]]  # of the input under a block, and one tap
    tap = [(rows - 1) * stride + 1, (width - 1) * stride + 1]

    def add(total: jax.Array, number: jax.Array):
        image, row = number // (height // rows), number % (height // rows) * rows
        under = jax.lax.dynamic_slice(padded, (image, row * stride, 0, 0), (1, *spans, channels))[0]
        taps = [
            under[i : i + tap[0] : stride, j : j + tap[1] : stride]
            for i in range(SIDE)
            for j in range(SIDE)
        ]
        patches = jnp.concatenate(taps, -1).reshape(rows * width, -1)
        own = jax.lax.dynamic_slice(grad, (image, row, 0, 0), (1, rows, width, channels_out))
        product = jnp.matmul(
            own.reshape(rows * width, -1).T, patches, preferred_element_type=jnp.float32
        )
        return total + product, None

    zero = jnp.zeros((channels_out, SIDE * SIDE * channels), jnp.float32)
    total, _ = jax.lax.scan(add, zero, jnp.arange(batch * (height // rows)))
    return total.T.reshape(SIDE, SIDE, channels, channels_out).astype(x.dtype)
