"""How far a long piece of work is: bytes, rate, time left."""

from __future__ import annotations

import json
import sys
import threading
import time

TERMINAL_SECONDS, LINE_SECONDS = 0.2, 10.0  # between two reports, on a terminal and elsewhere


class Progress:
    """Counts bytes and tells about them on standard error."""

    def __init__(self, what: str, total: int, as_json: bool = False, quiet: bool = False):
        """`total` is in bytes; as_json: one JSON object a report instead of words."""
        self.what, self.total, self.done = what, total, 0
        self.skipped = 0  # bytes of `total` that an earlier run has done
        self._json, self._quiet = as_json, quiet
        self._terminal = sys.stderr.isatty() and not as_json
        self._began = self._told = time.monotonic()
        self._guard = threading.Lock()

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        with self._guard:
            self.done += count
            wait = TERMINAL_SECONDS if self._terminal else LINE_SECONDS
            if not self._quiet and time.monotonic() - self._told >= wait:
                self._told = time.monotonic()
                self._tell()

    def skip(self, count: int) -> None:
        """`count` bytes need not be done again."""
        with self._guard:
            self.skipped += count

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Bytes a second so far."""
        return self.done / max(self.seconds, 1e-9)

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._terminal and not self._quiet and self._told > self._began:
            print(file=sys.stderr)

    def _tell(self) -> None:
        at = self.done + self.skipped
        left = max(self.total - at, 0) / max(self.rate, 1.0)
        if self._json:
            values = {
                "what": self.what,
                "bytes": at,
                "total": self.total,
                "bytes_per_second": round(self.rate),
                "seconds_left": round(left, 1),
            }
            print(json.dumps(values), file=sys.stderr, flush=True)
            return
        text = (
            f"{self.what} {size(at)} of {size(self.total)} ({at / max(self.total, 1):.0%}), "
            f"{size(self.rate)}/s, {clock(left)} left"
        )
        end = "" if self._terminal else "\n"
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Returns a number of bytes in words: "1.09 GB" (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def clock(seconds: float) -> str:
    """Returns a duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
