import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.kernels.flow_loss import flow_loss


def test_mean_square_over_channels_in_float32():
    prediction = jnp.asarray([[[1.0, 2.0], [0.0, 0.0]]], jnp.bfloat16)
    target = jnp.asarray([[[0.0, 0.0], [3.0, 4.0]]], jnp.float32)
    loss = flow_loss(prediction, target)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, [[2.5, 12.5]])


def test_gradient_is_twice_the_error_over_the_channels():
    grad = jax.grad(lambda x: flow_loss(x, jnp.ones((1, 1, 4))).sum())(jnp.full((1, 1, 4), 3.0))
    np.testing.assert_array_equal(grad, np.full((1, 1, 4), 1.0))


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"prediction \(1, 3, 4\), target \(3, 4\)"):
        flow_loss(jnp.zeros((1, 3, 4)), jnp.zeros((3, 4)))
