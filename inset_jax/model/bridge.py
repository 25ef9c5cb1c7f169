"""Between the modalities: connector, frozen position tables, time embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from inset_jax.core.mesh import constrain
from inset_jax.model.decoder import ACTIVATION
from inset_jax.model.layers import Linear

TIME_FREQUENCIES = 256  # width of the sinusoidal part of the time embedding


class Connector(nnx.Module):
    """ViT features to the width of the language model: Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, model_dim: int, rngs: nnx.Rngs):
        self.fc1 = Linear((width, model_dim), ("small", "embed"), rngs)
        self.fc2 = Linear((model_dim, model_dim), ("embed", "mlp"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [P, V, width] -> [P, V, M]."""
        hidden = constrain(self.fc1(x), ACTIVATION)
        return constrain(self.fc2(jax.nn.gelu(hidden, approximate=True)), ACTIVATION)


class TimeEmbedding(nnx.Module):
    """Diffusion time in [0, 1] to the model's width: 256 waves, Linear, SiLU, Linear."""

    def __init__(self, model_dim: int, scale: float, rngs: nnx.Rngs):
        self.fc1 = Linear((TIME_FREQUENCIES, model_dim), ("small", "embed"), rngs)
        self.fc2 = Linear((model_dim, model_dim), ("embed", "mlp"), rngs)
        self.scale = scale  # BAGEL: 1, where all waves are within one radian

    def __call__(self, timestep: jax.Array, dtype) -> jax.Array:
        """timestep float32 [P, G] -> [P, G, M]."""
        # where tokens are many and weights small, a partitioner would rather gather the tokens
        waves = constrain(time_waves(timestep * self.scale).astype(dtype), ACTIVATION)
        hidden = constrain(self.fc1(waves), ACTIVATION)
        return constrain(self.fc2(jax.nn.silu(hidden)), ACTIVATION)


def time_waves(timestep: jax.Array) -> jax.Array:
    """Sinusoids of t (not scaled by 1000, as in BAGEL): cosines, then sines; float32 [..., 256]."""
    half = TIME_FREQUENCIES // 2
    frequency = jnp.exp(-np.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = timestep[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def sincos_table(
    model_dim: int, side: int, ratio: float = 10000.0, step: float = 1.0
) -> np.ndarray:
    """The frozen 2-D table, float32 [side * side, M], row = row * side + column.

    The column fills the first half of the channels and the row the second, each as sines, then
    cosines (MAE's table, as BAGEL uses it).

    Args:
      ratio: of the longest wave to the shortest.
      step: radians of the shortest wave between two places. With 1, as BAGEL has it for 64 places a
        side, the vectors of the 8 places of a small picture differ along 3 directions a side, and
        of 4 places along 2 (smaller singular values are below a fifth of the largest).
    """
    quarter = model_dim // 4
    frequency = 1.0 / ratio ** (np.arange(quarter, dtype=np.float64) / quarter)
    angle = np.arange(side, dtype=np.float64)[:, None] * step * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.concatenate([line[columns], line[rows]], axis=1).astype(np.float32)
