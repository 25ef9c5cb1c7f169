"""Where weights come from: a list of entries, oldest first, that travels with every checkpoint.

The command that starts from other weights stores `ancestry(path)` in its checkpoints' meta under
"provenance" and passes it on unchanged, so that a trained model knows the files it began with. A
BAGEL folder that was written from a checkpoint carries the list in a file of its own.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import inset_jax
from inset_jax.checkpoint import bagel, hashes, names, tensors

KEPT = "inset_provenance.json"  # the list, in a BAGEL folder


def ancestry(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the entries of a BAGEL folder or of a checkpoint, the thing itself last.

    Hashes every byte of a BAGEL folder's tensors: about a second a gigabyte.

    Raises:
      ValueError: the path is neither, or is damaged.
    """
    if bagel.is_bagel(path):
        return [*kept(path), of_bagel(path)]
    from inset_jax.checkpoint import load, store

    directory, step = load.locate(path)
    meta = store.read_meta(directory, step)
    return [*meta.get("provenance", []), of_checkpoint(path, meta)]


def of_bagel(folder: str | pathlib.Path) -> dict[str, Any]:
    """Returns one entry: the names, sizes and SHA-256 of a folder's tensor and config files."""
    folder = pathlib.Path(folder)
    files = [*tensors.open_folder(folder).files]
    files += [folder / name for name in bagel.CONFIG_FILES if (folder / name).is_file()]
    return entry("bagel", folder, files)


def of_checkpoint(path: str | pathlib.Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one entry: a step of a checkpoint."""
    return {"kind": "checkpoint", "folder": str(path), "step": meta["step"], "tools": meta["tools"]}


def entry(
    kind: str,
    folder: str | pathlib.Path,
    files: Iterable[pathlib.Path],
    known: Mapping[str, str] | None = None,
    **notes: Any,
) -> dict[str, Any]:
    """Returns one entry about files, each with name, size and SHA-256.

    Args:
      known: SHA-256 by path, where it need not be computed.
      notes: what else is to be remembered.
    """
    known = known or {}
    return {
        "kind": kind,
        "folder": str(folder),
        "files": [
            {
                "name": file.name,
                "bytes": file.stat().st_size,
                "sha256": known.get(str(file)) or hashes.sha256(file),
            }
            for file in files
        ],
        "tools": {"inset-jax": inset_jax.__version__, "names": names.VERSION},
        "time": now(),
        **notes,
    }


def kept(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns what a BAGEL folder carries of its own past; [] if nothing.

    Raises:
      ValueError: the file is damaged.
    """
    path = pathlib.Path(folder) / KEPT
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to go on without") from error


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
