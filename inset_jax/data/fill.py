"""Which of the waiting examples make up a pack: a small search, in NumPy.

The oldest waiting example opens a pack, so none waits forever. Of the rest, those that take most of
the two streams are tried first: `WIDTHS` alternatives for the next two picks, each completed by
the largest that still fits. The fullest pack wins.
"""

from __future__ import annotations

import numpy as np

WINDOW = 256  # examples that wait to be chosen from
WIDTHS = (12, 4)  # alternatives for the first picks after the oldest


def fill_packs(
    lengths: np.ndarray, capacity: np.ndarray, window: int = WINDOW, widths=WIDTHS
) -> np.ndarray:
    """Divides examples over packs.

    Args:
      lengths: int [example, column] in the order they come, each of which fits an empty pack; the
        first two columns are the und and gen streams, which are to be filled.
      capacity: int [column].
      window: how many examples wait to be chosen from.
      widths: alternatives tried for each of the first picks.

    Returns:
      int32 [example], the number of its pack.
    """
    lengths, room = _binding(lengths.astype(np.int32), capacity.astype(np.int32))
    assert (lengths <= room).all(), "an example that fits no pack"
    worth = (lengths[:, :2] / capacity[:2]).sum(axis=1)
    pack = np.full(len(lengths), -1, np.int32)
    waiting = np.arange(min(window, len(lengths)))  # oldest first
    coming, number = len(waiting), 0
    while len(waiting):
        # by worth, so that the first that fits is the best that fits
        order = np.argsort(-worth[waiting], kind="stable")
        oldest = int(np.flatnonzero(order == 0)[0])
        chosen = _best(lengths[waiting[order]], worth[waiting[order]], room, oldest, widths)
        taken = np.sort(order[chosen])
        pack[waiting[taken]] = number
        number += 1
        fresh = np.arange(coming, min(coming + len(taken), len(lengths)))
        coming += len(fresh)
        waiting = np.concatenate([np.delete(waiting, taken), fresh])
    return pack


def _binding(lengths: np.ndarray, capacity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out the columns that can never be the reason why an example does not fit."""
    keep = [0, 1]
    for column in range(2, lengths.shape[1]):
        for stream in (0, 1):
            inside = (lengths[:, column] <= lengths[:, stream]).all()
            if inside and capacity[column] >= capacity[stream]:
                break
        else:
            keep.append(column)
    return np.ascontiguousarray(lengths[:, keep]), capacity[keep]


def _best(
    lengths: np.ndarray, worth: np.ndarray, capacity: np.ndarray, oldest: int, widths
) -> np.ndarray:
    """Returns the rows of the fullest pack that the search finds: int [chosen].

    Args:
      lengths: int32 [waiting, column], the most worth first.
      oldest: the row that opens the pack.
    """
    columns = lengths.T
    room = (capacity - lengths[oldest])[None]  # [branch, column]
    free = np.ones((1, len(lengths)), bool)
    free[0, oldest] = False
    value = np.zeros(1)
    depth = 0
    while True:
        fits = free.copy()
        for column, own in enumerate(columns):
            fits &= own <= room[:, column, None]
        width = widths[depth] if depth < len(widths) else 1
        branch, row = _first(fits, width)
        if not len(branch):
            break
        done = np.setdiff1d(np.arange(len(room)), branch)
        if len(done):  # branches that are full stay only if they may win
            best = done[np.argmax(value[done])]
            branch, row = np.append(branch, best), np.append(row, -1)
        grows = row >= 0
        room, free, value = room[branch], free[branch], value[branch]
        room[grows] -= lengths[row[grows]]
        value[grows] += worth[row[grows]]
        free[np.flatnonzero(grows), row[grows]] = False
        depth += 1
    return np.flatnonzero(~free[np.argmax(value)])


def _first(fits: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row, column) of the first `width` true entries of each row of a bool matrix."""
    rows, places = [], []
    every = np.arange(len(fits))
    for turn in range(width):
        place = fits.argmax(axis=1)
        found = fits[every, place]
        rows.append(every[found])
        places.append(place[found])
        if turn + 1 < width:
            fits[every, place] = False
    return np.concatenate(rows), np.concatenate(places)
