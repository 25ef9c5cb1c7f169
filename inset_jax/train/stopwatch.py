"""Where the wall time of a run goes: every second belongs to one kind.

Before the first step the kinds are its phases (`START`), each with a line on the terminal; from
then on "data" (waiting for the loader), "step" (one that counted: encoding pictures without stored
latents, putting packs onto the devices, computing), "bad" (one that did not), "save", "held_out"
and "pictures".
"""

from __future__ import annotations

import collections
import time

START = ("hosts", "mesh", "restore", "batch", "compile", "first")


class Stopwatch:
    """Counts seconds by kind; there is always exactly one lap on the way."""

    def __init__(self):
        self.began = self._mark = time.monotonic()
        self.seconds: collections.Counter[str] = collections.Counter()

    def lap(self, kind: str) -> float:
        """Ends the lap on the way, as one of this kind; returns its seconds."""
        now = time.monotonic()
        lasted, self._mark = now - self._mark, now
        self.seconds[kind] += lasted
        return lasted

    def phase(self, kind: str, told: str) -> None:
        """Ends a phase of the start and says so."""
        assert kind in START, kind
        print(f"start: {told}, {self.lap(kind):.1f} s", flush=True)

    def to_first_step(self) -> float:
        """Seconds from the start of the command to the end of the first step."""
        return sum(self.seconds[kind] for kind in START)
