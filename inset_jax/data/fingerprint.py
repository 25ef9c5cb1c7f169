"""Pictures that look the same: a hash that small changes keep, and the pairs it finds.

The hash has a bit for each of the 64 lowest frequencies of the picture, shrunk to 32 x 32 grey
pixels: whether it is there with a positive sign, stronger than FAINT of the strongest (the idea of
the well-known "pHash"). Scaling, another JPEG quality or a little noise flip few of the bits. Flat
pictures have no frequencies, so the mean colour goes with it; and a pair counts only after `alike`
has looked at the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8  # pixels that are looked at; frequencies a direction that count
FAINT = 0.02  # of the strongest frequency: below it the sign is chance
MOST_BITS = 5  # that may differ; half the size or JPEG quality 60 flip up to 5 in photographs
MOST_COLOUR = 12  # grey levels by which a mean colour may differ
MOST_PIXELS = 5.0  # mean difference of two pictures of SIDE x SIDE pixels, in grey levels
NEIGHBOURS = 64  # that a picture is compared with in each of four sorted lists


class Fingerprint(NamedTuple):
    """What is kept of a picture."""

    bits: int  # 64 of them
    colour: tuple[int, int, int]  # mean


def _cosines() -> np.ndarray:
    """The first LOW rows of the discrete cosine transform of SIDE values."""
    angle = np.pi * (2 * np.arange(SIDE) + 1)[None] * np.arange(LOW)[:, None] / (2 * SIDE)
    return np.cos(angle)


COSINES = _cosines()


def fingerprint(picture: Image.Image) -> Fingerprint:
    """Returns the fingerprint of an RGB picture."""
    small = _small(picture)
    grey = small @ np.array([0.299, 0.587, 0.114])
    strength = (COSINES @ grey @ COSINES.T).reshape(-1)
    strength[0] = 0  # the mean
    strong = strength > max(FAINT * np.abs(strength).max(), 1e-3)
    bits = sum(1 << int(n) for n in np.flatnonzero(strong))
    return Fingerprint(bits, tuple(int(c) for c in small.mean((0, 1)).round()))


def alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures look the same, by their pixels."""
    return float(np.abs(_small(one) - _small(other)).mean()) <= MOST_PIXELS


def _small(picture: Image.Image) -> np.ndarray:
    shrunk = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float64)


def near_pairs(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Yields pairs (i, j), i < j, of fingerprints that differ by at most MOST_BITS and MOST_COLOUR.

    Two numbers of 64 bits that differ in three share one of four quarters, and most that differ in
    five do. So the list is sorted four times, by each quarter first, and each is compared with its
    next NEIGHBOURS there: near pairs are found unless more than that many share a quarter.
    """
    if not prints:
        return
    bits = np.array([own.bits for own in prints], np.uint64)
    colour = np.array([own.colour for own in prints], np.int16)
    seen: set[tuple[int, int]] = set()
    for quarter in range(4):
        turn = np.uint64(16 * quarter)
        turned = bits if not quarter else (bits << turn) | (bits >> np.uint64(64 - 16 * quarter))
        order = np.lexsort((colour[:, 2], colour[:, 1], colour[:, 0], turned))
        top = (turned >> np.uint64(48))[order]
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-step], order[step:]
            near = top[:-step] == top[step:]
            if not near.any():
                break
            near &= np.bitwise_count(bits[first] ^ bits[second]) <= MOST_BITS
            near &= (np.abs(colour[first] - colour[second]) <= MOST_COLOUR).all(-1)
            for i, j in zip(first[near].tolist(), second[near].tolist(), strict=True):
                pair = (min(i, j), max(i, j))
                if pair not in seen:
                    seen.add(pair)
                    yield pair
