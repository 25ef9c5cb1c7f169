"""How well each of many objects explains what stands at a place of a drawing.

Every candidate is put into the true scene in place of the object that belongs there, up to SHIFT
pixels off and a little larger or smaller, on the ground's mean colour. Its score is what it does to
the squared difference from the drawing: negative where it explains more than the bare ground does.
With E the drawing minus the scene without the object, and the object's colour C and alpha a, put on
B and seen through A (what stands in front):

    score = sum (E - A (C - a B))^2 - sum E^2

All shifts, sizes and candidates are one matrix product of patches of nine fields made of E, A and B
with nine kernels made of C and a. `sharp` is the same for high-passed pictures, each candidate
where it fits best: a blurred drawing has nothing that matches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.engine import sprites
from inset_jax.engine.artwork import Thing
from inset_jax.engine.sprites import Look
from inset_jax.engine.stage import Place
from inset_jax.engine.world import Scene

SHIFT = 4  # pixels an object may be off
SCALES = (1.0, 0.92, 1.08)
KEPT = 64  # kernels in memory
GRAIN = 8  # pixels: windows have a multiple of it, so that sizes share them
SOFT = 2.0  # pixels, standard deviation of the blur that `sharp` takes away from pictures
TRIES = list(itertools.product(range(-SHIFT, SHIFT + 1), repeat=2))  # rows and columns off


class Scores(NamedTuple):
    """Of each candidate at one place."""

    score: np.ndarray  # float64 [candidate]; what it explains, in squared levels / 255^2; negative
    sharp: np.ndarray  # float64 [candidate]
    strength: np.ndarray  # float64 [candidate]; 1 where it is drawn perfectly, 0 on bare ground


class _Kernels(NamedTuple):
    """Candidates at one size and turn, in the middle of a window of k pixels a side."""

    colour: np.ndarray  # float32 [candidate, k, k, 3]
    alpha: np.ndarray  # float32 [candidate, k, k, 1]
    table: np.ndarray  # float32 [k * k * 9, candidate]


class _Fields(NamedTuple):
    """A drawing around one place; beyond the picture all are 0, so nothing counts there."""

    edges: np.ndarray  # float32 [height, width, 3]: E, high-passed
    seen: np.ndarray  # float32 [height, width, 1]: A
    under: np.ndarray  # float32 [height, width, 3]: A B
    nine: np.ndarray  # float32 [height, width, 9], in the order of the kernels
    noise: float  # sum over the channels of the ground's variance


def score_places(
    scene: Scene, drawing: np.ndarray, places: Sequence[Place], candidates: Sequence[Thing]
) -> list[Scores]:
    """Scores all candidates at some places of a scene.

    Args:
      drawing: levels [height, width, 3], of the scene's size.
      places: some of `scene.places`.

    Raises:
      ValueError: the drawing has another size.
    """
    if drawing.shape != scene.target.shape:
        raise ValueError(
            f"a drawing of {drawing.shape[1]}x{drawing.shape[0]} pixels for a scene of "
            f"{scene.target.shape[1]}x{scene.target.shape[0]}"
        )
    return [_score(scene, drawing, place, tuple(candidates)) for place in places]


@functools.lru_cache(KEPT)
def _kernels(
    candidates: tuple[Thing, ...], look: Look, side: int, turn: int, window: int
) -> _Kernels:
    drawn = [sprites.render(thing.sprite, look, side, turn) for thing in candidates]
    colour = np.zeros((len(drawn), window, window, 3), np.float32)
    alpha = np.zeros((len(drawn), window, window, 1), np.float32)
    for number, pixels in enumerate(drawn):
        size = len(pixels.colour)
        first = window // 2 - size // 2
        inside = (number, slice(first, first + size), slice(first, first + size))
        colour[inside] = pixels.colour / np.float32(255)
        alpha[inside] = 1 - pixels.through[..., :1] / np.float32(255)
    square = (colour**2).sum(-1, keepdims=True)
    nine = np.concatenate([colour, alpha, square, colour * alpha, alpha**2], -1)
    return _Kernels(colour, alpha, np.ascontiguousarray(nine.reshape(len(drawn), -1).T))


def _fields(scene: Scene, drawing: np.ndarray, place: Place) -> _Fields:
    """What a candidate at a place is judged by. The ground is its mean: no drawing can know more.

    A ground that is no plain colour differs from its mean by its variance; a candidate gains
    nothing by covering it, because that much is added where it does.
    """
    ground = scene.backdrop.reshape(-1, 3) / np.float32(255)
    mean, noise = ground.mean(0), float(ground.var(0).sum())
    shape = scene.target.shape
    number = scene.places.index(place)
    behind = np.broadcast_to(np.rint(mean * 255).astype(np.uint8), shape).copy()
    black, white = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    for at, other in enumerate(scene.places):
        if at == number:
            continue
        thing = scene.things[other.thing]
        pixels = sprites.render(thing.sprite, thing.look, other.side, other.turn)
        for canvas in [behind] if at < number else [black, white]:
            sprites.put(canvas, pixels, other.x, other.y)
    front = black / np.float32(255)
    seen = (white - black).mean(-1, keepdims=True, dtype=np.float32) / np.float32(255)
    under = behind / np.float32(255)
    rest = drawing / np.float32(255) - front - seen * under
    squared = seen**2
    spread = noise * squared
    nine = [
        -2 * seen * rest,
        2 * seen * (rest * under).sum(-1, keepdims=True) + 2 * spread,
        squared,
        -2 * squared * under,
        squared * (under**2).sum(-1, keepdims=True) - spread,
    ]
    return _Fields(_edges(rest[None])[0], seen, seen * under, np.concatenate(nine, -1), noise)


def levelled(scene: Scene, drawing: np.ndarray) -> np.ndarray:
    """A drawing without what its ground is off: float32 [height, width, 3], in levels.

    On another ground, or as a plain picture, a drawing differs from the scene at every pixel, and
    objects of that colour would be found everywhere.
    """
    bare = (scene.target == scene.backdrop).all(-1)
    off = drawing[bare].mean(0, dtype=np.float32) - scene.backdrop[bare].mean(0, dtype=np.float32)
    return drawing - off


def _score(scene: Scene, drawing: np.ndarray, place: Place, candidates: tuple) -> Scores:
    look, fields = scene.things[place.thing].look, _fields(scene, drawing, place)
    sides = [round(scale * place.side) for scale in SCALES]
    largest = sprites.render(candidates[0].sprite, look, max(sides), place.turn)
    size = -(-len(largest.colour) // GRAIN) * GRAIN
    kernels = [_kernels(candidates, look, side, place.turn, size) for side in sides]
    windows = functools.partial(_windows, place=place, size=size)
    patches = windows(fields.nine, TRIES).reshape(len(TRIES), -1)
    table = np.concatenate([patches @ own.table for own in kernels])  # [scale * try, candidate]
    best = table.argmin(0)
    score = table.min(0).astype(np.float64)
    scales, tries = np.divmod(best, len(TRIES))
    shifts = [TRIES[number] for number in tries]
    alpha = _chosen([own.alpha for own in kernels], scales)
    change = windows(fields.seen, shifts) * _chosen([own.colour for own in kernels], scales)
    change -= windows(fields.under, shifts) * alpha
    edges = _edges(change)
    # covering a ground of noise gains nothing, as in the fields
    cover = (alpha * (2 - alpha)).sum((1, 2, 3), dtype=np.float64)
    sharp = _products(edges, edges) - 2 * _products(edges, windows(fields.edges, shifts))
    sharp += fields.noise * _kept(size) * cover
    # what a perfect drawing would score: nothing but the object itself is explained
    middle = windows(fields.seen, [(0, 0)]) * kernels[0].colour
    middle -= windows(fields.under, [(0, 0)]) * kernels[0].alpha
    whole = np.maximum(_products(middle, middle), 1e-9)
    return Scores(score, sharp, -score / whole)


def _chosen(ones: Sequence[np.ndarray], scales: np.ndarray) -> np.ndarray:
    """Of each candidate what it is at its scale."""
    return np.stack([ones[scale][candidate] for candidate, scale in enumerate(scales)])


def _windows(field: np.ndarray, shifts, place: Place, size: int) -> np.ndarray:
    """Cuts of a field about a place, one a shift: float32 [shift, size, size, channel]."""
    margin = size + SHIFT
    padded = np.pad(field, ((margin, margin), (margin, margin), (0, 0)))
    top, left = place.y - size // 2 + margin, place.x - size // 2 + margin
    return np.stack(
        [padded[top + y : top + y + size, left + x : left + x + size] for y, x in shifts]
    )


@functools.cache
def _blur(size: int) -> np.ndarray:
    """A Gaussian blur of a row as a matrix; each pixel's weights add up to 1: [size, size]."""
    off = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (off / SOFT) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.cache
def _kept(size: int) -> float:
    """Share of white noise that stays when the blurred picture is taken away."""
    middle = _blur(size)[size // 2]
    return float(
        (1 - middle[size // 2] ** 2) ** 2 + (middle**2).sum() ** 2 - middle[size // 2] ** 4
    )


def _edges(pictures: np.ndarray) -> np.ndarray:
    """Pictures without what a blur leaves of them: float32 [picture, height, width, 3]."""
    count, height, width, _ = pictures.shape
    down = np.matmul(_blur(height), pictures.reshape(count, height, -1))
    across = np.kron(_blur(width).T, np.eye(3, dtype=np.float32))
    return pictures - (down.reshape(count * height, -1) @ across).reshape(pictures.shape)


def _products(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Scalar product of each two pictures: float64 [picture]."""
    return np.einsum("npqc,npqc->n", ones, others, dtype=np.float64)
