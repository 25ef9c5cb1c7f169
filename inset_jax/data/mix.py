"""Which example comes next, before packing: data sets by weight, epochs in random order.

Position n of the sequence is a function of (sizes, weights, seed, n). After any number of examples
each data set is within one example of its share.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from inset_jax.data.keyed import keyed

BLOCK = 1 << 12  # positions whose data sets are worked out at a time
ORDERS = 8  # random orders of epochs that are kept


class Draws(NamedTuple):
    """Examples, a row each."""

    data_set: np.ndarray  # int32
    example: np.ndarray  # int32, row of its index
    epoch: np.ndarray  # int32


class Mix:
    """The sequence of examples of some data sets."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, first_epoch=0):
        """Args:
        sizes: examples in each data set.
        weights: one a data set; () means in proportion to size.
        first_epoch: number of the first epoch of every data set.
        """
        self._arguments = (sizes, weights, seed, first_epoch)
        self._turns = Turns(integer_weights(weights or sizes))
        self._order = functools.lru_cache(ORDERS)(self._shuffle)

    def __reduce__(self):  # without what is kept: a worker process works that out for itself
        return Mix, self._arguments

    def _shuffle(self, data_set: int, epoch: int) -> np.ndarray:
        # by its place in the config: moving a folder must not change the sequence
        sizes, _, seed, _ = self._arguments
        random = keyed("order", seed, "", epoch, data_set)
        return random.permutation(sizes[data_set]).astype(np.int32)

    def draws(self, first: int, count: int) -> Draws:
        """Returns the examples at positions first, ..., first + count - 1."""
        data_set, before = self._turns.between(first, count)
        example, epoch = np.zeros(count, np.int32), np.zeros(count, np.int32)
        sizes, _, _, first_epoch = self._arguments
        for number, size in enumerate(sizes):
            own = np.flatnonzero(data_set == number)
            rounds, place = np.divmod(before[number] + np.arange(len(own)), size)
            for turn in np.unique(rounds):
                these = rounds == turn
                chosen = int(turn) + first_epoch
                example[own[these]] = self._order(number, chosen)[place[these]]
                epoch[own[these]] = chosen
        return Draws(data_set, example, epoch)


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Returns the smallest whole numbers in the proportion of the weights as they are written."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    return [number // math.gcd(*whole) for number in whole]


class Turns:
    """Whose turn it is: a sequence of numbers in which every prefix keeps to the weights.

    Of those whose next turn is not too early, the one whose turn is due first (Tijdeman's rule), so
    after any number of turns each has had its share, less or more than one. In whole numbers, so
    that nothing drifts; the sequence repeats after sum(weights) turns.
    """

    def __init__(self, weights: Sequence[int]):
        self._weights = list(weights)
        self._round = sum(weights)
        self._taken = [0] * len(weights)  # at the end of what is known
        self._known = 0
        self._blocks: list[np.ndarray] = []  # int32 [at most BLOCK]
        self._before: list[list[int]] = []  # turns of each before a block

    def between(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns int32 [count], whose turns they are, and int64 [weight], turns before them."""
        turn, place = divmod(first, self._round)
        before = turn * np.array(self._weights, np.int64)
        parts, missing = [], count
        self._extend(min(place, self._round))
        block, inside = divmod(place, BLOCK)
        if inside or block < len(self._blocks):
            head = self._blocks[block][:inside] if inside else np.zeros(0, np.int32)
            before = before + self._before[block]
            before = before + np.bincount(head, minlength=len(self._weights))
        elif place:
            before = before + self._taken
        while missing:
            end = min(place + missing, self._round)
            self._extend(end)
            parts.append(self._slice(place, end))
            missing -= end - place
            place = 0
        return np.concatenate(parts) if parts else np.zeros(0, np.int32), before

    def _slice(self, start: int, end: int) -> np.ndarray:
        blocks = self._blocks[start // BLOCK : -(-end // BLOCK)]
        offset = start // BLOCK * BLOCK
        return np.concatenate(blocks)[start - offset : end - offset]

    def _extend(self, end: int) -> None:
        while self._known < end:
            self._before.append(list(self._taken))
            self._blocks.append(self._turns(min(BLOCK, self._round - self._known)))

    def _turns(self, count: int) -> np.ndarray:
        """Works out the next turns. In integers: `due` and `timely` scaled by 2 (users - 1)."""
        used = [n for n, weight in enumerate(self._weights) if weight]
        if len(used) == 1:
            self._known += count
            self._taken[used[0]] += count
            return np.full(count, used[0], np.int32)
        twice, whole = 2 * len(used) - 2, self._round
        result = np.empty(count, np.int32)
        taken = self._taken
        for place in range(count):
            now = (self._known + 1) * twice
            best, best_due, best_weight = -1, 0, 1
            for number in used:
                weight = self._weights[number]
                if weight * now - taken[number] * whole * twice < whole:
                    continue  # too early
                due = (taken[number] + 1) * twice - 1  # over the weight
                if best < 0 or due * best_weight < best_due * weight:
                    best, best_due, best_weight = number, due, weight
            taken[best] += 1
            self._known += 1
            result[place] = best
        return result
