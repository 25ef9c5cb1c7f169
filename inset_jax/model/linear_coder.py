"""An autoencoder that is two matrices: each square of pixels to its latents, and back.

For small pictures of few kinds, where a transform fitted in seconds (`train.autoencoder.principal`)
keeps more than a convolutional autoencoder learns in an hour of two cores. It stands in the place
of `model.vae`'s two halves, with the same calls and names (`encoder.conv_in`, `decoder.conv_out`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from inset_jax.core.config import VaeConfig
from inset_jax.model import layers

LOG_VARIANCE = -30.0  # the posterior is a point: a sample differs from the mean by 3e-7


class Matrix(nnx.Module):
    """A kernel in the form of a convolution's, [rows, columns, in, out], with a bias."""

    def __init__(self, shape: tuple[int, int, int, int], rngs: nnx.Rngs):
        names = ("small",) * 4
        self.kernel = layers.parameter(rngs, shape, names, layers.normal)
        self.bias = layers.parameter(rngs, shape[-1:], names[-1:], layers.zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(-1, self.bias.shape[0]).astype(x.dtype)
        return x @ kernel + self.bias[...].astype(x.dtype)


class LinearEncoder(nnx.Module):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        side = config.downsample
        self.conv_in = Matrix((side, side, 3, config.latent_channels), rngs)
        self.side = side

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict]:
        """Images [B, H, W, 3] -> mean and log variance [B, h, w, 2 c]; no inner activations."""
        squares = rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=self.side, q=self.side)
        mean = self.conv_in(squares)
        return jnp.concatenate([mean, jnp.full_like(mean, LOG_VARIANCE)], -1), {}


class LinearDecoder(nnx.Module):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        self.side = config.downsample
        self.conv_out = Matrix((1, 1, config.latent_channels, self.side**2 * 3), rngs)

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, dict]:
        """Latents [B, h, w, c], unscaled -> images [B, H, W, 3]; no inner activations."""
        squares = self.conv_out(latents)
        images = rearrange(squares, "b h w (p q c) -> b (h p) (w q) c", p=self.side, q=self.side)
        return images, {}
