"""Tensors of a BAGEL folder by name, read in parts from safetensors or PyTorch files."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from inset_jax.checkpoint.errors import Damaged

INDEX = ".index.json"
TORCH = (".pt", ".pth", ".bin")  # files that need PyTorch to be read
SUFFIXES = (".safetensors", *TORCH)
STEMS = {"ema": ("ema",), "model": ("model", "pytorch_model"), "vae": ("ae",)}

READ_BYTES = 1 << 26  # at once, where nothing else decides

DTYPES = {  # as safetensors writes them
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def numpy_dtype(name: str) -> np.dtype:
    """Returns the dtype of a name as NumPy prints it: "float32", "bfloat16", ..."""
    return np.dtype(getattr(ml_dtypes, name, name))


class Tensor(NamedTuple):
    """What a file's header says of one tensor."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of the first dim; 1 for a single number."""
        return self.shape[0] if self.shape else 1


class SafeFile:
    """One safetensors file: the header now, rows of tensors when asked."""

    def __init__(self, file: pathlib.Path):
        """Raises Damaged when the file is truncated, too long or not safetensors."""
        entries = _checked_header(file)
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self.header = stream.read(length)  # JSON, with padding
        self.start = 8 + length  # of the numbers
        self.path = file
        self.tensors: dict[str, Tensor] = {}
        self._offsets: dict[str, int] = {}
        values = json.loads(self.header)
        for name, (shape, dtype) in entries.items():
            self.tensors[name] = Tensor(file, shape, dtype)
            self._offsets[name] = self.start + values[name]["data_offsets"][0]
        self._handle = os.open(file, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "_handle"):
            os.close(self._handle)

    @property
    def stored_order(self) -> list[str]:
        """The tensors in the order of their bytes."""
        return sorted(self.tensors, key=lambda name: (self._offsets[name], name))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop) of a tensor; of one that is a number, the number."""
        tensor = self.tensors[name]
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        array = np.empty(shape, tensor.dtype)
        size = tensor.bytes // max(tensor.rows, 1)
        self.read_into(self._offsets[name] + start * size, array.reshape(-1).view(np.uint8))
        return array

    def read_into(self, offset: int, buffer: np.ndarray) -> None:
        """Fills a uint8 buffer with the file's bytes from `offset` on."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._handle, [memoryview(buffer)[done:]], offset + done)
            if not count:
                raise Damaged(f"{self.path}: ends at {offset + done} bytes; it got shorter")
            done += count


class Tensors:
    """The tensors of some files: headers now, numbers when asked.

    Every file's header and length are checked on opening.
    """

    def __init__(self, files: list[pathlib.Path]):
        """Opens the files.

        Raises:
          ValueError: a file is truncated, too long or of an unknown kind, two files hold one name,
            or a tensor has a dtype that is no float.
        """
        self.opened = {file: _open(file) for file in files}
        self._tensors: dict[str, Tensor] = {}
        for file, opened in self.opened.items():
            for name, tensor in opened.tensors.items():
                if name in self._tensors:
                    other = self._tensors[name].file
                    raise ValueError(f"{name} is both in {other} and in {file}")
                self._tensors[name] = tensor

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        return tuple(self.opened)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """Returns the numbers of one tensor, in the file's dtype."""
        return self.rows(name, 0, self._tensors[name].rows)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop) of one tensor, in the file's dtype."""
        return self.opened[self._tensors[name].file].rows(name, start, stop)

    def rows_at_once(self, name: str) -> int:
        """How many rows of a tensor are worth reading together."""
        tensor = self._tensors[name]
        return max(READ_BYTES * tensor.rows // max(tensor.bytes, 1), 1)


def open_folder(folder: str | pathlib.Path, weights: str | None = None) -> Tensors:
    """Opens the model and the autoencoder of a BAGEL folder.

    Any file may be sharded with an index, and .pt, .pth or .bin for .safetensors (needs PyTorch).

    Args:
      weights: "ema" or "model"; None means the averaged ones if there are any.

    Raises:
      ValueError: a file is missing or damaged, or an index and its files disagree.
    """
    folder = pathlib.Path(folder)
    files, indexes = [], []
    for stems in (_stems(weights), STEMS["vae"]):
        found, index = part_files(folder, stems)
        files += found
        indexes += [index] if index else []
    tensors = Tensors(files)
    for index in indexes:
        _check_index(index, tensors)
    return tensors


def which(folder: str | pathlib.Path, weights: str | None = None) -> str:
    """Returns which weights `open_folder` takes of a folder: "ema" or "model".

    Raises:
      ValueError: it has none of those that are asked for.
    """
    files, index = part_files(pathlib.Path(folder), _stems(weights))
    return "ema" if (index or files[0]).name.startswith("ema.") else "model"


def part_files(
    folder: pathlib.Path, stems: tuple[str, ...]
) -> tuple[list[pathlib.Path], pathlib.Path | None]:
    """Returns the files of one part, and their index where it is sharded.

    Raises:
      ValueError: there are none, or a file that an index names is missing.
    """
    for suffix in SUFFIXES:
        for stem in stems:
            file = folder / (stem + suffix)
            if file.is_file():
                return [file], None
            index = file.with_name(file.name + INDEX)
            if index.is_file() and not (stem == "model" and _is_of_ema(index)):
                return _shards(folder, index), index
    first = [stem + SUFFIXES[0] for stem in stems if stem != "pytorch_model"]
    wanted = " or ".join((*first, first[-1] + INDEX))
    raise ValueError(f"{folder}: expected {wanted}, found {_listing(folder)}")


def is_tensor_file(name: str) -> bool:
    """Whether a file's name says that it holds tensors."""
    return name.endswith(SUFFIXES)


def _stems(weights: str | None) -> tuple[str, ...]:
    return STEMS["ema"] + STEMS["model"] if weights is None else STEMS[weights]


def _shards(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
    files = [folder / name for name in dict.fromkeys(_weight_map(index).values())]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index}: names {file.name}, which is missing from {folder}")
    return files


def _is_of_ema(index: pathlib.Path) -> bool:
    """Whether an index is of averaged weights, as the one in BAGEL's release is."""
    return {name.partition(".")[0] for name in _weight_map(index).values()} <= set(STEMS["ema"])


def _check_index(index: pathlib.Path, tensors: Tensors) -> None:
    weight_map = _weight_map(index)
    listed = set(weight_map.values())
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise ValueError(f"{index}: says that {name} is in {file}, but it is not")
    for name in tensors:
        if tensors[name].file.name in listed and name not in weight_map:
            raise ValueError(f"{index}: does not list {name}, which is in {tensors[name].file}")


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: expected a JSON object with a weight_map: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: its weight_map is empty or no object")
    return weight_map


def _listing(folder: pathlib.Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _open(file: pathlib.Path):
    if file.suffix in TORCH:
        from inset_jax.checkpoint.torch_file import TorchFile

        return TorchFile(file)
    return SafeFile(file)


def _length_fault(file: pathlib.Path) -> str | None:
    """Says in words which length of a safetensors file is wrong; None where it is none of them."""
    if not file.is_file():
        return "it is missing"
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return f"its first 8 bytes say a header of {length} bytes, the file has {size}"
        try:
            entries = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return f"its first {length + 8} bytes are no header"
    described = 8 + length + max(ends, default=0)
    short = "cut short" if size < described else "something follows"
    return (
        f"its header describes {described} bytes, it has {size}: {short}"
        if size != described
        else None
    )


def _checked_header(file: pathlib.Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of each tensor, once the library has checked header and length."""
    from safetensors import SafetensorError, safe_open

    entries = {}
    try:
        with safe_open(file, "numpy") as handle:
            for name in handle.keys():
                part = handle.get_slice(name)
                entries[name] = tuple(part.get_shape()), part.get_dtype()
    except (SafetensorError, OSError) as error:
        reason = _length_fault(file) or str(error)
        raise Damaged(f"{file}: damaged or no safetensors file: {reason}; copy it again") from error
    for name, (_, dtype) in entries.items():
        if dtype not in DTYPES:
            raise ValueError(f"{file}: {name} is {dtype}, expected one of {', '.join(DTYPES)}")
    return {name: (shape, DTYPES[dtype]) for name, (shape, dtype) in entries.items()}
