"""A clean stop: SIGINT and SIGTERM are noted, and the run leaves when it is ready."""

from __future__ import annotations

import signal


class Signals:
    """Notes SIGINT and SIGTERM instead of dying; a second one does what it always does."""

    def __enter__(self) -> Signals:
        self.received: int | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame) -> None:
        self.received = number
        print(f"{signal.Signals(number).name}: saving after this step; once more to leave at once")
        signal.signal(number, self._before[number])

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
