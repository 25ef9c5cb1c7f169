"""Random numbers that depend on what they are for, never on when or where they are drawn.

Noise, timesteps, dropout and the posterior's noise of an example are functions of (seed, example
id, epoch): any host, worker or step that prepares the example draws the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def keyed(purpose: str, seed: int, name: str, epoch: int, number: int = 0) -> np.random.Generator:
    """Returns a generator (Philox) for one purpose.

    Args:
      purpose: what the numbers are for, so that no two uses share them.
      name: the example's id.
      number: of the segment within the example.
    """
    text = f"{purpose}\0{seed}\0{epoch}\0{number}\0{name}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
