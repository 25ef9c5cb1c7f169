"""The process on its host: the memory that it takes and keeps."""

from __future__ import annotations

import ctypes
import resource

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
