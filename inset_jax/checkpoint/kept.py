"""Which checkpoints of a run stay when a newer one is there."""

from __future__ import annotations


class Kept:
    """Called by Orbax (its PreservationPolicy) before it removes others."""

    def __init__(self, newest: int, every: int = 0):
        """Args:
        newest: how many stay in any case.
        every: steps of whose multiples all stay; 0: of none.
        """
        self.newest, self.every = newest, every
        self.best: tuple[int, float] | None = None  # step, held-out loss

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        best = self.best[0] if self.best else None
        first = len(checkpoints) - self.newest
        is_due = lambda step: self.every > 0 and step % self.every == 0
        return [
            n >= first or one.step == best or is_due(one.step) for n, one in enumerate(checkpoints)
        ]
