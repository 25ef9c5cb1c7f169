"""Rectified flow: what the trainer and the sampler share.

x_t = (1 - t) x0 + t eps, velocity v = eps - x0, t = 1 is noise. Source: BAGEL, section 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST_TIMESTEP = 1e-3  # a clean prediction is divided by t no smaller than this


def shifted(t, shift: float):
    """Moves t in [0, 1] towards noise: s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def timestep(raw: jax.Array, shift: float) -> jax.Array:
    """Normal draws to timesteps: sigmoid, then shift; -inf (a clean latent) gives exactly 0."""
    return shifted(jax.nn.sigmoid(raw), shift)


def schedule(num_timesteps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns t and the step to the next t, float32 [num_timesteps - 1] each.

    Counted as BAGEL counts: N points from 1 to 0 are N - 1 evaluations.

    Raises:
      ValueError: fewer than two points.
    """
    if num_timesteps < 2:
        raise ValueError(f"num_timesteps={num_timesteps}: at least 2 points make one evaluation")
    # rounded as torch.linspace rounds: a guidance interval may end exactly on a point
    steps = num_timesteps - 1
    count, step = np.arange(num_timesteps), float(np.float32(1) / np.float32(steps))
    points = np.where(count < num_timesteps // 2, 1 - count * step, (steps - count) * step)
    points = shifted(points.astype(np.float32), np.float32(shift))
    return points[:-1], points[:-1] - points[1:]


def interpolate(x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """x_t of latents [..., L] at times [...]."""
    return (1 - t[..., None]) * x0 + t[..., None] * eps


def to_velocity(prediction: jax.Array, x_t: jax.Array, t: jax.Array, kind: str) -> jax.Array:
    """Turns what the latent head predicts into a velocity.

    Args:
      prediction, x_t: float32 [..., L].
      t: float32 [...].
      kind: "velocity", or "clean": v = (x_t - x0) / t.
    """
    if kind == "velocity":
        return prediction
    if kind == "clean":
        return (x_t - prediction) / jnp.maximum(t, SMALLEST_TIMESTEP)[..., None]
    raise ValueError(f"model.prediction={kind!r}: it is 'velocity' or 'clean'")


def target(x0: jax.Array, eps: jax.Array, kind: str) -> jax.Array:
    """What the latent head learns: eps - x0 for "velocity", x0 for "clean"."""
    return eps - x0 if kind == "velocity" else x0
