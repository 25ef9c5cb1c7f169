"""PIL's antialiased bicubic for pictures of three colours, equal to the byte, by Numba.

PIL goes over lines and then over columns, in integers with 22 binary places, and rounds to bytes
after each; a pixel at a time. The same sums are made here for many pixels at once: all columns of a
line, and 16 lines that are first laid on their side. Needs Numba, so nobody imports this but
`image.resize_to`, which does without where it is missing.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba import types, uintp

PLACES = 22  # binary, of a weight
HALF = 1 << (PLACES - 1)
SIDE = 16  # pixels of the tiles that are laid on their side
TAPS = 4  # a step of the inner loops; weights come in multiples of it
_BYTES = types.Array(types.uint8, 2, "C", readonly=True)
_PIXELS = types.Array(types.uint32, 2, "C", readonly=True)
_STARTS = types.Array(types.int32, 1, "C", readonly=True)
_WEIGHTS = types.Array(types.int32, 2, "C", readonly=True)


def covers(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Whether `bicubic` can be asked.

    PIL 12 goes over the columns first in a picture a hundred times as tall as it is wide, PIL 13
    where the height loses more than twice what the width loses: those are left to it, as are the
    smallest pictures and what has one way to go only.
    """
    shrinks = to_height < height
    columns_first = height > 100 * width or height - to_height > 2 * (width - to_width)
    two_ways = to_width != width and to_height != height
    return two_ways and min(width, height, to_width) >= SIDE and not (shrinks and columns_first)


def bicubic(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes uint8 [H, W, 4], of which the fourth is ignored, to uint8 [height, width, 3]."""
    rows, columns = pixels.shape[:2]
    middle = np.empty((rows + TAPS - 1, width), np.uint32)
    _lines(pixels.view(np.uint32)[..., 0], *weights(columns, width), middle)
    count = width * height
    groups = -(-count // 4)  # of four pixels
    fours, threes = np.empty(4 * groups, np.uint32), np.empty(3 * groups, np.uint32)
    found = fours[:count].reshape(height, width)
    _columns(middle.view(np.uint8), *weights(rows, height), found.view(np.uint8))
    _three(fours, threes)
    return threes.view(np.uint8)[: 3 * count].reshape(height, width, 3)


@functools.lru_cache(256)
def weights(side: int, to_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each new pixel of a line takes of the old ones.

    First the number of an old pixel, int32 [to_side]; then weights of it and of the next ones, in
    units of 2 ** -22: int32 [to_side, taps]. Those of pixels that are out of reach are 0.
    """
    scale = side / to_side
    wide = max(scale, 1.0)
    centre = (np.arange(to_side) + 0.5) * scale
    first = np.maximum(centre - 2 * wide + 0.5, 0).astype(np.int64)
    end = np.minimum((centre + 2 * wide + 0.5).astype(np.int64), side)
    taps = -(-int((end - first).max()) // TAPS) * TAPS
    start = np.minimum(first, max(side - taps, 0))
    old = start[:, None] + np.arange(taps)
    share = _cubic((old - centre[:, None] + 0.5) * (1 / wide))
    share[(old < first[:, None]) | (old >= end[:, None])] = 0
    total = np.cumsum(share, axis=1)[:, -1:]  # one after the other, as PIL adds them
    share /= np.where(total == 0, 1, total)
    whole = np.trunc(share * (1 << PLACES) + np.where(share < 0, -0.5, 0.5))
    return start.astype(np.int32), whole.astype(np.int32)


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


# Loops over SIDE with unsigned numbers, which need no look for negative ones, become moves of whole
# registers; a number of lines that is not known beforehand made them six times as slow.
@_compiled(_PIXELS, _STARTS, _WEIGHTS, types.uint32[:, ::1])
def _lines(source, start, weights, result):
    """[H, W] pixels of 4 bytes -> [H or more, w]."""
    (height, width), to_width = source.shape, len(start)
    block = np.zeros((width + TAPS - 1, SIDE), np.uint32)  # with pixels for weights of 0
    done = np.empty((to_width, SIDE), np.uint32)
    values, found = block.view(np.uint8), done.view(np.uint8)
    total = np.empty(4 * SIDE, np.int32)
    for near in range(0, height, SIDE):
        top = uintp(min(near, height - SIDE))  # the last lines may be done twice
        for x in range(uintp(width)):
            for line in range(uintp(SIDE)):
                block[x, line] = source[top + line, x]
        for x in range(to_width):
            for i in range(4 * SIDE):
                total[i] = HALF
            for tap in range(0, weights.shape[1], TAPS):
                a, b = weights[x, tap], weights[x, tap + 1]
                c, d = weights[x, tap + 2], weights[x, tap + 3]
                at = start[x] + tap
                for i in range(4 * SIDE):
                    total[i] += (values[at, i] * a + values[at + 1, i] * b) + (
                        values[at + 2, i] * c + values[at + 3, i] * d
                    )
            for i in range(4 * SIDE):
                found[x, i] = min(max(total[i] >> PLACES, 0), 255)
        for near_x in range(0, to_width, SIDE):
            left = uintp(min(near_x, to_width - SIDE))
            for line in range(uintp(SIDE)):
                for x in range(uintp(SIDE)):
                    result[top + line, left + x] = done[left + x, line]


@_compiled(_BYTES, _STARTS, _WEIGHTS, types.uint8[:, ::1])
def _columns(source, start, weights, result):
    """[H or more, 4 * w] -> [h, 4 * w]."""
    total = np.empty(source.shape[1], np.int32)
    for y in range(len(start)):
        for i in range(len(total)):
            total[i] = HALF
        for tap in range(0, weights.shape[1], TAPS):
            a, b = weights[y, tap], weights[y, tap + 1]
            c, d = weights[y, tap + 2], weights[y, tap + 3]
            at = start[y] + tap
            for i in range(len(total)):
                total[i] += (source[at, i] * a + source[at + 1, i] * b) + (
                    source[at + 2, i] * c + source[at + 3, i] * d
                )
        for i in range(len(total)):
            result[y, i] = min(max(total[i] >> PLACES, 0), 255)


@_compiled(types.uint32[::1], types.uint32[::1])
def _three(source, result):
    """Groups of four pixels, of 4 bytes each -> of 3 bytes each."""
    for i in range(len(source) // 4):
        a, b = source[4 * i], source[4 * i + 1]
        c, d = source[4 * i + 2], source[4 * i + 3]
        result[3 * i] = (a & 0xFFFFFF) | (b << 24)
        result[3 * i + 1] = ((b >> 8) & 0xFFFF) | (c << 16)
        result[3 * i + 2] = ((c >> 16) & 0xFF) | (d << 8)
