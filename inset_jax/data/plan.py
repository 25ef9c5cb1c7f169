"""The plan: which examples make up pack 0, 1, 2, ... of a run.

It works from lengths alone (`Index`), and is a function of the index and the seed: any process
that asks for pack n gets the same answer. Examples come in epochs, in a new order each; data sets
are mixed by weight; condition dropout is drawn before lengths are measured; no example is split,
and the oldest one waiting always opens the next pack, so none waits forever.

This planner is simple: it plans in sequence from pack 0 and keeps what it has planned. `Index`,
`Plan.pack` and `Plan.skipped` are the interface that loaders rely on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.config import CapacityConfig, Config, DropoutConfig
from inset_jax.data import dropout
from inset_jax.data.index import COLUMNS, Index
from inset_jax.data.keyed import keyed

WINDOW = 256  # examples that wait to be placed


class Draw(NamedTuple):
    """One example in a pack."""

    data_set: int
    example: int  # row of its index
    epoch: int


class Plan:
    """Packs of examples by number; endless, or one pass over all examples."""

    def __init__(
        self,
        indexes: Sequence[Index],
        config: Config,
        endless: bool = True,
        drops: DropoutConfig | None = None,
    ):
        """Args:
        indexes: one a data set.
        endless: epoch after epoch, or each example once.
        drops: condition dropout; None drops nothing.
        """
        self.indexes = list(indexes)
        self._seed, self._drops, self._endless = config.run.seed, drops, endless
        self._capacity = capacity_row(config.data.capacity)
        sizes = np.array([len(index) for index in indexes], float)
        weights = np.array(config.data.weights if endless and config.data.weights else sizes, float)
        self._weights = weights / weights.sum()
        self._restart()

    @property
    def skipped(self) -> dict[str, dict[str, list[str]]]:
        """Data set -> reason -> ids of the examples that no pack will ever hold."""
        return {index.name: index.skipped for index in self.indexes if index.skipped}

    def pack(self, number: int) -> list[Draw]:
        """Returns the examples of a pack; [] beyond the end of a plan that is not endless."""
        with self._lock:
            while len(self._packs) <= number and not self._ended:
                pack = next(self._stream, None)
                if pack is None:
                    self._ended = True
                else:
                    self._packs.append(pack)
        return self._packs[number] if number < len(self._packs) else []

    def __len__(self) -> int:
        """Number of packs of a plan that is not endless."""
        assert not self._endless, "an endless plan has no length"
        while not self._ended:
            self.pack(len(self._packs))
        return len(self._packs)

    def dropped(self, draw: Draw) -> np.ndarray:
        """Returns which segments of a drawn example condition dropout removes: bool [segment]."""
        index = self.indexes[draw.data_set]
        rows = slice(*index.start[draw.example : draw.example + 2])
        if self._drops is None:
            return np.zeros(rows.stop - rows.start, bool)
        return dropout.draw(
            index.code[rows],
            index.opens[rows],
            self._drops,
            self._seed,
            index.ids[draw.example],
            draw.epoch,
        )

    def lengths(self, draw: Draw) -> np.ndarray:
        """Returns what a drawn example takes after dropout: int64 [COLUMNS].

        A dropped segment counts one und token, which the learned null token would take.
        """
        index = self.indexes[draw.data_set]
        rows = slice(*index.start[draw.example : draw.example + 2])
        gone = self.dropped(draw)
        total = index.tokens[rows][~gone].sum(axis=0)
        return np.array([total[0] + gone.sum(), *total[1:], 1], np.int64)

    def room(self, draws: Sequence[Draw]) -> np.ndarray:
        """Returns what is left of the capacities beside these examples: int64 [COLUMNS]."""
        return self._capacity - sum((self.lengths(draw) for draw in draws), np.zeros(5, np.int64))

    def _restart(self) -> None:
        self._packs: list[list[Draw]] = []
        self._ended = False
        self._stream = self._make()
        self._lock = threading.Lock()

    def __getstate__(self):  # a worker process plans for itself
        live = ("_packs", "_ended", "_stream", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in live}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._restart()

    def _draws(self) -> Iterator[Draw]:
        """The sequence of examples before packing: data sets by weight, epochs in random order."""
        sizes = [len(index) for index in self.indexes]
        taken = np.zeros(len(sizes), np.int64)
        orders: dict[int, np.ndarray] = {}
        total = 0
        while self._endless or total < sum(sizes):
            data_set = next_data_set(self._weights, taken, total)
            epoch, place = divmod(int(taken[data_set]), sizes[data_set])
            if place == 0:
                # by its place in the config: moving a folder must not change the sequence
                random = keyed("order", self._seed, "", epoch, data_set)
                orders[data_set] = random.permutation(sizes[data_set])
            yield Draw(data_set, int(orders[data_set][place]), epoch)
            taken[data_set] += 1
            total += 1

    def _make(self) -> Iterator[list[Draw]]:
        source = ((draw, self.lengths(draw)) for draw in self._draws())
        # no wider than an epoch: small data sets would else be seen in blocks of large and small
        window = min(WINDOW, sum(len(index) for index in self.indexes))
        yield from fill_packs(source, self._capacity, window)


def capacity_row(capacity: CapacityConfig) -> np.ndarray:
    """Returns the capacities in the order of COLUMNS: int64 [5]."""
    return np.array([getattr(capacity, name) for name in COLUMNS], np.int64)


def next_data_set(weights: np.ndarray, taken: np.ndarray, total: int) -> int:
    """Says which data set the next example is from, so that every prefix keeps to the weights.

    Of those whose next example is not too early, the one whose is due first (Tijdeman's rule):
    after any number of examples each data set is within one of its share.

    Args:
      weights: float [data set], sum 1.
      taken: int [data set], so far.
      total: their sum.
    """
    used = np.flatnonzero(weights > 0)
    if len(used) == 1:
        return int(used[0])
    slack = 1 / (2 * len(used) - 2)
    timely = weights[used] * (total + 1) - taken[used] >= slack - 1e-9
    due = (taken[used] + 1 - slack) / weights[used]
    return int(used[np.argmin(np.where(timely, due, np.inf))])


def fill_packs(
    source: Iterator[tuple[Draw, np.ndarray]], capacity: np.ndarray, window: int = WINDOW
) -> Iterator[list[Draw]]:
    """Packs a stream of examples: the oldest waiting one first, then whatever fits best.

    Best is what takes most, less what it unbalances the und and gen streams: a pack whose one
    stream is full can take nothing more.

    Args:
      source: examples and their lengths, each of which fits an empty pack.
      capacity: int64 [COLUMNS].
      window: how many examples wait to be chosen from.
    """
    waiting: list[Draw] = []
    lengths = np.zeros((0, len(capacity)), np.int64)
    share = 1 / np.maximum(capacity[:2], 1)
    while True:
        new = [pair for _, pair in zip(range(window - len(waiting)), source, strict=False)]
        if new:
            waiting += [draw for draw, _ in new]
            lengths = np.concatenate([lengths, [length for _, length in new]])
        if not waiting:
            return
        chosen, used = [0], lengths[0].copy()
        free = np.ones(len(waiting), bool)
        free[0] = False
        while True:
            fits = free & (lengths <= capacity - used).all(axis=1)
            if not fits.any():
                break
            after = (used[:2] + lengths[:, :2]) * share
            score = after.sum(axis=1) - 2 * abs(after[:, 0] - after[:, 1])
            best = int(np.argmax(np.where(fits, score, -np.inf)))
            chosen.append(best)
            used += lengths[best]
            free[best] = False
        yield [waiting[n] for n in chosen]
        waiting = [draw for draw, stays in zip(waiting, free, strict=True) if stays]
        lengths = lengths[free]
