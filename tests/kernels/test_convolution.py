"""Convolutions against XLA's own, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.kernels import convolution as module
from inset_jax.kernels.convolution import convolution, kernel_gradient

SAME, AFTER = ((1, 1), (1, 1)), ((0, 1), (0, 1))
# batch, height, width, channels in and out, stride, padding
SHAPES = [
    (2, 6, 5, 3, 4, 1, SAME),
    (1, 64, 48, 8, 3, 1, SAME),
    (2, 9, 700, 2, 3, 1, SAME),  # a row wider than a block
    (3, 8, 12, 4, 5, 2, AFTER),
    (1, 34, 66, 4, 4, 2, AFTER),
]


def arrays(batch, height, width, inside, outside, *_):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, height, width, inside))
    return x, jax.random.normal(keys[1], (3, 3, inside, outside))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_in_blocks_of_rows_is_the_gradient(shape):
    (x, kernel), (stride, padding) = arrays(*shape), shape[-2:]
    plain = lambda kernel: module._plain(x, kernel, stride, padding)
    out, back = jax.vjp(plain, kernel)
    grad = jax.random.normal(jax.random.key(1), out.shape)
    ours = jax.jit(kernel_gradient, static_argnums=(2, 3))(x, grad, stride, padding)
    expected = back(grad)[0]
    error = jnp.linalg.norm(ours - expected) / jnp.linalg.norm(expected)
    assert ours.shape == kernel.shape
    assert error < 1e-5


@pytest.mark.parametrize("large", [0, 1 << 60])
def test_both_gradients_are_xlas_whichever_way_is_taken(monkeypatch, large):
    monkeypatch.setattr(module, "LARGE", large)
    (x, kernel), (stride, padding) = arrays(*SHAPES[3]), SHAPES[3][-2:]
    loss = lambda f: lambda *args: jnp.sum(jnp.sin(f(*args, stride, padding)))
    ours = jax.jit(jax.grad(loss(convolution), (0, 1)))(x, kernel)
    expected = jax.jit(jax.grad(loss(module._plain), (0, 1)))(x, kernel)
    np.testing.assert_array_equal(
        convolution(x, kernel, stride, padding), module._plain(x, kernel, stride, padding)
    )
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_gradient_of_bfloat16_is_bfloat16_summed_in_float32():
    (x, kernel), (stride, padding) = arrays(*SHAPES[1]), SHAPES[1][-2:]
    out = module._plain(x, kernel, stride, padding)
    exact = kernel_gradient(x, out, stride, padding)
    ours = kernel_gradient(x.astype(jnp.bfloat16), out.astype(jnp.bfloat16), stride, padding)
    assert ours.dtype == jnp.bfloat16
    error = jnp.linalg.norm(ours.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert error < 1e-2
