"""Fits the linear autoencoder: the principal components of squares of pixels, half whitened.

A picture's squares are projected on their strongest components. Each is then divided by the fourth
root of its variance: undivided, a flow spends itself on the few components that hold the grounds,
and fully whitened on noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from inset_jax.core.config import VaeConfig

Tree = dict[str, Any]

SMALLEST_VARIANCE = 1e-9  # of a component, over that of the strongest; below it is rounding


class Fit(NamedTuple):
    """Parameters of `model.linear_coder` and what they keep."""

    params: Tree
    kept: float  # share of the squares' variance


def fit(pictures: np.ndarray, config: VaeConfig) -> Fit:
    """Returns the parameters for pictures like these.

    Args:
      pictures: uint8 [count, H, W, 3], sides multiples of the downsampling.
      config: of a linear autoencoder with scale 1 and shift 0.

    Raises:
      ValueError: more latents are asked for than the squares have components.
    """
    side, wanted = config.downsample, config.latent_channels
    squares = rearrange(pictures, "n (h p) (w q) c -> (n h w) (p q c)", p=side, q=side)
    if wanted > min(squares.shape):
        raise ValueError(
            f"vae.latent_channels={wanted}: {len(squares)} squares of {squares.shape[1]} numbers "
            f"have at most {min(squares.shape)} components"
        )
    squares = squares.astype(np.float64) / 127.5 - 1.0
    mean = squares.mean(0)
    variance, components = np.linalg.eigh(np.cov(squares - mean, rowvar=False, ddof=0))
    order = np.argsort(variance)[::-1][:wanted]
    varied = int(np.sum(variance > variance.max() * SMALLEST_VARIANCE))
    if wanted > varied:
        raise ValueError(
            f"vae.latent_channels={wanted}: these squares vary in {varied} components only; "
            "ask for fewer latents or fit to more pictures"
        )
    basis, deviation = components[:, order], np.sqrt(variance[order])
    # of mean square 1 over all latents together, so that scale and shift stay 1 and 0
    weight = 1 / np.sqrt(deviation * deviation.mean())
    to_latents = basis * weight
    to_squares = (basis / weight).T
    params = {
        "encoder": {
            "conv_in": {
                "kernel": to_latents.reshape(side, side, 3, wanted).astype(np.float32),
                "bias": (-mean @ to_latents).astype(np.float32),
            }
        },
        "decoder": {
            "conv_out": {
                "kernel": to_squares[None, None].astype(np.float32),
                "bias": mean.astype(np.float32),
            }
        },
    }
    return Fit(params, float(variance[order].sum() / variance.sum()))
