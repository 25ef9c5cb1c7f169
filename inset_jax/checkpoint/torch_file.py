"""Tensors of PyTorch's own files (.pt, .pth, .bin), through PyTorch, mapped and not loaded."""

from __future__ import annotations

import ctypes
import mmap
import pathlib

import ml_dtypes
import numpy as np

from inset_jax.checkpoint.errors import Damaged

MADV_DONTNEED = 4  # of Linux and macOS
WRAPPERS = ("state_dict", "model", "module")  # keys under which trainers hide the tensors


class TorchFile:
    """One file written by torch.save; the interface of `tensors.SafeFile`."""

    def __init__(self, file: pathlib.Path):
        """Opens the file; only tensors and plain containers are unpickled.

        Raises:
          ValueError: PyTorch is not installed, or a tensor is of no float dtype.
          Damaged: the file is truncated or not PyTorch's.
        """
        from inset_jax.checkpoint.tensors import Tensor

        try:
            import torch
        except ImportError as error:
            raise ValueError(
                f"{file}: reading {file.suffix} files takes PyTorch: pip install '.[torch]'"
                ", or save the weights as .safetensors"
            ) from error
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever its unpickler meets
            text = " ".join(str(error).split())[:200]
            raise Damaged(f"{file}: damaged or no file of PyTorch: {text}") from error
        found = _unwrap(found)
        if not found:
            raise ValueError(f"{file}: expected a dict of tensors by name, found none")
        kinds = {
            torch.float64: np.dtype(np.float64),
            torch.float32: np.dtype(np.float32),
            torch.float16: np.dtype(np.float16),
            torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
        }
        for name, tensor in found.items():
            if tensor.dtype not in kinds:
                raise ValueError(f"{file}: {name} is {tensor.dtype}, expected a float")
        self.path, self._torch, self._found = file, torch, found
        self.tensors = {
            name: Tensor(file, tuple(tensor.shape), kinds[tensor.dtype])
            for name, tensor in found.items()
        }
        self.stored_order = list(found)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop) of a tensor; of one that is a number, the number."""
        tensor, dtype = self._found[name], self.tensors[name].dtype
        part = tensor[start:stop] if tensor.ndim else tensor
        plain = part.contiguous().view(getattr(self._torch, f"int{8 * dtype.itemsize}"))
        array = plain.numpy().copy().view(dtype)
        if part.is_contiguous():
            _forget(part.data_ptr(), part.numel() * dtype.itemsize)
        return array


def _unwrap(found):
    """Returns the tensors by name inside what a trainer has saved; {} when there are none."""
    import torch

    for _ in range(3):
        if not isinstance(found, dict):
            return {}
        if all(isinstance(value, torch.Tensor) for value in found.values()):
            return found
        found = next((found[key] for key in WRAPPERS if key in found), None)
    return {}


def _forget(address: int, size: int) -> None:
    """Tells the system that mapped bytes will not be read again, so that they take no memory."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)
