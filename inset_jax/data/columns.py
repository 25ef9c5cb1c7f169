"""Columns of numbers and words in a folder: written whole or not at all, read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

META = "meta.json"


class Strings(Sequence):
    """Many strings without an object for each: UTF-8 bytes and where each one ends."""

    def __init__(self, data: np.ndarray, end: np.ndarray):
        """data: uint8 [byte]; end: int64 [string]."""
        self.data, self.end = data, end

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        encoded = [string.encode() for string in strings]
        end = np.cumsum([len(own) for own in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), end)

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start = self.end[number - 1] if number else 0
        return self.data[start : self.end[number]].tobytes().decode()

    @classmethod
    def join(cls, parts: Sequence[Strings]) -> Strings:
        before = np.cumsum([0, *(len(part.data) for part in parts)])
        ends = [part.end + start for part, start in zip(parts, before, strict=False)]
        return cls(np.concatenate([part.data for part in parts]), np.concatenate(ends))

    def take(self, numbers: np.ndarray) -> Strings:
        return Strings.of(self[int(number)] for number in numbers)


class Labels(Sequence):
    """Strings of which few are distinct: a code for each."""

    def __init__(self, names: Sequence[str], code: np.ndarray):
        self.names, self.code = list(names), code

    @classmethod
    def of(cls, strings: Iterable[str]) -> Labels:
        numbers: dict[str, int] = {}
        code = [numbers.setdefault(string, len(numbers)) for string in strings]
        return cls(list(numbers), np.array(code, np.int32))

    def __len__(self) -> int:
        return len(self.code)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self.names[code] for code in self.code[number]]
        return self.names[self.code[number]]

    @classmethod
    def join(cls, parts: Sequence[Labels]) -> Labels:
        names = list(dict.fromkeys(name for part in parts for name in part.names))
        codes = [
            np.array([names.index(name) for name in part.names], np.int32)[part.code]
            for part in parts
        ]
        return cls(names, np.concatenate(codes))

    def take(self, numbers: np.ndarray) -> Labels:
        return Labels(self.names, self.code[numbers])


def save(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping) -> None:
    """Writes arrays and JSON; where another process was faster, its folder stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)
        (scratch / META).write_text(json.dumps(meta))
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except OSError:
        if not (folder / META).exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict] | None:
    """Returns arrays (memory maps) and JSON of a folder that `save` wrote; None if there is none.

    Raises:
      ValueError: the folder is damaged.
    """
    if not (folder / META).exists():
        return None
    try:
        # as plain arrays over the maps: every slice of a `np.memmap` costs microseconds
        files = folder.glob("*.npy")
        arrays = {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in files}
        return arrays, json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: damaged ({error}); remove it, it is made anew") from error


def digest(*parts) -> str:
    """Returns a name for what the parts (plain values) say: 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
