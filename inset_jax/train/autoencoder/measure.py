"""What an autoencoder is measured by: held-out reconstructions, and the spread of its latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from inset_jax.core.config import AutoencoderConfig, VaeConfig
from inset_jax.model import vae
from inset_jax.train.autoencoder.step import psnr, unit_range

Tree = dict[str, Any]

COLUMNS, ROWS = 8, 2  # pictures in a grid, each over its reconstruction


class HeldOut(NamedTuple):
    """Reconstructions of held-out pictures from the mean of the posterior."""

    psnr: float  # dB, mean over pictures
    pictures: int
    grid: np.ndarray  # uint8 [height, width, 3], originals over reconstructions


class Gauge:
    """Compiled measurements of batches of one size."""

    def __init__(self, config: AutoencoderConfig, batch_sharding: jax.sharding.Sharding):
        definition, _ = vae.abstract(config.vae)
        dtype = jnp.dtype(config.run.dtype)
        self._config, self._sharding = config, batch_sharding

        def reconstruct(params: Tree, pixels: jax.Array):
            model, images = vae.bind(definition, params), unit_range(pixels)
            decoded = model.decode(model.encode(images, None, dtype), dtype)
            return psnr(images, decoded), vae.to_uint8(decoded)

        def spread(params: Tree, pixels: jax.Array, key: jax.Array):
            """Mean and mean square of posterior samples."""
            moments = vae.bind(definition, params).encode_moments(unit_range(pixels), dtype)
            latents = vae.sample(*moments, jax.random.normal(key, moments[0].shape))
            return jnp.mean(latents), jnp.mean(latents**2)

        self._reconstruct, self._spread = jax.jit(reconstruct), jax.jit(spread)

    def held_out(self, params: Tree, pixels: np.ndarray) -> HeldOut:
        """Measures pictures uint8 [count, S, S, 3]; a last batch that is not full is filled up."""
        size, ratios, drawn = self._config.data.batch, [], []
        for start in range(0, len(pixels), size):
            some = pixels[start : start + size]
            full = np.concatenate([some, np.repeat(some[-1:], size - len(some), axis=0)])
            ratio, decoded = self._reconstruct(params, jax.device_put(full, self._sharding))
            ratios.append(np.asarray(ratio)[: len(some)])
            drawn.append(np.asarray(decoded)[: len(some)])
        mean = float(np.concatenate(ratios).mean())
        return HeldOut(mean, len(pixels), grid(pixels, np.concatenate(drawn)))

    def latents(self, params: Tree, batches: Iterable[np.ndarray]) -> VaeConfig:
        """Returns the config with the scale and shift that give latents of mean 0, deviation 1."""
        sums = np.zeros(2)
        for count, pixels in enumerate(batches, start=1):
            key = jax.random.key(count)
            pair = self._spread(params, jax.device_put(pixels, self._sharding), key)
            sums += np.array(pair, np.float64)
        mean, square = sums / count
        scale = float(1 / np.sqrt(square - mean**2))
        return dataclasses.replace(self._config.vae, scale=scale, shift=float(mean))


def grid(originals: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Sets rows of originals over rows of their reconstructions: uint8 [height, width, 3]."""
    rows = []
    for row in range(ROWS):
        part = slice(row * COLUMNS, (row + 1) * COLUMNS)
        some = [originals[part], drawn[part]]
        if row and len(some[0]) < COLUMNS:
            break  # an incomplete row beside a complete one
        rows.append(rearrange(np.stack(some), "pair n h w c -> (pair h) (n w) c"))
    return np.concatenate(rows)
