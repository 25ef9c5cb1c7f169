"""One pass over the source files in the order of their bytes: each is read and hashed once."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from inset_jax.checkpoint import hashes, tensors
from inset_jax.checkpoint.progress import Progress


class Piece(NamedTuple):
    """Some rows of one tensor."""

    name: str
    start: int
    rows: np.ndarray
    is_last: bool


class Sweep(NamedTuple):
    """The pass, as an iterator of pieces."""

    source: tensors.Tensors
    rows: Mapping[str, int]  # tensor -> rows at once; tensors that are not in it are hashed alone
    known: Mapping[pathlib.Path, str]  # file -> SHA-256, where it need not be computed again
    told: Callable[[pathlib.Path, str], None]  # called with a file's SHA-256
    progress: Progress

    def __iter__(self) -> Iterator[Piece]:
        for path, opened in self.source.opened.items():
            if isinstance(opened, tensors.SafeFile):
                yield from self._hashed(path, opened)
            else:
                yield from self._apart(path, opened)

    def _hashed(self, path: pathlib.Path, file: tensors.SafeFile) -> Iterator[Piece]:
        digest = None if path in self.known else hashlib.sha256()
        if digest is not None:
            head = np.empty(file.start, np.uint8)
            file.read_into(0, head)
            digest.update(head)
        for name in file.stored_order:
            if digest is None and name not in self.rows:
                self.progress.skip(file.tensors[name].bytes)
                continue
            for piece in self._pieces(file, name):
                if digest is not None:
                    digest.update(piece.rows.reshape(-1).view(np.uint8))
                if name in self.rows:
                    yield piece
        if digest is not None:
            self.told(path, digest.hexdigest())

    def _apart(self, path: pathlib.Path, file) -> Iterator[Piece]:
        """Of a file whose order of bytes is not ours to know: hashed first, read after."""
        if path not in self.known:
            self.told(path, hashes.sha256(path))
        for name in file.stored_order:
            if name in self.rows:
                yield from self._pieces(file, name)
            else:
                self.progress.skip(file.tensors[name].bytes)

    def _pieces(self, file, name: str) -> Iterator[Piece]:
        tensor = file.tensors[name]
        count = tensor.rows
        at_once = self.rows.get(name) or max(count * hashes.BLOCK // max(tensor.bytes, 1), 1)
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            rows = file.rows(name, start, stop)
            self.progress.add(rows.nbytes)
            yield Piece(name, start, rows, stop == count)


def collect(feeds: Collection, done: Collection[str]) -> dict[str, list]:
    """Groups feeds that are not done by the tensor they read."""
    found: dict[str, list] = {}
    for feed in feeds:
        if feed.source is not None and feed.link.source not in done:
            found.setdefault(feed.source, []).append(feed)
    return found
