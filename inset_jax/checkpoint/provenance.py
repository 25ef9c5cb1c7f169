"""Where weights come from: a list of entries, oldest first, that travels with every checkpoint.

The command that starts from other weights stores `ancestry(path)` in its checkpoints' meta under
"provenance" and passes it on unchanged, so that a trained model knows the files it began with.
"""

from __future__ import annotations

import datetime
import hashlib
import pathlib
from typing import Any

import inset_jax
from inset_jax.checkpoint import bagel, names, tensors

BLOCK = 1 << 22  # bytes hashed at once


def ancestry(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the entries of a BAGEL folder or of a checkpoint, the thing itself last.

    Hashes every byte of a BAGEL folder's tensors: about a second a gigabyte.

    Raises:
      ValueError: the path is neither, or is damaged.
    """
    if bagel.is_bagel(path):
        return [of_bagel(path)]
    from inset_jax.checkpoint import load, store

    directory, step = load.locate(path)
    meta = store.read_meta(directory, step)
    own = {"kind": "checkpoint", "folder": str(path), "step": step, "tools": meta["tools"]}
    return [*meta.get("provenance", []), own]


def of_bagel(folder: str | pathlib.Path) -> dict[str, Any]:
    """Returns one entry: the names, sizes and SHA-256 of a folder's tensor and config files."""
    folder = pathlib.Path(folder)
    files = [*tensors.open_folder(folder).files]
    files += [folder / name for name in bagel.CONFIG_FILES if (folder / name).is_file()]
    return {
        "kind": "bagel",
        "folder": str(folder),
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        ],
        "tools": {"inset-jax": inset_jax.__version__, "names": names.VERSION},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def sha256(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
