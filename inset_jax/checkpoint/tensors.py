"""Tensors of a BAGEL folder by name, read one at a time from safetensors files, sharded or not."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

# names of the files of one part, best first; BAGEL's released weights are the EMA ones
MODEL_FILES = ("ema.safetensors", "model.safetensors")
VAE_FILES = ("ae.safetensors",)
INDEX = ".index.json"

DTYPES = {  # as safetensors writes them
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Tensor(NamedTuple):
    """What a file's header says of one tensor."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors:
    """The tensors of some safetensors files: headers now, numbers when asked.

    Every file's header and length are checked on opening.
    """

    def __init__(self, files: list[pathlib.Path]):
        """Opens the files.

        Raises:
          ValueError: a file is truncated, too long or not safetensors, two files hold one name, or
            a tensor has a dtype that is no float.
        """
        self.files = tuple(files)
        self._open = {}
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            handle = self._open[file] = _open(file)
            for name in handle.keys():
                if name in self._tensors:
                    other = self._tensors[name].file
                    raise ValueError(f"{name} is both in {other} and in {file}")
                part = handle.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"{file}: {name} is {part.get_dtype()}, expected one of {', '.join(DTYPES)}"
                    )
                shape = tuple(part.get_shape())
                self._tensors[name] = Tensor(file, shape, DTYPES[part.get_dtype()])

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
        return self._open[self._tensors[name].file].get_tensor(name)


def open_folder(folder: str | pathlib.Path) -> Tensors:
    """Opens the model and the autoencoder of a BAGEL folder.

    ema.safetensors is preferred to model.safetensors, and either may be sharded with an index.

    Raises:
      ValueError: a file is missing or damaged, or an index and its files disagree.
    """
    folder = pathlib.Path(folder)
    files = [*_part_files(folder, MODEL_FILES), *_part_files(folder, VAE_FILES)]
    tensors = Tensors(files)
    for index in {p for names in (MODEL_FILES, VAE_FILES) for p in [_index(folder, names)] if p}:
        _check_index(index, tensors)
    return tensors


def _part_files(folder: pathlib.Path, names: tuple[str, ...]) -> list[pathlib.Path]:
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
    index = _index(folder, names)
    if index is None:
        wanted = " or ".join((*names, names[-1] + INDEX))
        raise ValueError(f"{folder}: expected {wanted}, found {_listing(folder)}")
    files = [folder / name for name in dict.fromkeys(_weight_map(index).values())]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index}: names {file.name}, which is missing from {folder}")
    return files


def _index(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
    """Returns the index of a sharded part; None when the part is one file."""
    if any((folder / name).is_file() for name in names):
        return None
    return next((p for name in names if (p := folder / (name + INDEX)).is_file()), None)


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
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "numpy")
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        size = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
        raise ValueError(
            f"{file}: damaged or no safetensors file ({size}): {reason}; copy it again"
        ) from error
