"""Numbers for parameters that no source has: BAGEL's start of training, from a seed.

Sources: layers that BAGEL adds to its ancestors start as PyTorch's linear layers do (uniform within
1 / sqrt(inputs), weight and bias alike), the latent head at zero, norms at one, and the two frozen
tables as sin-cos.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import NamedTuple

import numpy as np

NORM = re.compile(r".*norm\w*\.(weight|bias)")
EMBEDDING_SCALE = 0.02
BLOCK = 1 << 20  # numbers drawn together


class Tensor(NamedTuple):
    """One tensor of BAGEL's that is made here."""

    source: str  # BAGEL's name
    shape: tuple[int, ...]  # in BAGEL's axes
    inputs: int  # of the layer that the tensor belongs to
    seed: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop), float32: a function of name, shape and seed alone."""
        shape = (stop - start, *self.shape[1:])
        if self.source.endswith(".pos_embed"):
            from inset_jax.model.bridge import sincos_table

            return sincos_table(self.shape[1], math.isqrt(self.shape[0]))[start:stop]
        if self.source.startswith("llm2vae."):
            return np.zeros(shape, np.float32)
        if NORM.fullmatch(self.source):
            value = 1.0 if self.source.endswith("weight") else 0.0
            return np.full(shape, value, np.float32)
        out, together = np.empty(shape, np.float32), self.rows_together
        for block in range(start // together, -(-stop // together)):
            first = block * together
            low, high = max(start, first), min(stop, first + together)
            out[low - start : high - start] = self._random(block)[low - first : high - first]
        return out

    @property
    def rows_together(self) -> int:
        """How many rows share a generator, so that a part can be had without the rest."""
        return max(BLOCK // max(math.prod(self.shape[1:]), 1), 1)

    def _random(self, block: int) -> np.ndarray:
        rows = min(self.rows_together, self.shape[0] - block * self.rows_together)
        key = [self.seed, zlib.crc32(self.source.encode())]
        random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
        if "embed_tokens" in self.source or "position_embedding" in self.source:
            normal = random.standard_normal((rows, *self.shape[1:]), np.float32)
            return normal * np.float32(EMBEDDING_SCALE)
        uniform = random.random((rows, *self.shape[1:]), np.float32) * 2 - 1
        return uniform * np.float32(1.0 / math.sqrt(self.inputs))


def words(source: str, seed: int) -> str:
    """Says how `Tensor` makes a tensor."""
    if source.endswith(".pos_embed"):
        return "computed (frozen sin-cos table)"
    if source.startswith("llm2vae."):
        return "zero"
    if NORM.fullmatch(source):
        return "one" if source.endswith("weight") else "zero"
    return f"random, seed {seed}"
