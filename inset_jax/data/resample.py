"""PIL's antialiased bicubic for pictures of three colours, equal to the byte, by Numba.

PIL goes over lines and over columns, in integers with 22 binary places, and rounds to bytes after
each; a pixel at a time. The same sums are made here for many pixels at once: all columns of a
line, and 16 lines that are first laid on their side. Needs Numba, so nobody imports this but
`image.resize_to`, which does without where it is missing.
"""

from __future__ import annotations

import functools
import threading

import numba
import numpy as np
import PIL
from numba import types, uintp

COLUMNS_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # sometimes; found by trying sizes
PLACES = 22  # binary, of a weight
HALF = 1 << (PLACES - 1)
KEPT = 2**22  # pixels a thread keeps room for, twice
SIDE = 16  # pixels of the tiles that are laid on their side
_BYTES = types.Array(types.uint8, 2, "C", readonly=True)
_PIXELS = types.Array(types.uint32, 2, "C", readonly=True)
_WORDS = types.Array(types.uint32, 1, "C", readonly=True)
_NUMBERS = types.Array(types.int32, 1, "C", readonly=True)
_WEIGHTS = types.Array(types.int32, 2, "C", readonly=True)


def covers(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Whether `bicubic` can be asked; threads of pixels, in whose order PILs differ, are PIL's."""
    return min(width, height, to_width, to_height) >= SIDE and height <= 100 * width


def bicubic(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes uint8 [H, W, 4], of which the fourth is ignored, to uint8 [height, width, 3].

    Not for what has that size.
    """
    rows, columns = pixels.shape[:2]
    found = pixels.view(np.uint32)[..., 0]
    ways = [(_by_line, columns, width), (_by_column, rows, height)]
    # where that makes fewer lines for the other way, says PIL 13
    if COLUMNS_FIRST and height < rows and rows - height > 2 * (columns - width):
        ways.reverse()
    for way, side, to_side in ways:
        if side != to_side:
            fours, found = way(found, to_side)
    threes = np.empty(len(fours) // 4 * 3, np.uint32)
    _three(fours, threes)
    return threes.view(np.uint8)[: 3 * width * height].reshape(height, width, 3)


def _by_line(source: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    fours, to = _room("lines", len(source), width)
    _lines(source, *weights(source.shape[1], width), to)
    return fours, to


def _by_column(source: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    fours, to = _room("columns", height, source.shape[1])
    _columns(source.view(np.uint8), *weights(len(source), height), to.view(np.uint8))
    return fours, to


# new memory comes page by page, which takes as long as the work on it
_kept = threading.local()


def _room(use: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns groups of four pixels, uint32 [4 * groups], and the picture in them, [H, W]."""
    count = height * width
    room = -(-count // 4) * 4
    fours = getattr(_kept, use, None)
    if fours is None or len(fours) < room:
        fours = np.empty(room, np.uint32)
        if room <= KEPT:
            setattr(_kept, use, fours)
    return fours[:room], fours[:count].reshape(height, width)


@functools.lru_cache(256)
def weights(side: int, to_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what each new pixel of a line takes of the old ones.

    The number of the first old pixel and how many there are, int32 [to_side] each, and their
    weights in units of 2 ** -22: int32 [to_side, most].
    """
    scale = side / to_side
    wide = max(scale, 1.0)
    centre = (np.arange(to_side) + 0.5) * scale
    first = np.maximum(centre - 2 * wide + 0.5, 0).astype(np.int64)
    count = np.minimum((centre + 2 * wide + 0.5).astype(np.int64), side) - first
    place = np.arange(count.max())
    share = _cubic((place + first[:, None] - centre[:, None] + 0.5) * (1 / wide))
    share[place >= count[:, None]] = 0
    total = np.cumsum(share, axis=1)[:, -1:]  # one after the other, as PIL adds them
    share /= np.where(total == 0, 1, total)
    whole = np.trunc(share * (1 << PLACES) + np.where(share < 0, -0.5, 0.5))
    return first.astype(np.int32), count.astype(np.int32), whole.astype(np.int32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, in PIL's order of operations."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    return np.where(x < 1, inner, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0.0))


def _compiled(*arguments):
    """Compiles a function now, once a machine: kept beside this file or in the user's cache."""

    def compiled(function):
        make = functools.partial(numba.njit, types.void(*arguments), nogil=True)
        try:
            return make(cache=True)(function)
        except (RuntimeError, OSError):  # neither place can be written
            return make()(function)

    return compiled


@numba.njit(inline="always")
def _sum(values, first, count, weights, total):
    """Puts weighted rows of [rows, n] into [n]."""
    for i in range(len(total)):
        total[i] = HALF
    fours = count // 4 * 4
    for tap in range(0, fours, 4):
        a, b, c, d = weights[tap], weights[tap + 1], weights[tap + 2], weights[tap + 3]
        at = first + tap
        for i in range(len(total)):
            total[i] += (values[at, i] * a + values[at + 1, i] * b) + (
                values[at + 2, i] * c + values[at + 3, i] * d
            )
    for tap in range(fours, count):
        for i in range(len(total)):
            total[i] += values[first + tap, i] * weights[tap]


# Loops over SIDE with unsigned numbers, which need no look for negative ones, become moves of whole
# registers; a number of lines that is not known beforehand made them six times as slow.
@_compiled(_PIXELS, _NUMBERS, _NUMBERS, _WEIGHTS, types.uint32[:, ::1])
def _lines(source, first, count, weights, result):
    """[H, W] pixels of 4 bytes -> [H, w]."""
    (height, width), to_width = source.shape, len(first)
    block, done = np.empty((width, SIDE), np.uint32), np.empty((to_width, SIDE), np.uint32)
    values, found = block.view(np.uint8), done.view(np.uint8)
    total = np.empty(4 * SIDE, np.int32)
    for near in range(0, height, SIDE):
        top = uintp(min(near, height - SIDE))  # the last lines may be done twice
        for x in range(uintp(width)):
            for line in range(uintp(SIDE)):
                block[x, line] = source[top + line, x]
        for x in range(to_width):
            _sum(values, first[x], count[x], weights[x], total)
            for i in range(4 * SIDE):
                found[x, i] = min(max(total[i] >> PLACES, 0), 255)
        for near_x in range(0, to_width, SIDE):
            left = uintp(min(near_x, to_width - SIDE))
            for line in range(uintp(SIDE)):
                for x in range(uintp(SIDE)):
                    result[top + line, left + x] = done[left + x, line]


@_compiled(_BYTES, _NUMBERS, _NUMBERS, _WEIGHTS, types.uint8[:, ::1])
def _columns(source, first, count, weights, result):
    """[H, 4 * w] -> [h, 4 * w]."""
    total = np.empty(source.shape[1], np.int32)
    for y in range(len(first)):
        _sum(source, first[y], count[y], weights[y], total)
        for i in range(len(total)):
            result[y, i] = min(max(total[i] >> PLACES, 0), 255)


@_compiled(_WORDS, types.uint32[::1])
def _three(source, result):
    """Groups of four pixels, of 4 bytes each -> of 3 bytes each."""
    for i in range(len(source) // 4):
        a, b = source[4 * i], source[4 * i + 1]
        c, d = source[4 * i + 2], source[4 * i + 3]
        result[3 * i] = (a & 0xFFFFFF) | (b << 24)
        result[3 * i + 1] = ((b >> 8) & 0xFFFF) | (c << 16)
        result[3 * i + 2] = ((c >> 16) & 0xFF) | (d << 8)
