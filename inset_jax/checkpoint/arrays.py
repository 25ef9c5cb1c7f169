"""How converted parameters lie on disk: Zarr 3 arrays that Orbax reads, cut for the mesh to come.

    <item>/_METADATA                     Orbax's list of the tree
    <item>/<path with dots>/zarr.json    shape, dtype and cut of one parameter
    <item>/<path with dots>/c/0/1/...    one file: whole pieces in order, then their index

A *file* is what is written at once: at most one layer of a stacked parameter, and some 64 MB of a
large one. A *piece* is what is read at once: no larger than what one device of the mesh holds, so
that no device reads numbers that it does not need. Nothing is compressed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.tensors import numpy_dtype
from inset_jax.core.mesh import RULES

VERSION = 1  # of this cut: files of another version are not gone on with
FILE_BYTES = 1 << 26  # largest file
TILE = 128  # numbers a side of what is transposed at once: two tiles fit into a core's cache
INDEX_BYTES = 16  # a piece's entry in the index: offset and length

# the largest mesh whose devices read whole pieces only; so do those whose sizes divide these
MESH = {"fsdp": 64, "tensor": 4}


class Cut(NamedTuple):
    """One parameter's shape, and how it is cut. All shapes have the parameter's dims."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: tuple[int, ...]
    piece: tuple[int, ...]

    @property
    def pieces(self) -> tuple[int, ...]:
        """How many pieces a file has, by dim."""
        return tuple(f // p for f, p in zip(self.file, self.piece))

    @property
    def files(self) -> tuple[int, ...]:
        """How many files there are, by dim."""
        return tuple(-(-n // f) for n, f in zip(self.shape, self.file))

    @property
    def file_bytes(self) -> int:
        return math.prod(self.file) * self.dtype.itemsize


def cut(
    shape: Sequence[int],
    dtype: np.dtype,
    logical: Sequence[str | None],
    mesh: Mapping[str, int],
    long: int | None,
) -> Cut:
    """Decides how one parameter is cut.

    Args:
      logical: its dims' names in `core.mesh.RULES`; "layer" in front where it is stacked.
      mesh: sizes of mesh axes.
      long: the dim that may be cut into several files; None: a file holds it all, or one layer.
    """
    dtype = np.dtype(dtype)
    ways = [math.prod(mesh.get(axis, 1) for axis in RULES.get(name, ())) for name in logical]
    piece = [size // math.gcd(size, way) if size else 1 for size, way in zip(shape, ways)]
    file = [1 if name == "layer" else max(size, 1) for size, name in zip(shape, logical)]
    piece = [1 if name == "layer" else size for size, name in zip(piece, logical)]
    if long is not None:
        row = math.prod(file) // file[long] * dtype.itemsize
        file[long], piece[long] = _rows(shape[long], piece[long], max(FILE_BYTES // row, 1))
    return Cut(tuple(shape), dtype, tuple(file), tuple(piece))


def _rows(size: int, piece: int, most: int) -> tuple[int, int]:
    """Returns the length of a file and of a piece along a dim: whole pieces, at most `most`."""
    if size <= most:
        return size, piece
    if piece <= most:
        count = size // piece
        fit = [n for n in range(1, count + 1) if count % n == 0 and n * piece <= most]
        return fit[-1] * piece, piece
    parts = next((n for n in range(-(-piece // most), 8 * (piece // most)) if piece % n == 0), None)
    if parts is not None:
        return piece // parts, piece // parts
    even = -(-size // -(-size // most))  # nothing divides: the last file is padded
    return even, even


def encode(cut: Cut, block: np.ndarray) -> np.ndarray:
    """Returns the file of a block, as uint8.

    Args:
      block: a part of the parameter as large as a file, or less at an end, of the cut's dtype;
        strides are free. A stacked parameter's block has no layer dim.
    """
    assert block.dtype == cut.dtype, (block.dtype, cut.dtype)
    pieces, piece, file = cut.pieces, cut.piece, cut.file
    if block.ndim < len(file):
        pieces, piece, file = pieces[1:], piece[1:], file[1:]
    bits = block.view(f"u{cut.dtype.itemsize}")  # plain numbers are copied several times faster
    if block.shape != file:
        whole = np.zeros(file, bits.dtype)
        whole[tuple(map(slice, block.shape))] = bits
        bits = whole
    numbers = math.prod(file)
    count = math.prod(pieces)
    buffer = np.empty(numbers * cut.dtype.itemsize + count * INDEX_BYTES, np.uint8)
    body = buffer[: numbers * cut.dtype.itemsize].view(bits.dtype)
    parts = body.reshape(count, *piece)
    for number, at in enumerate(np.ndindex(*pieces)):
        here = tuple(slice(a * p, (a + 1) * p) for a, p in zip(at, piece))
        _copy(parts[number], bits[here])
    size = math.prod(piece) * cut.dtype.itemsize
    index = np.stack([np.arange(count) * size, np.full(count, size)], axis=1).astype("<u8")
    buffer[numbers * cut.dtype.itemsize :] = index.reshape(-1).view(np.uint8)
    return buffer


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns an array whose numbers lie in order: itself, or a copy made in tiles."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    bits = f"u{array.dtype.itemsize}"
    _copy(out.view(bits), array.view(bits))
    return out


def _copy(out: np.ndarray, source: np.ndarray) -> None:
    """out[...] = source, in tiles where the source is transposed."""
    if source.ndim != 2 or source.strides[1] == source.itemsize:
        out[...] = source
        return
    for row in range(0, source.shape[0], TILE):
        for column in range(0, source.shape[1], TILE):
            here = slice(row, row + TILE), slice(column, column + TILE)
            out[here] = source[here]


def folder(path: str) -> str:
    """Returns the folder of a parameter inside its item."""
    return path.replace("/", ".")


def key(path: str, at: Sequence[int]) -> str:
    """Returns the name, inside the item, of a parameter's file with this number in each dim."""
    return "/".join([folder(path), "c", *map(str, at)])


def zarr_json(cut: Cut) -> bytes:
    """Returns the description of an array."""
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
    sharding = {
        "chunk_shape": cut.piece,
        "codecs": plain,
        "index_codecs": plain,
        "index_location": "end",
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": cut.file}}
    values = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": cut.shape,
        "data_type": cut.dtype.name,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    return json.dumps(values).encode()


def read_cut(item: Place, path: str) -> Cut:
    """Returns how a converted parameter is cut.

    Raises:
      ValueError: it is not there, or not written by a conversion.
    """
    found = item.read(f"{folder(path)}/zarr.json")
    if found is None:
        raise ValueError(f"{item.name}: no array {folder(path)} of a converted checkpoint")
    values = json.loads(found)
    return Cut(
        tuple(values["shape"]),
        numpy_dtype(values["data_type"]),
        tuple(values["chunk_grid"]["configuration"]["chunk_shape"]),
        tuple(values["codecs"][0]["configuration"]["chunk_shape"]),
    )


def orbax_metadata(paths: Sequence[str]) -> bytes:
    """Returns Orbax's list of an item's tree: nested dicts of arrays."""
    tree = {}
    for path in paths:
        parts = tuple(path.split("/"))
        tree[str(parts)] = {
            "key_metadata": [{"key": part, "key_type": 2} for part in parts],  # 2: of a dict
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    values = {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    return json.dumps(values).encode()


class Range(NamedTuple):
    """Bytes of one file."""

    file: str  # key inside the item
    offset: int
    length: int


def ranges(cut: Cut, path: str, index: Sequence[slice]) -> list[Range]:
    """Returns which bytes hold a part of a parameter: whole pieces, in order.

    Args:
      index: one slice a dim, as `Sharding.devices_indices_map` gives it.
    """
    spans = [part.indices(size)[:2] for part, size in zip(index, cut.shape)]
    grid = [range(low // p, -(-high // p)) for (low, high), p in zip(spans, cut.piece)]
    size, found = math.prod(cut.piece) * cut.dtype.itemsize, []
    for numbers in np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(cut.shape)):
        file, inside = np.divmod(numbers, cut.pieces)
        number = int(np.ravel_multi_index(tuple(inside), cut.pieces)) if cut.shape else 0
        found.append(Range(key(path, tuple(map(int, file))), number * size, size))
    return found
