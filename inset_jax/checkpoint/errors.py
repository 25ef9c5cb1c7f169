"""What can be wrong with either end of a conversion, told apart for exit codes."""

from __future__ import annotations

TELLING = (
    "No space left on device",
    "File too large",
    "Permission denied",
    "Read-only file system",
    "Quota",
)


class Damaged(ValueError):
    """A file is not what it says: cut short, changed on the way, or of another hash."""


class Unwritable(ValueError):
    """The destination cannot take what is to be written."""


def reason(error: BaseException) -> str:
    """The telling part of an error of the system, Orbax or TensorStore, in one line."""
    text = " ".join(str(error).split())
    for known in TELLING:
        if known.lower() in text.lower():
            return known
    return f"{type(error).__name__}: {text[:300]}"
