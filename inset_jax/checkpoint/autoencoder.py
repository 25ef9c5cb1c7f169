"""An autoencoder by itself, as one file in BAGEL's format (ae.safetensors).

Beside the tensors, our files carry two JSON texts in their header: `vae_config`, the sizes with the
latents' scale and shift under BAGEL's keys, and `facts`, where the weights come from. BAGEL's own
file has neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from inset_jax.checkpoint import bagel, differences, names
from inset_jax.checkpoint.tensors import numpy_dtype
from inset_jax.core.config import VaeConfig

CONFIG, FACTS = "vae_config", "facts"


def save(
    file: str | pathlib.Path,
    params: Mapping[str, Any],
    config: VaeConfig,
    facts: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes one autoencoder; the file appears whole or not at all.

    Args:
      params: its tree of arrays.
      config: of these parameters, with the measured scale and shift.
      facts: what JSON can hold: training data, steps, figures.
      dtype: of the tensors in the file: "float32", "bfloat16" or "float16".

    Raises:
      ValueError: the parameters are not the config's, or overflow the dtype.
    """
    from safetensors.numpy import save as to_bytes

    from inset_jax.model import vae

    leaves = names.flatten(params)
    _, shapes = vae.abstract(config)
    expected = {path: tuple(leaf.shape) for path, leaf in names.flatten(shapes).items()}
    problems = differences.shapes({path: np.shape(leaf) for path, leaf in leaves.items()}, expected)
    if problems:
        raise ValueError("\n".join(["the parameters are not those of the config:", *problems]))
    kind = numpy_dtype(dtype)
    tensors = {}
    for path, leaf in leaves.items():
        (link,) = names.from_path(f"vae/{path}", np.shape(leaf))
        with np.errstate(over="ignore"):  # found out below
            tensor = np.ascontiguousarray(names.to_source(link, np.asarray(leaf)).astype(kind))
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise ValueError(f"{link.source} is not finite as {dtype}")
        tensors[link.source] = tensor
    texts = {CONFIG: json.dumps(bagel.from_vae_config(config)), FACTS: json.dumps(facts)}
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    # safetensors' own writer makes files that only their owner can read
    beside.write_bytes(to_bytes(tensors, metadata={"format": "pt", **texts}))
    os.replace(beside, file)


def digest(params: Mapping[str, Any]) -> str:
    """Names an encoder: 16 hexadecimal digits of a SHA-256 over its float32 parameters.

    Stored latents carry it (`data.record.Segment.moments_vae`). The decoder, and the latents' scale
    and shift, do not count: moments do not depend on them.

    Args:
      params: the autoencoder's tree, on the host or on any mesh.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(names.flatten(params["encoder"]).items()):
        array = np.ascontiguousarray(_on_host(leaf), np.float32)
        total.update(f"{path} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def _on_host(leaf) -> np.ndarray:
    if getattr(leaf, "is_fully_addressable", True):
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def read_config(file: str | pathlib.Path) -> VaeConfig | None:
    """Returns the config inside a file, or None where it has none (BAGEL's own).

    Raises:
      ValueError: the file is no safetensors file, or its config is damaged.
    """
    found = _text(file, CONFIG)
    return None if found is None else bagel.to_vae_config(found, pathlib.Path(file))


def read_facts(file: str | pathlib.Path) -> dict[str, Any]:
    """Returns the facts inside a file; {} where it has none.

    Raises:
      ValueError: the file is no safetensors file, or its facts are damaged.
    """
    return _text(file, FACTS) or {}


def _text(file: str | pathlib.Path, key: str) -> dict[str, Any] | None:
    """Returns one of the JSON texts in the header, None where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            text = (opened.metadata() or {}).get(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged or no safetensors file: {error}") from error
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: {key} in its header is damaged JSON: {error}") from error
