"""The averaged weights of a run alone: what is passed on when training is over.

A checkpoint of a run holds parameters, their average and two moments; the export holds the average
as its parameters, in the same form, so that `load_any` and `run.init_from` take it like any other.
Folders are named without where they lay: that says nothing elsewhere.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from inset_jax.checkpoint import convert, load, provenance, store

PLACES = {
    "data": ("train", "validation", "tokenizer", "plans"),
    "run": ("init_from", "autoencoder"),
}


def export(
    source: str | os.PathLike, target: str | os.PathLike, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the averaged parameters of a run's newest step, its autoencoder and its tokenizer.

    All of it is held by the first device meanwhile, in the dtypes that are stored.

    Args:
      source: a run's work folder, its folder of checkpoints, or one step.
      target: a folder that does not exist or is empty.
      notes: what else the provenance shall say: data, cost, figures; what JSON can hold.

    Returns:
      {"step", "weights"}: which step, and "ema" or, where a run keeps no average, "params".

    Raises:
      ValueError: no checkpoint there, or the target holds something already.
    """
    target = epath.Path(target)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target}: holds something already; name a folder that is not there yet")
    directory, step = load.locate(source)
    loaded = load.load_any(epath.Path(directory) / str(step), dtype=convert.KEEP)
    meta = loaded.info["meta"]
    run = pathlib.Path(source).name
    own = provenance.of_checkpoint(run, meta) | {"weights": loaded.info["weights"], **notes}
    config = _without_places(meta["config"])
    past = [  # weights that were made anew had no folder
        {name: _name(value) if name == "folder" else value for name, value in entry.items()}
        for entry in meta.get("provenance", [])
    ]
    kept = {"config": config, "provenance": [*past, own]}
    with store.Store(target, keep=1) as saver:
        saver.save(step, {load.PARAMS: loaded.params}, kept)
    if loaded.tokenizer is not None:
        shutil.copyfile(loaded.tokenizer, target / "tokenizer.json")
    return {"step": step, "weights": loaded.info["weights"]}


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the names of its files and folders in place of their paths."""
    result = dict(config)
    for group, fields in PLACES.items():
        if group in result:
            own = dict(result[group])
            for field in own.keys() & fields:  # an older run knows fewer
                value = own[field]
                own[field] = [_name(v) for v in value] if isinstance(value, list) else _name(value)
            result[group] = own
    return result


def _name(path: str) -> str:
    return pathlib.PurePath(path).name
