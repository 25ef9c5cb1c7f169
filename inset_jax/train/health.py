"""Signs of life of one process: a heartbeat file, and all stacks when no step comes to its end.

    <workdir>/health/<process>.json    {"step", "time", "host", "pid"} of the last step
    <workdir>/health/<process>.stacks  stacks of all threads, each time the watchdog barked

A thread writes both, so that a slow disk holds up no step. Where it cannot run itself, because some
native code holds Python's lock for ever, faulthandler's own timer writes the stacks.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import socket
import sys
import threading
import time

FOLDER = "health"
EVERY = 5.0  # seconds between two looks of the thread
GRACE = 60.0  # seconds that the thread itself may be late


def forget_gone(workdir: pathlib.Path, count: int) -> None:
    """Removes signs of life of processes that a run of `count` has no longer; stacks stay."""
    for path in (workdir / FOLDER).glob("*.json"):
        if path.stem.isdigit() and int(path.stem) >= count:
            path.unlink(missing_ok=True)


class Health:
    """A context manager around the steps of a run."""

    def __init__(self, workdir: pathlib.Path, process: int, minutes: float, every: float = EVERY):
        """Args:
        minutes: without a step, until stacks are written, and again after as many; 0: never.
        """
        self._folder, self._process = workdir / FOLDER, process
        self._limit, self._every = minutes * 60, every
        self._last, self._written = (-1, time.time()), -1  # step, and when it came to its end
        self._alive = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)

    def __enter__(self) -> Health:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stacks = open(self._folder / f"{self._process}.stacks", "a", encoding="utf-8")
        self._alive = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()

    def beat(self, step: int | None = None) -> None:
        """Says that a step has come to its end, or that something else than a step has."""
        self._alive = time.monotonic()
        if step is not None:
            self._last = step, time.time()

    def _watch(self) -> None:
        while True:
            ended = self._end.wait(self._every)
            self._write()
            if ended:
                return
            if self._limit:
                if time.monotonic() - self._alive > self._limit:
                    self._bark()
                late = self._limit + GRACE
                faulthandler.dump_traceback_later(late, repeat=True, file=self._stacks)

    def _write(self) -> None:
        step, at = self._last
        if step == self._written:
            return
        told = {"step": step, "time": at, "host": socket.gethostname(), "pid": os.getpid()}
        path = self._folder / f"{self._process}.json"
        beside = path.with_suffix(".part")
        try:
            beside.write_text(json.dumps(told) + "\n")
            os.replace(beside, path)
        except OSError as error:  # a full disk is said by what cannot do without it
            print(f"{path}: no heartbeat: {error}", file=sys.stderr)
        self._written = step

    def _bark(self) -> None:
        """Writes the stacks of all threads, and starts to wait anew."""
        quiet = time.monotonic() - self._alive
        self._alive = time.monotonic()
        told = (
            f"no step has come to its end for {quiet / 60:.1f} minutes after step {self._last[0]}, "
            f"process {self._process} on {socket.gethostname()}, "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}; stacks of all threads:"
        )
        for file in (self._stacks, sys.stderr):
            print(told, file=file, flush=True)
            try:
                faulthandler.dump_traceback(file, all_threads=True)
            except (AttributeError, OSError, ValueError):  # a file that has no descriptor
                continue
