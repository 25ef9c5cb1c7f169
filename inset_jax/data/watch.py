"""What the worker processes of a loader are at, and an end to those that hang.

A process that dies is seen by whoever waits for it; one that hangs while it lives is not. So each
leaves a note of the record that it reads or decodes, and where no note has changed for too long
while a batch is waited for, all processes of the loader are killed: a hang becomes a death.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

PARENT_CHECKED = 1.0  # seconds between two looks


class Notes:
    """A file a worker process, named by its number: the data set and the record, or nothing.

    Written in place, without a flush: the kernel keeps it when the process dies. The time of the
    last change is the process's last sign of life.
    """

    def __init__(self, folder: str):
        self._folder, self._file = folder, -1

    def __reduce__(self):
        return Notes, (self._folder,)

    def write(self, data_set: int, record: int) -> None:
        self._put(b"%-12d%-12d" % (data_set, record))

    def clear(self) -> None:
        self._put(b" " * 24)

    def begin(self, worker: int, workers: int) -> None:
        """What a new process calls first (Grain's `worker_init_fn`)."""
        self.clear()
        end_with_parent()

    def _put(self, words: bytes) -> None:
        if self._file < 0:
            path = os.path.join(self._folder, str(os.getpid()))
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.pwrite(self._file, words, 0)

    def _files(self) -> list[os.DirEntry]:
        """Files of the processes, the one that has been silent for longest first."""
        with os.scandir(self._folder) as found:
            return sorted(found, key=lambda file: (file.stat().st_mtime, file.name))

    def last_sign(self) -> float:
        """Returns when a process last wrote, in seconds of `time.time`; 0.0 if none ever did."""
        return max((file.stat().st_mtime for file in self._files()), default=0.0)

    def take(self) -> dict[int, tuple[int, int]]:
        """Returns what busy processes were at, by their numbers, and forgets it.

        The one that has been silent for longest comes first.
        """
        result = {}
        for file in self._files():
            with open(file.path, "rb") as stream:
                words = stream.read().split()
            os.remove(file.path)
            if len(words) == 2:
                result[int(file.name)] = (int(words[0]), int(words[1]))
        return result

    def kill(self) -> int:
        """Kills all processes that have written; returns their number."""
        files = self._files()
        for file in files:
            try:
                os.kill(int(file.name), signal.SIGKILL)
            except ProcessLookupError:
                pass
        return len(files)


def end_with_parent() -> None:
    """Lets this process end when its parent is gone: one that is killed cannot tell its workers."""
    parent = multiprocessing.parent_process()  # None where this was started in another way
    number = parent.pid if parent else os.getppid()
    threading.Thread(target=_end_with, args=(number,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECKED)
    os._exit(1)


class Watch:
    """While entered, kills the processes behind some notes when all are silent for too long.

    Processes that have not written yet are still starting: they are waited for.
    """

    def __init__(self, notes: Notes, limit: float):
        """Args:
        limit: seconds; 0 watches nothing.
        """
        self._notes, self._limit = notes, limit
        self.has_killed = False

    def __enter__(self) -> Watch:
        self._began, self._over = time.time(), threading.Event()
        if self._limit:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        if self._limit:
            self._thread.join()

    def _look(self) -> None:
        rest = self._limit
        while not self._over.wait(rest):
            rest = max(self._began, self._notes.last_sign()) + self._limit - time.time()
            if rest > 0:
                continue
            self.has_killed = self._notes.kill() > 0
            if self.has_killed:
                return
            rest = self._limit
