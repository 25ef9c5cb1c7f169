"""A folder that TensorStore reads and writes: on this machine, or gs://, s3://, memory://.

Everything a conversion writes into a checkpoint goes through here, so that one code path serves all
of them. A write is whole or not at all, and on disk when the call returns.
"""

from __future__ import annotations

import functools
import os
import pathlib

import tensorstore as ts

from inset_jax.checkpoint import errors


@functools.cache
def context() -> ts.Context:
    """The one context of all places: memory:// lives in it."""
    return ts.Context()


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL."""
    return "://" in os.fspath(path)


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

    def write(self, key: str, data: bytes) -> None:
        """Writes a file.

        Raises:
          Unwritable: the disk is full, the place may not be written, ...
        """
        try:
            self._store.write(key, data).result()
        except (ValueError, OSError) as error:
            raise errors.Unwritable(
                f"{self.name}/{key} cannot be written: {errors.reason(error)}"
            ) from error

    def keys(self, prefix: str = "") -> list[str]:
        """Returns the files inside whose key begins so, sorted."""
        try:
            found = self._store.list(_range(prefix)).result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name}: {errors.reason(error)}") from error
        return sorted(key.decode() for key in found)

    def remove(self, prefix: str) -> None:
        """Removes the files whose key begins so."""
        try:
            self._store.delete_range(_range(prefix)).result()
        except (ValueError, OSError) as error:
            raise errors.Unwritable(f"{self.name}: {errors.reason(error)}") from error


def _range(prefix: str) -> ts.KvStore.KeyRange:
    if not prefix:
        return ts.KvStore.KeyRange()
    last = prefix[:-1] + chr(ord(prefix[-1]) + 1)  # the first key that no longer begins so
    return ts.KvStore.KeyRange(prefix, last)
