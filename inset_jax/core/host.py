"""The process on its host: the memory that it takes and keeps, and how it is ended."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import threading
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tells malloc to keep freed memory for the next request; for processes that compute on CPU.

    XLA allocates a step's buffers anew every time. By default glibc maps and unmaps each large one,
    and the kernel then clears every page again at first touch: a third of the time of a small
    model's step (docs/lab_log.md). The process's memory stays at its peak instead.

    Returns:
      whether the C library took the settings; others than glibc do not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


def status(end: KeyboardInterrupt | Terminated) -> int:
    """The exit status of a command that a signal has ended, as shells count it."""
    return 128 + (signal.SIGTERM if isinstance(end, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def raising_sigterm() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread, so that processes which a command has started
    are ended on the way out. Changes nothing in other threads, or where somebody handles it. Python
    sees the signal between two bytecodes, so a long compile ends first, as with Ctrl-C."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait for the end of the block: a process that is started in it is known by
    then to whoever ends it. For the main thread; elsewhere they never come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    note = lambda number, frame: came.append(number)
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _terminate(number: int, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the way out short
    raise Terminated
