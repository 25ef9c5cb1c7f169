"""A checkpoint seen as BAGEL's tensors, read in parts: the counterpart of `tensors.Tensors`."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from inset_jax.checkpoint import arrays, digest, errors, names, place
from inset_jax.checkpoint.finish import COMMITTED
from inset_jax.checkpoint.place import Place
from inset_jax.core.config import ModelConfig

OCDBT = "manifest.ocdbt"  # there when Orbax packed the arrays of an item


class Entry(NamedTuple):
    """One BAGEL tensor inside a parameter."""

    shape: tuple[int, ...]  # in BAGEL's axes
    dtype: np.dtype
    link: names.Link
    array: ts.TensorStore

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Checkpoint:
    """One step of a checkpoint, local or remote, with the interface of `tensors.Tensors`."""

    def __init__(self, path: str | os.PathLike, weights: str | None = None):
        """Opens the arrays; reads no numbers.

        Args:
          path: as `load.load_any` takes it, or a URL of TensorStore's.
          weights: "ema" (what has no average is taken from the parameters), "model", or None for
            the average where there is one.

        Raises:
          ValueError: there is no whole checkpoint, or not of a BAGEL model.
        """
        from inset_jax.checkpoint import store

        self.path = os.fspath(path)
        self.folder, self.step = _find(path)
        inside = self.folder.inside(str(self.step))
        self.meta = _read_meta(self.folder, self.step)
        self.config: ModelConfig = store.model_config(self.meta)
        self.converted = self.meta.get("weights")  # which weights a conversion has put here
        if self.converted and weights and weights != self.converted:
            raise ValueError(f"{path}: was converted from {self.converted} weights; no others here")
        if weights == "ema" and "ema" not in self.meta["items"] and not self.converted:
            raise ValueError(f"{path}: step {self.step} has no averaged weights")
        averaged = {}
        if weights != "model" and "ema" in self.meta["items"]:
            averaged = _open_item(inside.inside("ema"))
        self.averaged = bool(averaged)
        opened = {**_open_item(inside.inside("params")), **averaged}
        links, foreign = names.links({path: tuple(a.shape) for path, a in opened.items()})
        if foreign:
            raise ValueError(f"{path}: BAGEL's format cannot hold {', '.join(foreign)}")
        self._entries = {}
        for name, link in links.items():
            array = opened[link.path]
            shape = names.source_shape(link, tuple(array.shape))
            self._entries[name] = Entry(shape, np.dtype(array.dtype.numpy_dtype), link, array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __len__(self) -> int:
        return len(self._entries)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop) of one tensor in BAGEL's axes, contiguous."""
        entry = self._entries[name]
        link, part = entry.link, entry.array
        if link.layer is not None:
            part = part[link.layer]
        axes = names.AXES[link.transform]
        if entry.shape:
            dim = 0 if axes is None else axes.index(0)
            part = part[(slice(None),) * dim + (slice(start, stop),)]
        read = part.read().result()
        alone = link._replace(layer=None)
        return arrays.contiguous(names.to_source(alone, read))

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor."""
        return self.rows(name, 0, self._entries[name].rows)

    def rows_at_once(self, name: str) -> int:
        """How many rows are worth reading together: whole pieces, at most a file's bytes."""
        entry = self._entries[name]
        axes = names.AXES[entry.link.transform]
        if not entry.shape or entry.link.transform == "conv":
            return entry.rows
        dim = (0 if axes is None else axes.index(0)) + (entry.link.layer is not None)
        piece = entry.array.chunk_layout.read_chunk.shape[dim]
        most = max(arrays.FILE_BYTES * entry.rows // max(entry.bytes, 1), 1)
        return max(most // piece, 1) * piece

    def verify(self) -> None:
        """Compares the files of the arrays with the step's digests; remote ones by name alone.

        An array is read as zeros where one of its files is missing.

        Raises:
          Damaged: a file is missing, or a local one is not as it was written.
        """
        from inset_jax.checkpoint import store

        for item in ("params", "ema")[: 1 + self.averaged]:
            if self.folder.local is not None:
                store.verify(self.folder.local, self.step, item)
            elif missing := _missing(self.folder.inside(str(self.step)), item):
                raise errors.Damaged(
                    f"{self.folder.name}: {item} of step {self.step} is damaged "
                    f"({'; '.join(missing[:3])})"
                )

    def side(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yields the files that a conversion has left beside the steps under a prefix."""
        prefix = prefix.rstrip("/") + "/"
        for key in self.folder.keys(prefix):
            yield key.removeprefix(prefix), self.folder.read(key)


def _missing(step: Place, item: str) -> list[str]:
    """Returns one phrase a file of an item that the digests name and that is not there."""
    text = step.read(digest.FILE)
    if text is None:
        return [f"{digest.FILE} is missing"]
    try:
        named = [name for name in json.loads(text) if name.startswith(f"{item}/")]
    except (ValueError, TypeError, AttributeError):
        return [f"{digest.FILE} is not readable"]
    there = set(step.keys(f"{item}/"))
    return [f"{name} is missing" for name in named if name not in there]


def _open_item(item: Place) -> dict[str, ts.TensorStore]:
    """Opens every array of an item, by parameter path."""
    text = item.read("_METADATA")
    if text is None:
        raise ValueError(f"{item.name}/_METADATA: missing")
    values = json.loads(text)
    driver = "zarr3" if values.get("use_zarr3") else "zarr"
    packed = item.read(OCDBT) is not None
    pending = {}
    for entry in values["tree_metadata"].values():
        parts = [part["key"] for part in entry["key_metadata"]]
        name = ".".join(parts)
        kvstore: Any = item.spec(name)
        if packed:
            kvstore = {"driver": "ocdbt", "base": item.spec(), "path": f"{name}/"}
        spec = {"driver": driver, "kvstore": kvstore}
        pending["/".join(parts)] = ts.open(spec, open=True, context=place.context())
    try:
        return {path: future.result() for path, future in pending.items()}
    except (ValueError, OSError) as error:
        raise ValueError(f"{item.name}: an array cannot be opened: {error}") from error


def _find(path: str | os.PathLike) -> tuple[Place, int]:
    """Returns the folder of checkpoints behind a path, and the newest step or the one it names."""
    from inset_jax.checkpoint import load

    if not place.is_remote(path):
        directory, step = load.locate(pathlib.Path(path))
        return Place(directory), step
    url = os.fspath(path).rstrip("/")
    above, _, last = url.rpartition("/")
    if last.isdigit() and place.is_remote(above) and int(last) in _steps(above):
        return Place(above), int(last)
    for folder in (url, f"{url}/{load.CHECKPOINTS}"):
        if found := _steps(folder):
            return Place(folder), max(found)
    raise ValueError(f"{path}: no complete checkpoint there")


def _steps(url: str) -> list[int]:
    """Returns the steps of a remote folder that are committed; what is below them does not count.

    Raises:
      ValueError: a conversion into the folder has not come to its end.
    """
    from inset_jax.checkpoint.unfinished import MARKER

    folder = Place(url)
    if folder.read(MARKER) is not None:
        raise ValueError(f"{url}: is unfinished: give the command that wrote it again")
    found = (re.fullmatch(rf"(\d+)/{COMMITTED}", key) for key in folder.keys())
    return [int(match[1]) for match in found if match]


def _read_meta(folder: Place, step: int) -> dict[str, Any]:
    from inset_jax.checkpoint import store

    if folder.local is not None:
        return store.read_meta(folder.local, step)
    text = folder.read(f"{step}/meta/metadata")
    if text is None:
        raise ValueError(f"{folder.name}: step {step} has no meta")
    return json.loads(text)
