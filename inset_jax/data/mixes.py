"""Made-up data sets for benchmarks: headers of records that do not exist, from stated histograms.

`mixed` is the mix of INSET's paper: image-interleaved .2, video-interleaved .2, editing .1 and
text-to-image .5. The other two are meant to be hard to pack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inset_jax.data import columns
from inset_jax.data.columns import Labels, Strings
from inset_jax.data.headers import LOSS, OPENS, TARGET, TEXT, VAE, VIT, Headers

# a histogram: edges of its bins, in which numbers are uniform, and the share of each bin
REFERENCE_SIDE = ((160, 256, 384, 512, 768, 1024, 1536), (0.10, 0.15, 0.20, 0.25, 0.20, 0.10))
TARGET_SIDE = ((448, 640, 896, 1280, 2048), (0.10, 0.25, 0.40, 0.25))  # pixels, the longer side
ASPECT = ((1.0, 1.15, 1.4, 1.6, 2.0), (0.30, 0.35, 0.25, 0.10))  # longer side over the shorter one
CAPTION = ((8, 24, 48, 96, 200, 400), (0.15, 0.25, 0.30, 0.25, 0.05))  # ids
INSTRUCTION = ((8, 40), (1.0,))
PIECE = ((3, 25), (1.0,))  # between two references of a sentence
REFERENCES = (3, 8)  # in a sentence, uniform


class Segments(NamedTuple):
    """Columns of `Headers`, a row a segment."""

    kind: np.ndarray
    length: np.ndarray
    size: np.ndarray
    flags: np.ndarray


def draw(random: np.random.Generator, histogram, count: int) -> np.ndarray:
    """Draws from a histogram: float64 [count]."""
    edges, share = np.array(histogram[0], float), histogram[1]
    place = random.choice(len(share), count, p=share)
    return edges[place] + np.diff(edges)[place] * random.random(count)


def pictures(random: np.random.Generator, histogram, count: int) -> np.ndarray:
    """Draws widths and heights: int32 [count, 2]; half of the pictures stand upright."""
    long = draw(random, histogram, count)
    size = np.stack([long, long / draw(random, ASPECT, count)], axis=1)
    upright = random.random(count) < 0.5
    size[upright] = size[upright, ::-1]
    return np.maximum(np.rint(size), 1).astype(np.int32)


def texts(random: np.random.Generator, histogram, count: int, loss: bool = False) -> Segments:
    one = np.ones((count, 2), np.int32)
    length = draw(random, histogram, count).astype(np.int32)
    flags = np.full(count, OPENS + LOSS * loss, np.uint8)
    return Segments(np.full(count, TEXT, np.int8), length, one, flags)


def images(kind: int, size: np.ndarray) -> Segments:
    none, flags = np.zeros(len(size), np.int32), np.full(len(size), OPENS, np.uint8)
    return Segments(np.full(len(size), kind, np.int8), none, size, flags)


def headers(name: str, parts: list[tuple[np.ndarray, Segments]], count: int) -> Headers:
    """Puts parts together.

    Args:
      parts: in reading order; the example that each row of a part belongs to, and the rows. Rows of
        one example keep the order of the parts and, within a part, their own.
    """
    owner = np.concatenate([own for own, _ in parts])
    order = np.argsort(owner, kind="stable")
    table = [np.concatenate(column)[order] for column in zip(*(rows for _, rows in parts))]
    start = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))])
    return Headers(
        name,
        columns.digest(name, count),
        Strings.of(f"{name}-{number}" for number in range(count)),
        Labels([name], np.zeros(count, np.int32)),
        np.arange(count),
        start.astype(np.int64),
        *table,
        unreadable=[],
    )


def text_to_image(count: int, seed: int, name: str = "t2i", side=TARGET_SIDE) -> Headers:
    random, every = np.random.default_rng([seed, 0]), np.arange(count)
    size = pictures(random, side, count)
    parts = [(every, texts(random, CAPTION, count)), (every, images(TARGET, size))]
    return headers(name, parts, count)


def editing(count: int, seed: int) -> Headers:
    """The source as ViT patches and as clean latents, an instruction, a target of its size."""
    random, every = np.random.default_rng([seed, 1]), np.arange(count)
    size = pictures(random, TARGET_SIDE, count)
    parts = [
        (every, images(VAE, size)),
        (every, images(VIT, size)),
        (every, texts(random, INSTRUCTION, count)),
        (every, images(TARGET, size)),
    ]
    return headers("editing", parts, count)


def interleaved(
    count: int, seed: int, name: str, references=REFERENCES, sides=(REFERENCE_SIDE, TARGET_SIDE)
) -> Headers:
    """Sentences: a piece of text, a reference, a piece, a reference, ..., a target."""
    random = np.random.default_rng([seed, 2, len(name)])
    number = random.integers(references[0], references[1] + 1, count)
    owner = np.repeat(np.arange(count), number)
    parts = [
        (owner, texts(random, PIECE, len(owner))),
        (owner, images(VIT, pictures(random, sides[0], len(owner)))),
        (np.arange(count), images(TARGET, pictures(random, sides[1], count))),
    ]
    return headers(name, parts, count)


def mixed(count: int, seed: int = 0) -> tuple[list[Headers], tuple[float, ...]]:
    return [
        interleaved(max(count // 5, 1), seed, "image-interleaved"),
        interleaved(max(count // 5, 1), seed, "video-interleaved"),
        editing(max(count // 10, 1), seed),
        text_to_image(max(count // 2, 1), seed),
    ], (0.2, 0.2, 0.1, 0.5)


def coarse(count: int, seed: int = 0) -> tuple[list[Headers], tuple[float, ...]]:
    """Every target is of the largest size and every reference of one size: nothing fills a gap."""
    large = ((1020, 1024), (1.0,))
    return [
        interleaved(max(count // 2, 1), seed, "interleaved", (8, 8), (large, large)),
        text_to_image(max(count // 2, 1), seed, "t2i", large),
    ], (0.5, 0.5)


def extremes(count: int, seed: int = 0) -> tuple[list[Headers], tuple[float, ...]]:
    """Nine in ten examples are nearly all gen; one in ten is long and nearly all und."""
    side = ((1900, 2048), (1.0,))
    return [
        interleaved(max(count // 10, 1), seed, "long", (7, 8), (side, ((448, 460), (1.0,)))),
        text_to_image(max(count * 9 // 10, 1), seed),
    ], (0.1, 0.9)


MIXES: dict[str, Callable] = {"mixed": mixed, "coarse": coarse, "extremes": extremes}
