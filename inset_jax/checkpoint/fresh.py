"""Numbers for parameters that no source has: BAGEL's start of training, from a seed.

Sources: layers that BAGEL adds to its ancestors start as PyTorch's linear layers do (uniform within
1 / sqrt(inputs), weight and bias alike), the latent head at zero, norms at one, and the two frozen
tables as sin-cos.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

NORM = re.compile(r".*norm\w*\.(weight|bias)")
EMBEDDING_SCALE = 0.02


def numbers(source: str, shape: tuple[int, ...], inputs: int, seed: int) -> np.ndarray:
    """Returns a float32 tensor in BAGEL's axes, a function of its name and the seed alone.

    Args:
      source: BAGEL's name of the tensor.
      inputs: of the layer that the tensor belongs to.
    """
    if source.endswith(".pos_embed"):
        from inset_jax.model.bridge import sincos_table

        return sincos_table(shape[1], math.isqrt(shape[0]))
    if source.startswith("llm2vae."):
        return np.zeros(shape, np.float32)
    if NORM.fullmatch(source):
        value = 1.0 if source.endswith("weight") else 0.0
        return np.full(shape, value, np.float32)
    random = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(source.encode())]))
    if "embed_tokens" in source or "position_embedding" in source:
        return random.standard_normal(shape, np.float32) * np.float32(EMBEDDING_SCALE)
    bound = np.float32(1.0 / math.sqrt(inputs))
    return (random.random(shape, np.float32) * 2 - 1) * bound


def words(source: str, seed: int) -> str:
    """Says what `numbers` does for a tensor."""
    if source.endswith(".pos_embed"):
        return "computed (frozen sin-cos table)"
    if source.startswith("llm2vae."):
        return "zero"
    if NORM.fullmatch(source):
        return "one" if source.endswith("weight") else "zero"
    return f"random, seed {seed}"
