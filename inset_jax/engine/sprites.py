"""Sprites: small pictures with alpha, scaled, turned, recoloured and put on a canvas.

Colours are already multiplied by alpha, so that scaling bleeds no hidden colour and putting is one
multiplication.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

LEVELS = (48, 32)  # pixels a side of smaller copies
KEPT = 1 << 15  # scaled and turned sprites in memory, of 3 to 10 kB each
SHADE = 0.3  # of a painted sprite: how bright its black parts are
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Look(NamedTuple):
    """How a sprite is changed wherever it is shown."""

    mirrored: bool = False
    bands: tuple[int, int, int] = (0, 1, 2)  # which channel each of red, green and blue shows
    paint: tuple[int, int, int] | None = None  # one colour in place of its own, shades kept


class Pixels(NamedTuple):
    """A sprite as it is put on a canvas."""

    colour: np.ndarray  # uint8 [n, n, 3], multiplied by alpha
    through: np.ndarray  # uint8 [n, n, 3], 255 - alpha: NumPy is slow where dims differ


class Sprite:
    """A square picture with alpha; compared by identity, so that scaled copies can be kept."""

    def __init__(self, picture: Image.Image):
        self.picture = picture.convert("RGBA").convert("RGBa")

    @functools.cached_property
    def colour(self) -> tuple[float, float, float]:
        """Mean red, green and blue of what is not transparent."""
        total = np.asarray(self.picture, np.float64).sum((0, 1))
        return tuple(float(value * 255 / max(total[3], 1.0)) for value in total[:3])

    @functools.cached_property
    def levels(self) -> list[Image.Image]:
        """The sprite and smaller copies; a turned one is made of the next larger of them."""
        sides = (size for size in LEVELS if size < self.picture.width)
        return [self.picture, *(self.picture.resize((n, n), Image.Resampling.BOX) for n in sides)]


@functools.lru_cache(KEPT)
def _scaled(sprite: Sprite, side: int, degrees: int) -> Pixels:
    if not degrees:
        picture = sprite.picture.resize((side, side), Image.Resampling.BOX)
    else:
        level = [level for level in sprite.levels if level.width >= side or level is sprite.picture]
        picture = _turned(level[-1], side, degrees)
    pixels = np.asarray(picture)
    alpha = np.repeat(pixels[..., 3:], 3, axis=-1)
    return Pixels(np.minimum(pixels[..., :3], alpha), 255 - alpha)  # rounding may exceed alpha


def _turned(level: Image.Image, side: int, degrees: int) -> Image.Image:
    """Scales and turns in one go; the result is as large as it must be."""
    angle = math.radians(degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    whole = 2 * round(side * (abs(sine) + abs(cosine)) / 2) + side % 2
    scale = level.width / side
    # an output pixel's place from the middle, turned back, is its place in the level
    a, b = cosine * scale, -sine * scale
    shift = lambda across, down: level.width / 2 - (across + down) * whole / 2
    matrix = (a, b, shift(a, b), -b, a, shift(-b, a))
    size = (whole, whole)
    return level.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def render(sprite: Sprite, look: Look, side: int, degrees: int = 0) -> Pixels:
    """Returns a sprite's pixels, of side x side where it is not turned.

    Args:
      degrees: counterclockwise.
    """
    # the mirror image of a sprite that was turned the other way is the mirrored sprite, turned
    colour, through = _scaled(sprite, side, -degrees if look.mirrored else degrees)
    if look.mirrored:
        colour, through = colour[:, ::-1], through[:, ::-1]
    if look.bands != (0, 1, 2):
        colour = colour[..., list(look.bands)]
    if look.paint is not None:
        shade = SHADE * (255 - through[..., 0]) + (1 - SHADE) * (colour @ LUMA)
        colour = (shade[..., None] * (np.array(look.paint, np.float32) / 255)).astype(np.uint8)
    return Pixels(colour, through)


def put(canvas: np.ndarray, pixels: Pixels, x: int, y: int) -> None:
    """Puts pixels on a canvas (uint8 [height, width, 3]) in place, their middle at column x, row y.

    What lies outside is cut off.
    """
    rows, columns = pixels.colour.shape[:2]
    top, left = y - rows // 2, x - columns // 2
    above, before = max(-top, 0), max(-left, 0)
    below, after = max(canvas.shape[0] - top, 0), max(canvas.shape[1] - left, 0)
    inside = slice(above, below), slice(before, after)
    colour, through = pixels.colour[inside], pixels.through[inside]
    if not colour.size:
        return
    top, left = top + above, left + before
    under = canvas[top : top + colour.shape[0], left : left + colour.shape[1]]
    # v / 255, rounded: (v + 128 + (v + 128 >> 8)) >> 8
    value = under * through.astype(np.uint16)
    value += 128
    value += value >> 8
    value >>= 8
    value += colour
    under[...] = value
