"""Cuts one object out of a photograph, as a square picture for a sentence.

The models see references as crops of single objects. What touches the photograph's border is taken
for the ground: a mixture of normal distributions describes its colours, and the largest region that
is unlikely under it is the object. Then object and ground are told apart by the colours of both,
which outlines the object better. `python -m tools.own_pictures` measures it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.cluster.vq import kmeans2

CROP = 128  # pixels a side of what is cut out
SIDE = 128  # pixels; the object is looked for in a copy of at most this size
BORDER = 0.04  # of a side: how wide the frame is that shows the ground
COLOURS = 4  # groups of the colours of an object, or of the border
SAMPLES = 4000  # pixels that groups are made of
LEAST_SPREAD = 6.0  # levels; a flat ground still has noise
SMOOTH = 1.0  # pixels of the copy over which likeness is averaged,
MOST = 15.0  # each pixel at most so unlikely: nats beyond the border's median
BORDERS = 0.95  # of the border's own pixels are taken for ground,
UNLIKE = 1.5  # and what is less than so many nats less likely than those
ROUNDS = 2  # of telling both apart by the colours of both,
SURE = 5.0  # nats that one pixel says at most about it
NEAR = 3  # pixels about the object that belong to neither
GAP = 3  # pixels between two parts of one object
SMALLEST, LARGEST = 0.005, 0.9  # share of a photograph that an object covers
LARGE = 0.35  # from here on it may be the ground's lighter middle that was found
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
    mask = _object(np.asarray(small, np.float64))
    share = mask.mean()
    if not SMALLEST <= share <= LARGEST:
        raise ValueError(
            f"what differs from the border covers {share:.1%} of the photograph, an object "
            f"{SMALLEST:.1%} to {LARGEST:.0%}: name its box"
        )
    mask = np.asarray(Image.fromarray(mask).resize(photograph.size, Image.Resampling.NEAREST))
    return Cut(square(bounds(mask)), mask)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (left, top, right, bottom) around what is True in bool [height, width]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The square around a box (left, top, right, bottom), with a margin."""
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + 2 * MARGIN))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return int(x), int(y), int(x + side), int(y + side)


def crop(
    photograph: Image.Image, cut: Cut, side: int = CROP, ground: str | None = None
) -> Image.Image:
    """Returns the object as a square picture.

    Args:
      side: of the result, pixels.
      ground: a colour (a name or #rrggbb) to stand on; None keeps the photograph's own. Beyond the
        photograph's edges is that colour, or the mean colour of the photograph's border.
    """
    photograph = photograph.convert("RGB")
    left, top, right, bottom = cut.box
    pixels = np.asarray(photograph)
    border = pixels[_border(*pixels.shape[:2])]
    beyond = ground or tuple(int(value) for value in border.mean(0).round())
    canvas = Image.new("RGB", (right - left, bottom - top), beyond)
    if ground:
        alpha = Image.fromarray((cut.mask * 255).astype(np.uint8))
        canvas.paste(photograph, (-left, -top), alpha)
    else:
        canvas.paste(photograph, (-left, -top))
    return canvas.resize((side, side), Image.Resampling.BICUBIC)


def _object(pixels: np.ndarray) -> np.ndarray:
    """Where the object is: bool [height, width]."""
    border = _border(*pixels.shape[:2])
    surprise = _surprise(pixels, pixels[border], COLOURS)
    surprise = np.minimum(surprise, np.median(surprise[border]) + MOST)
    surprise = ndimage.gaussian_filter(surprise, SMOOTH)
    mask = _largest(surprise > np.quantile(surprise[border], BORDERS) + UNLIKE)
    for _ in range(ROUNDS):
        ground = ~ndimage.binary_dilation(mask, iterations=NEAR)
        if not mask.any() or not ground.any():
            break
        foreign = _surprise(pixels, pixels[ground], 2 * COLOURS)
        foreign -= _surprise(pixels, pixels[mask], COLOURS)
        mask = _largest(ndimage.gaussian_filter(np.clip(foreign, -SURE, SURE), SMOOTH) > 0)
    return mask


def _surprise(pixels: np.ndarray, known: np.ndarray, groups: int) -> np.ndarray:
    """How unlikely pixels are in the mixture that describes known ones: nats, [height, width]."""
    known = known[:: -(-len(known) // SAMPLES)]
    groups = min(groups, len(np.unique(known, axis=0)))
    _, group = kmeans2(known, groups, minit="++", seed=0)
    likely = []
    for number in np.unique(group):
        own = known[group == number]
        centre = own.mean(0)
        spread = (own - centre).T @ (own - centre) / len(own) + LEAST_SPREAD**2 * np.eye(3)
        off = pixels - centre
        far = ((off @ np.linalg.inv(spread)) * off).sum(-1)
        scale = np.log(len(own) / len(known)) - np.linalg.slogdet(spread)[1] / 2
        likely.append(scale - far / 2)
    return -np.logaddexp.reduce(likely, axis=0)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest region, its parts joined across gaps, without holes."""
    mask = ndimage.binary_opening(mask, iterations=1)
    joined = ndimage.binary_closing(np.pad(mask, GAP), iterations=GAP)[GAP:-GAP, GAP:-GAP]
    labels, count = ndimage.label(joined)
    if not count:
        return mask
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return ndimage.binary_fill_holes(labels == largest)


def _border(height: int, width: int) -> np.ndarray:
    """The pixels along the border: bool [height, width]."""
    wide = max(round(BORDER * min(height, width)), 1)
    border = np.ones((height, width), bool)
    border[wide : height - wide, wide : width - wide] = False
    return border
