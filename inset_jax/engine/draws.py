"""Random choices of one scene: a sequence that its key alone decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Choices in order, each from one number in [0, 1).

    Python's generator is used, not NumPy's: a scene takes a hundred single numbers, which cost 0.1
    us each here and 1 us there. Only `random()` of it is used, which is the same in all versions.
    """

    def __init__(self, *key):
        self._next = random.Random("/".join(map(str, key))).random

    def chance(self, share: float) -> bool:
        """True in this share of the cases."""
        return self._next() < share

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._next() * (high - low + 1))

    def between(self, low: float, high: float) -> float:
        return low + self._next() * (high - low)

    def sign(self) -> int:
        return 1 if self._next() < 0.5 else -1

    def pick(self, some: Sequence[T]) -> T:
        return some[int(self._next() * len(some))]

    def weighted(self, some: Sequence[T], weights: Sequence[float]) -> T:
        """One of some things; the weights need not add up to 1."""
        at = self._next() * sum(weights)
        for one, weight in zip(some, weights, strict=True):
            at -= weight
            if at < 0:
                return one
        return [one for one, weight in zip(some, weights, strict=True) if weight][-1]

    def order(self, some: Sequence[T]) -> list[T]:
        """All of them in random order."""
        rest = list(some)
        return [rest.pop(int(self._next() * len(rest))) for _ in range(len(rest))]
