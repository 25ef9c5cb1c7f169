"""Work that may be interrupted at any moment: a marker that readers refuse, and a journal.

    <place>/unfinished.json    what is being written here, from what, with which options
    <place>/unfinished/...     the journal: which parts are written and verified

The marker is the first file written and the last removed. The same work started again reads the
journal and goes on; other work is refused.
"""

from __future__ import annotations

import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from inset_jax.checkpoint import errors

if TYPE_CHECKING:  # TensorStore is not needed to refuse
    from inset_jax.checkpoint.place import Place

MARKER = "unfinished.json"
JOURNAL = "unfinished/"
LOCK = "lock"
FLUSH_SECONDS = 1.0  # what is done for longer than this is in the journal


def refuse(path: str | os.PathLike) -> None:
    """Refuses a folder, or a part of one, whose writing has not come to its end.

    Raises:
      ValueError: says so, and how to finish.
    """
    if "://" in os.fspath(path):
        from etils import epath

        path = epath.Path(path)
    else:
        path = pathlib.Path(path)
    for folder in (path, path.parent):
        if (folder / MARKER).exists():
            raise ValueError(
                f"{folder}: is unfinished: a conversion was interrupted or is still running; give "
                f"the same command again to finish it ({MARKER} says which)"
            )


class Journal:
    """What is done of one piece of work. Its methods may be called from several threads."""

    def __init__(
        self, target: Place, work: Mapping[str, Any], sync: Callable[[], None] = lambda: None
    ):
        """Begins the work, or goes on with it.

        Args:
          target: where the work writes; empty, or left by the same work.
          work: what JSON can hold; equal for equal work.
          sync: called before parts enter the journal: brings them to the disk.

        Raises:
          Unwritable: the place holds something else, or cannot be written, or is in use.
        """
        self.target = target
        self.done: dict[str, Any] = {}
        self._sync, self._new, self._guard = sync, {}, threading.Lock()
        self._flushed, self._lock = time.monotonic(), None
        work = json.loads(json.dumps(work))
        found = target.read(MARKER)
        if found is None:
            self._begin(work)
        elif (there := json.loads(found)["work"]) != work:
            unlike = [key for key in {**there, **work} if there.get(key) != work.get(key)]
            raise errors.Unwritable(
                f"{target.name}: holds the unfinished result of other work (different: "
                f"{', '.join(unlike)}; see {MARKER} there): remove it or choose another folder"
            )
        self._take_lock()
        for key in target.keys(JOURNAL):
            if key != JOURNAL + LOCK:
                self.done |= json.loads(target.read(key))
        self._number = len(target.keys(JOURNAL))
        self.found = len(self.done)  # parts that an earlier run has done

    def add(self, part: str, entry: Any) -> None:
        """Notes a part that is written and verified."""
        with self._guard:
            self._new[part] = entry
            if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flush()

    def flush(self) -> None:
        """Brings the journal to the disk."""
        with self._guard:
            self._flush()

    def close(self) -> None:
        """Ends the work: from now on the place is what it says."""
        self.target.remove(JOURNAL)
        if self.target.local is not None and (folder := self.target.local / JOURNAL).is_dir():
            folder.rmdir()
        self.target.remove(MARKER)
        self.release()

    def release(self) -> None:
        """Lets others work here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self, work: dict) -> None:
        if self.target.local is not None and self.target.local.is_file():
            raise errors.Unwritable(f"{self.target.name}: is a file; choose a new folder")
        if there := self.target.keys():
            raise errors.Unwritable(
                f"{self.target.name}: is not empty (it holds {there[0]}); choose a new folder"
            )
        words = "not complete: give the same command again to finish it, or remove this folder"
        text = json.dumps({"note": words, "work": work}, indent=1)
        self.target.write(MARKER, text.encode())

    def _flush(self) -> None:
        if self._new:
            self._sync()
            self._number += 1
            key = f"{JOURNAL}{self._number:06}.json"
            self.target.write(key, json.dumps(self._new).encode())
            self.done |= self._new
            self._new = {}
        self._flushed = time.monotonic()

    def _take_lock(self) -> None:
        """Keeps a second process out, where the system can (the lock ends with the process)."""
        if self.target.local is None:
            return
        try:
            import fcntl
        except ImportError:
            return
        path = self.target.local / JOURNAL / LOCK
        path.parent.mkdir(exist_ok=True)
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise errors.Unwritable(f"{self.target.name}: another process writes here") from error
