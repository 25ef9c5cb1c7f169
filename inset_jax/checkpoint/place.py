"""A folder on this machine, or one that TensorStore knows by a URL: gs://, s3://, memory://.

Everything a conversion writes into a checkpoint goes through here, so that what is above does not
know the difference. A write is whole or not at all, and on the disk when the call returns.
"""

from __future__ import annotations

import functools
import os
import pathlib
import zlib

import numpy as np
import tensorstore as ts

from inset_jax.checkpoint import errors

WRITING = ".writing"  # ends the name of a local file that is not whole
BLOCK = 1 << 20  # bytes compared at once: they stay in a core's cache


@functools.cache
def context() -> ts.Context:
    """The one context of all places: memory:// lives in it."""
    return ts.Context()


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL."""
    return "://" in os.fspath(path)


def refuse_inside(target: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Refuses to write into a folder whose files are copied: what is written would be among them.

    Raises:
      Unwritable: the target lies inside the folder.
    """
    if is_remote(target):
        return
    if pathlib.Path(folder).resolve() in pathlib.Path(target).resolve().parents:
        raise errors.Unwritable(
            f"{os.fspath(target)}: lies inside {os.fspath(folder)}, whose files are copied; choose "
            "a folder elsewhere"
        )


class Place:
    """A folder, made on the first write. Keys are paths inside it, with slashes."""

    def __init__(self, path: str | os.PathLike):
        """Raises ValueError for a URL that TensorStore does not know."""
        self.name = os.fspath(path).rstrip("/") or "/"
        self.local = None if is_remote(self.name) else pathlib.Path(self.name).absolute()
        try:
            self._store = ts.KvStore.open(self.spec(), context=context()).result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name}: {errors.reason(error)}") from error

    def spec(self, key: str = "") -> dict | str:
        """Returns TensorStore's name of this folder, or of the folder `key` inside it."""
        key = f"{key.strip('/')}/" if key else ""
        if self.local is None:
            return f"{self.name}/{key}"
        return {"driver": "file", "path": f"{self.local}/{key}"}

    def inside(self, key: str) -> Place:
        """Returns a folder inside this one."""
        return Place(f"{self.name}/{key}")

    def read(self, key: str) -> bytes | None:
        """Returns the content of a file; None if there is none."""
        try:
            found = self._store.read(key).result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name}/{key}: {errors.reason(error)}") from error
        return bytes(found.value) if found.state == "value" else None

    def write(self, key: str, data: bytes | np.ndarray) -> None:
        """Writes a file.

        Args:
          data: bytes, or an array of uint8.

        Raises:
          Unwritable: the disk is full, the place may not be written, ...
        """
        try:
            if self.local is None:
                self._store.write(key, bytes(data)).result()
            else:  # TensorStore would copy the data twice more
                _write(self.local / key, memoryview(data))
        except (ValueError, OSError) as error:
            raise errors.Unwritable(
                f"{self.name}/{key} cannot be written: {errors.reason(error)}"
            ) from error

    def check(self, key: str, data: np.ndarray) -> int:
        """Reads a file back; returns the CRC-32 of what was read.

        Raises:
          Unwritable: it is not the data.
        """
        crc, done = 0, 0
        for block in self._blocks(key):
            if not np.array_equal(block, data[done : done + len(block)]):
                break
            crc, done = zlib.crc32(block, crc), done + len(block)
        if done != len(data):
            raise errors.Unwritable(f"{self.name}/{key}: was read back otherwise than written")
        return crc

    def _blocks(self, key: str):
        if self.local is None:
            yield np.frombuffer(self.read(key) or b"", np.uint8)
            return
        buffer = np.empty(BLOCK, np.uint8)
        with open(self.local / key, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield buffer[:count]

    def keys(self, prefix: str = "") -> list[str]:
        """Returns the files inside whose key begins so, sorted."""
        try:
            found = self._store.list(_range(prefix)).result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name}: {errors.reason(error)}") from error
        return sorted(key.decode() for key in found if not key.endswith(WRITING.encode()))

    def remove(self, prefix: str) -> None:
        """Removes the files whose key begins so."""
        try:
            self._store.delete_range(_range(prefix)).result()
        except (ValueError, OSError) as error:
            raise errors.Unwritable(f"{self.name}: {errors.reason(error)}") from error


def _write(path: pathlib.Path, data: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + WRITING)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Brings a local folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _range(prefix: str) -> ts.KvStore.KeyRange:
    if not prefix:
        return ts.KvStore.KeyRange()
    last = prefix[:-1] + chr(ord(prefix[-1]) + 1)  # the first key that no longer begins so
    return ts.KvStore.KeyRange(prefix, last)
