"""The rectified-flow loss of each token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def flow_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean square error over the channels of each token, float32 [P, G].

    Args:
      prediction, target: [P, G, L], what the model says and what it should have said: velocities,
        or clean latents (`model.flow.target`).

    Raises:
      ValueError: the shapes differ (broadcasting would hide a wrong target).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"flow_loss: prediction {prediction.shape}, target {target.shape}")
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(error * error, axis=-1)
