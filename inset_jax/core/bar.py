"""How far a command is, on the terminal."""

from __future__ import annotations

import sys


class Bar:
    """A line on the terminal that says how far the work is; silent where nobody looks."""

    WIDTH = 30

    def __init__(self, shows: bool):
        self.shows = shows and sys.stderr.isatty()
        self.drawn = False

    def __call__(self, what: str, done: int, count: int) -> None:
        """Shows `done` of `count` steps of `what`."""
        if self.shows:
            filled = self.WIDTH * done // count
            line = "#" * filled + "." * (self.WIDTH - filled)
            print(f"\r{what} [{line}] {done}/{count}", end="", file=sys.stderr, flush=True)
            self.drawn = True

    def close(self) -> None:
        """Ends the line."""
        if self.drawn:
            print(file=sys.stderr)
