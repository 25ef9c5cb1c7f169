"""Cuts one object out of a photograph, as a square picture for a sentence.

The models see references as crops of single objects. What touches the photograph's border is taken
for the ground: its colours are grouped, every pixel is compared with the groups, and the largest
region that none of them explains is the object.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.cluster.vq import kmeans2

SIDE = 192  # pixels; the object is looked for in a copy of at most this size
BORDER = 0.04  # of a side: how wide the frame is that shows the ground
COLOURS = 4  # groups of the ground's colours
LEAST_SPREAD = 6.0  # levels; a flat ground still has noise
UNLIKE = 2.2  # spreads of the ground's colours from which on a pixel is something else
SMALLEST, LARGEST = 0.005, 0.9  # share of a photograph that an object covers
MARGIN = 0.06  # of the object's longer side, left around it


class Cut(NamedTuple):
    """An object found in a photograph."""

    box: tuple[int, int, int, int]  # left, top, right, bottom: a square, perhaps beyond the picture
    mask: np.ndarray | None  # bool [height, width] of the photograph; None where a box was named


def find(photograph: Image.Image) -> Cut:
    """Finds the object that stands free on a ground.

    Raises:
      ValueError: nothing stands out from the border, or nearly everything does.
    """
    photograph = photograph.convert("RGB")
    small = photograph.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    mask = _largest(_foreign(np.asarray(small, np.float64)))
    share = mask.mean()
    if not SMALLEST <= share <= LARGEST:
        raise ValueError(
            f"what differs from the border covers {share:.1%} of the photograph, an object "
            f"{SMALLEST:.1%} to {LARGEST:.0%}: name its box"
        )
    whole = Image.fromarray(mask).resize(photograph.size, Image.Resampling.NEAREST)
    mask = np.asarray(whole)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Cut(square((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), mask)


def square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The square around a box (left, top, right, bottom), with a margin."""
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + 2 * MARGIN))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return int(x), int(y), int(x + side), int(y + side)


def crop(photograph: Image.Image, cut: Cut, side: int, ground: str = "") -> Image.Image:
    """Returns the object as a square picture.

    Args:
      side: of the result, pixels.
      ground: a colour (a name or #rrggbb) to stand on; "" keeps the photograph's own ground. Beyond
        the photograph's edges is that colour, or the mean colour of the photograph's border.
    """
    photograph = photograph.convert("RGB")
    left, top, right, bottom = cut.box
    pixels = np.asarray(photograph)
    beyond = ground or tuple(int(value) for value in _frame(pixels).mean(0).round())
    canvas = Image.new("RGB", (right - left, bottom - top), beyond)
    if ground:
        alpha = Image.fromarray((cut.mask * 255).astype(np.uint8))
        canvas.paste(photograph, (-left, -top), alpha)
    else:
        canvas.paste(photograph, (-left, -top))
    return canvas.resize((side, side), Image.Resampling.BICUBIC)


def _foreign(pixels: np.ndarray) -> np.ndarray:
    """Which pixels no group of the border's colours explains: bool [height, width]."""
    frame = _frame(pixels)
    groups = min(COLOURS, len(np.unique(frame, axis=0)))
    centres, group = kmeans2(frame, groups, minit="++", seed=0)
    smallest = np.full(pixels.shape[:2], np.inf)
    for number, centre in enumerate(centres):
        own = frame[group == number]
        if not len(own):
            continue
        spread = max(np.sqrt(((own - centre) ** 2).sum(1).mean()), LEAST_SPREAD)
        distance = np.sqrt(((pixels - centre) ** 2).sum(-1)) / spread
        smallest = np.minimum(smallest, distance)
    return ndimage.gaussian_filter(smallest, 1.0) > UNLIKE


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest region, without holes."""
    mask = ndimage.binary_opening(mask, iterations=1)
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return ndimage.binary_fill_holes(labels == largest)


def _frame(pixels: np.ndarray) -> np.ndarray:
    """The pixels along the border: [pixel, 3]."""
    height, width = pixels.shape[:2]
    wide = max(round(BORDER * min(height, width)), 1)
    inside = np.zeros((height, width), bool)
    inside[wide : height - wide, wide : width - wide] = True
    return pixels[~inside].reshape(-1, 3).astype(np.float64)
