"""The rectified-flow loss: of each token, and of a batch from the last hidden states on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class FlowHead(NamedTuple):
    """The final norm of the gen stream and the latent head."""

    scale: jax.Array  # [M]
    kernel: jax.Array  # [M, L]
    bias: jax.Array  # [L]


class FlowTarget(NamedTuple):
    """What the head should say, and how much each token counts."""

    latent: jax.Array  # float32 [P, G, L], clean
    noise: jax.Array  # float32 [P, G, L]
    weight: jax.Array  # float32 [P, G]


class FlowForm(NamedTuple):
    """Everything static about the loss."""

    eps: float  # of the norm
    kind: str  # what the head predicts: "velocity" (noise - latent) or "clean" (latent)
    interpret: bool = False


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


def weighted(values: jax.Array, weight: jax.Array) -> jax.Array:
    """values * weight, and exactly 0 where the weight is 0, whatever the padding computes."""
    return jnp.where(weight > 0, values, 0.0) * weight


def plain(
    hidden: jax.Array, head: FlowHead, target: FlowTarget, coefficient: jax.Array, form: FlowForm
) -> tuple[jax.Array, jax.Array]:
    """Returns coefficient x sum of weight x error, and the error of each token [P, G], float32.

    The reference of `flow_kernel.fused`, in plain XLA.

    Args:
      hidden: [P, G, M], before the final norm.
      coefficient: float32 scalar: the loss's weight over the global sum of token weights.
    """
    x = hidden.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + form.eps)
    normed = (x * head.scale).astype(hidden.dtype)
    prediction = jnp.einsum(
        "...m,ml->...l",
        normed,
        head.kernel.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    wanted = target.noise - target.latent if form.kind == "velocity" else target.latent
    error = flow_loss(prediction + head.bias, wanted)
    loss = coefficient * jnp.sum(weighted(error, target.weight))
    return loss, jax.lax.stop_gradient(error)
