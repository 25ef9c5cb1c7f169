"""What can be wrong with either end of a conversion, told apart for exit codes."""

from __future__ import annotations

import os
from collections.abc import Mapping

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


class Unlike(ValueError):
    """The tensors are not those of the model."""

    def __init__(self, text: str, tensors: Mapping[str, list[str]]):
        """`text` may name the first of many; `tensors` has all names by what is wrong with them."""
        super().__init__(text)
        self.tensors = tensors


def not_finite(broken: Mapping[str, int], where: str | os.PathLike) -> ValueError:
    """Returns the error that names every tensor with infinite numbers or none; counts by name."""
    lines = [f"  not finite: {name} ({counted(n, 'number')})" for name, n in broken.items()]
    first = f"{where}: {counted(len(broken), 'tensor')} not finite"
    return ValueError("\n".join([first, *lines]))


def counted(count: int, noun: str) -> str:
    """Returns "1 number", "2 numbers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def reason(error: BaseException) -> str:
    """The telling part of an error of the system, Orbax or TensorStore, in one line."""
    text = " ".join(str(error).split())
    for known in TELLING:
        if known.lower() in text.lower():
            return known
    return f"{type(error).__name__}: {text[:300]}"
