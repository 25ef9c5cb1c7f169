"""A checkpoint into a folder that BAGEL's own code opens: safetensors written tensor by tensor.

A folder that was converted comes back as it was: the same files with the same bytes, headers
included, as long as names, shapes and dtypes are still those of the source. A trained checkpoint
gets new headers, and its side files from `side_files` or from its config.

Files are called *.partial until all of them are whole. `inset_provenance.json` is the one file that
BAGEL does not know.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import inset_jax
from inset_jax.checkpoint import (
    bagel,
    convert,
    errors,
    finish,
    names,
    place,
    provenance,
    tensors,
    to_orbax,
)
from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.stored import Checkpoint
from inset_jax.checkpoint.streaming import count_broken
from inset_jax.checkpoint.tensors import DTYPES, numpy_dtype
from inset_jax.checkpoint.to_orbax import Manner
from inset_jax.checkpoint.unfinished import Journal

PARTIAL = ".partial"
SPELLED = {dtype.name: name for name, dtype in DTYPES.items()}


class File(NamedTuple):
    """One safetensors file to be written."""

    name: str
    header: bytes  # JSON with padding
    offsets: dict[str, int]  # tensor -> first byte in the file, in that order
    bytes: int


class Part(NamedTuple):
    """Some rows of one tensor."""

    name: str
    start: int
    stop: int
    known: bool  # written and verified by an earlier run


class Options(NamedTuple):
    """What a user may ask of the way back."""

    dtype: str = convert.KEEP  # of the model's tensors; the autoencoder's stay as they are
    weights: str | None = None  # "ema" or "model"; None: the averaged ones if there are any
    side_files: str | None = None  # a BAGEL folder whose configs and tokenizer are copied


def export(
    path: str | os.PathLike, target: str | os.PathLike, options: Options, manner: Manner
) -> dict[str, Any]:
    """Writes a checkpoint as a BAGEL folder, or goes on where an earlier call was interrupted.

    Returns:
      what was done, as JSON can hold it.

    Raises:
      ValueError: no whole checkpoint of a model that BAGEL's format can hold, or numbers that are
        not finite in the dtype; `errors.Unwritable`.
    """
    if place.is_remote(target):
        raise errors.Unwritable(
            f"{target}: a safetensors file is written in place, which an object store cannot do: "
            "write to a local folder and copy it"
        )
    if options.side_files is not None:
        place.refuse_inside(target, options.side_files)
    source = Checkpoint(path, options.weights)
    bagel.to_files(source.config)  # refuses models that BAGEL's format cannot hold
    files = plan_files(source, options)
    side = dict(_side(source, options))
    side = {name: data for name, data in side.items() if not _is_stale(name, data, files)}
    total = sum(file.bytes for file in files)
    report = {
        "command": "to-bagel",
        "source": str(path),
        "target": os.fspath(target),
        "step": source.step,
        "tensors": len(source),
        "bytes": total,
        "files": [file.name for file in files],
    }
    if manner.dry_run:
        return report | {"dry_run": True}
    done = _Writer(source, Place(target), files, options, manner).run(side)
    return report | done


def plan_files(source: Checkpoint, options: Options) -> list[File]:
    """Decides which tensors go into which file: the source's own headers, or new ones."""
    wanted = {name: (source[name].shape, _dtype(source, name, options)) for name in source}
    headers = dict(source.side(finish.HEADERS))
    found: dict[str, Any] = {}
    for header in headers.values():
        found |= {name: entry for name, entry in json.loads(header).items() if name[:2] != "__"}
    if found.keys() == wanted.keys() and all(
        (tuple(entry["shape"]), entry["dtype"]) == (wanted[name][0], SPELLED[wanted[name][1].name])
        for name, entry in found.items()
    ):
        return [_file(name, header) for name, header in headers.items()]
    model = "model" if options.weights == "model" else "ema"
    parts: dict[str, list[str]] = {f"{model}.safetensors": [], "ae.safetensors": []}
    for name in source:
        part = source[name].link.path.startswith("vae/")
        parts["ae.safetensors" if part else f"{model}.safetensors"].append(name)
    return [
        _file(name, new_header({tensor: wanted[tensor] for tensor in inside}))
        for name, inside in parts.items()
    ]


def new_header(tensors: dict[str, tuple[tuple[int, ...], np.dtype]]) -> bytes:
    """Returns a safetensors header, in the order and spelling of the safetensors library."""
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which PyTorch's reader asks for
    at = 0
    for name in order:
        shape, dtype = tensors[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        values[name] = {
            "dtype": SPELLED[dtype.name],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _file(name: str, header: bytes) -> File:
    values = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
    start = 8 + len(header)
    order = sorted(values, key=lambda key: (values[key]["data_offsets"], key))
    offsets = {key: start + values[key]["data_offsets"][0] for key in order}
    end = max((entry["data_offsets"][1] for entry in values.values()), default=0)
    return File(name, header, offsets, start + end)


def _dtype(source: Checkpoint, name: str, options: Options) -> np.dtype:
    if options.dtype != convert.KEEP and source[name].link.path.startswith("model/"):
        return numpy_dtype(options.dtype)
    return source[name].dtype


def _side(source: Checkpoint, options: Options) -> Iterator[tuple[str, bytes]]:
    """Yields the files beside the tensors: copied from a folder, the conversion's, or made."""
    if options.side_files is not None:
        folder = pathlib.Path(options.side_files)
        if bagel.config_from_bagel(folder) != source.config:
            raise ValueError(f"{folder}: its configs are of another model than {source.path}")
        for path in to_orbax.beside(folder):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
        return
    kept = list(source.side(finish.FILES))
    if kept:
        yield from kept
        return
    for name, values in bagel.to_files(source.config).items():
        yield name, (json.dumps(values, indent=2) + "\n").encode()
    if (tokenizer := source.folder.read("tokenizer.json")) is not None:
        yield "tokenizer.json", tokenizer


def _is_stale(name: str, content: bytes, files: list[File]) -> bool:
    """Whether a file beside the tensors is an index of some that are not written."""
    if "/" in name or not name.endswith(tensors.INDEX):
        return False
    try:
        listed = set(json.loads(content)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # no index, whatever it is called
    return not listed <= {file.name for file in files}


class _Writer:
    """The writing of one folder."""

    def __init__(
        self,
        source: Checkpoint,
        target: Place,
        files: list[File],
        options: Options,
        manner: Manner,
    ):
        self.source, self.target, self.files = source, target, files
        self.options, self.manner = options, manner
        self.handle: int | None = None
        self.broken: dict[str, int] = collections.Counter()  # tensor -> numbers that are not finite

    def run(self, side: dict[str, bytes]) -> dict[str, Any]:
        """Writes everything; returns what the report says of it."""
        source = self.source
        content = source.folder.read(f"{source.step}/digests.json") or b""
        work = {
            "content": hashlib.sha256(content).hexdigest(),
            "options": self.options._asdict(),
            "versions": [inset_jax.__version__, names.VERSION],
        }
        total = sum(file.bytes for file in self.files)
        self.journal = Journal(self.target, work, self._sync)
        self.progress = self.manner.progress("converting", total)
        sha256: dict[str, str] = {}
        try:
            if self.target.read(provenance.KEPT) is not None:  # only the marker was left
                self.journal.close()
                return {"resumed": len(source)}
            if not self.journal.found:
                finish.check_room(self.target, total + to_orbax.MARGIN)
                source.verify()
            for file in self.files:
                sha256[file.name] = self._write(file)
                self.journal.flush()
            if self.broken:
                raise errors.not_finite(self.broken, source.path)
            self._finish(side, sha256)
        finally:
            self.journal.flush()
            self.journal.release()
            self.progress.close()
        return {
            "resumed": self.journal.found,
            "seconds": round(self.progress.seconds, 2),
            "bytes_per_second": round(self.progress.rate),
            "sha256": sha256,
        }

    def _write(self, file: File) -> str:
        """Writes one file under its partial name, and reads it back; returns its SHA-256."""
        final = self.target.local / file.name
        path = final.with_name(file.name + PARTIAL)
        if final.exists():  # renamed before an interruption
            path = final
        digest = hashlib.sha256(len(file.header).to_bytes(8, "little") + file.header)
        try:
            self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if path != final:
                _reserve(self.handle, file.bytes)
                os.pwrite(self.handle, len(file.header).to_bytes(8, "little") + file.header, 0)
            self._fill(file, digest)
            os.fsync(self.handle)
        except OSError as error:
            raise errors.Unwritable(f"{path} cannot be written: {errors.reason(error)}") from error
        finally:
            if self.handle is not None:
                self.journal.flush()
                os.close(self.handle)
                self.handle = None
        return digest.hexdigest()

    def _fill(self, file: File, digest) -> None:
        """Writes the tensors in the file's order; what is there already is only hashed."""
        jobs = self.manner.jobs
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            queue: collections.deque = collections.deque()
            try:
                for part in self._parts(file):
                    queue.append((part, pool.submit(self._read, part)))
                    if len(queue) > jobs:
                        self._settle(file, digest, *queue.popleft())
                while queue:
                    self._settle(file, digest, *queue.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _parts(self, file: File) -> Iterator[Part]:
        for name in file.offsets:
            count, at_once = self.source[name].rows, self.source.rows_at_once(name)
            for start in range(0, count, at_once):
                stop = min(start + at_once, count)
                yield Part(name, start, stop, name in self.journal.done)

    def _read(self, part: Part) -> tuple[np.ndarray | None, int]:
        """Returns a part as it is to be written, and how many of its numbers are not finite."""
        if part.known:
            return None, 0
        numbers = self.source.rows(part.name, part.start, part.stop)
        dtype = _dtype(self.source, part.name, self.options)
        if numbers.dtype != dtype:
            with np.errstate(over="ignore"):  # counted instead
                numbers = numbers.astype(dtype)
        return numbers, count_broken(numbers)

    def _settle(self, file: File, digest, part: Part, future: concurrent.futures.Future) -> None:
        """Writes what was read, reads it back and hashes it, in the order of the file."""
        numbers, bad = future.result()
        name, start, stop, known = part
        if bad:
            self.broken[name] += bad
        if self.broken:
            return  # the work is lost: the rest is only looked at, to name all that is wrong
        entry = self.source[name]
        row = int(np.prod(entry.shape[1:], dtype=np.int64))
        row *= _dtype(self.source, name, self.options).itemsize
        offset, size = file.offsets[name] + start * row, (stop - start) * row
        data = None if known else numbers.reshape(-1).view(np.uint8)
        if not known:
            _write_all(self.handle, memoryview(data), offset)
        if not _hash_back(self.handle, offset, size, data, digest):
            raise errors.Unwritable(f"{file.name}: {name} was read back otherwise than written")
        (self.progress.skip if known else self.progress.add)(size)
        if stop == entry.rows and not known:
            self.journal.add(name, size)

    def _sync(self) -> None:
        if self.handle is not None:
            os.fdatasync(self.handle) if hasattr(os, "fdatasync") else os.fsync(self.handle)

    def _finish(self, side: dict[str, bytes], sha256: dict[str, str]) -> None:
        for name, content in side.items():
            self.target.write(name, content)
        source = self.source
        own = {
            **provenance.of_checkpoint(source.path, source.meta),
            "time": provenance.now(),
            "dtype": self.options.dtype,
            "weights": source.converted or ("ema" if source.averaged else "model"),
            "written": {"sha256": sha256, "inset-jax": inset_jax.__version__},
        }
        chain = {"provenance": [*source.meta.get("provenance", []), own]}
        for file in self.files:
            path = self.target.local / file.name
            if not path.exists():
                os.rename(path.with_name(file.name + PARTIAL), path)
        self.target.write(provenance.KEPT, (json.dumps(chain, indent=1) + "\n").encode())
        place.sync_folder(self.target.local)
        self.journal.close()


def _reserve(handle: int, size: int) -> None:
    """Takes the room for a whole file at once, so that a full disk shows before the work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    os.ftruncate(handle, size)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count


def _hash_back(handle: int, offset: int, size: int, data: np.ndarray | None, digest) -> bool:
    """Reads what was written into a hash; returns whether it is the data, where that is known."""
    buffer, done = np.empty(place.BLOCK, np.uint8), 0
    while done < size:
        count = os.preadv(handle, [buffer[: min(place.BLOCK, size - done)]], offset + done)
        if not count:
            raise OSError("the file got shorter while it was written")
        if data is not None and not np.array_equal(buffer[:count], data[done : done + count]):
            return False
        digest.update(buffer[:count])
        done += count
    return True
