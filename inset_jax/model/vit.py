"""The SigLIP encoder over packed patches of any sizes: every image attends to itself alone.

Source: SigLIP so400m/14 as BAGEL runs it: a linear patch embedding, a learned table of positions
indexed by row * side + column, pre-norm layers, a norm on top, no pooling head.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from inset_jax.core.batch import Visibility
from inset_jax.core.config import ComputeConfig, VitConfig
from inset_jax.core.mesh import constrain
from inset_jax.kernels.attend import attend, chosen
from inset_jax.model import layers
from inset_jax.model.decoder import ACTIVATION, remat
from inset_jax.model.layers import LayerNorm, Linear, Table


class VitAttention(nnx.Module):
    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        square = (config.width, config.width)
        self.query = Linear(square, ("embed", "heads"), rngs)
        self.key = Linear(square, ("embed", "heads"), rngs)
        self.value = Linear(square, ("embed", "heads"), rngs)
        self.out = Linear(square, ("heads", "embed"), rngs)
        self.heads = config.heads

    def __call__(
        self, x: jax.Array, visibility: Visibility, implementation: str | Callable
    ) -> jax.Array:
        split = lambda y: rearrange(y, "p v (h d) -> p v h d", h=self.heads)
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        seen = attend(query, key, value, visibility, implementation)
        return self.out(rearrange(seen, "p v h d -> p v (h d)"))


class VitMlp(nnx.Module):
    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        wide = (config.width, config.mlp_dim)
        self.fc1 = Linear(wide, ("embed", "mlp"), rngs)
        self.fc2 = Linear(wide[::-1], ("mlp", "embed"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class VitLayer(nnx.Module):
    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, "embed", config.norm_eps, rngs)
        self.attention = VitAttention(config, rngs)
        self.norm2 = LayerNorm(config.width, "embed", config.norm_eps, rngs)
        self.mlp = VitMlp(config, rngs)

    def __call__(
        self, x: jax.Array, visibility: Visibility, implementation: str | Callable
    ) -> jax.Array:
        x = x + self.attention(self.norm1(x), visibility, implementation)
        x = x + self.mlp(self.norm2(x))
        return constrain(x, ACTIVATION)


class Vit(nnx.Module):
    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.patch = Linear((config.patch_dim, config.width), ("small", "embed"), rngs)
        self.position = Table((config.side**2, config.width), ("small", "embed"), rngs)
        self.layers = layers.stack(lambda r: VitLayer(config, r), config.layers, rngs)
        self.norm = LayerNorm(config.width, "embed", config.norm_eps, rngs)

    def __call__(
        self,
        patch: jax.Array,
        place: jax.Array,
        visibility: Visibility,
        compute: ComputeConfig,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the features [P, V, width] and the residual stream after each layer.

        The second is [layer, P, V, width]; the compiler drops it where nobody uses it.

        Args:
          patch: float32 [P, V, X] in [-1, 1], or uint8 grey levels.
          place: int32 [P, V], row of the position table.
          visibility: [P, V], each patch is seen by its own image.
        """
        dtype = jnp.dtype(compute.dtype)
        x = constrain(self.patch(unit_range(patch).astype(dtype)), ACTIVATION)
        x = x + constrain(self.position(place, dtype), ACTIVATION)
        definition, stacked = nnx.split(self.layers)

        def body(x, params):
            x = nnx.merge(definition, params)(x, visibility, chosen(compute))
            return x, x

        x, residuals = jax.lax.scan(remat(body, compute.remat), x, stacked)
        return self.norm(x), residuals


def unit_range(pixels: jax.Array) -> jax.Array:
    """Turns uint8 grey levels into float32 in [-1, 1]; leaves floats alone."""
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 127.5 - 1.0
    return pixels
