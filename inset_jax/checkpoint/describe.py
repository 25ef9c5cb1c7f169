"""What a folder or checkpoint is: model, parameters by part, dtypes, averages, ancestors."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from inset_jax.checkpoint import (
    bagel,
    convert,
    names,
    parameters,
    place,
    provenance,
    tensors,
    unfinished,
)
from inset_jax.checkpoint.errors import counted
from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.progress import size
from inset_jax.checkpoint.stored import Checkpoint

UNKNOWN = "unknown tensors"


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """Returns everything that is known without reading numbers, as JSON can hold it.

    Raises:
      ValueError: the path is neither a BAGEL folder nor a checkpoint, or damaged.
    """
    if (found := _unfinished(path)) is not None:
        return found
    if not place.is_remote(path) and bagel.is_bagel(path):
        return _bagel(pathlib.Path(path))
    return _checkpoint(path)


def _bagel(folder: pathlib.Path) -> dict[str, Any]:
    source, there = tensors.open_folder(folder), []
    for weights in ("ema", "model"):
        try:
            tensors.part_files(folder, tensors.STEMS[weights])
            there.append(weights)
        except ValueError:
            pass
    return {
        "path": str(folder),
        "kind": "bagel",
        "weights": there,
        "files": {file.name: file.stat().st_size for file in source.files},
        "model": dataclasses.asdict(bagel.config_from_bagel(folder)),
        **_count(source, lambda name: names.from_source(name)),
        "provenance": provenance.kept(folder),
    }


def _checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    source = Checkpoint(path)
    there = [{"params": "model"}.get(item, item) for item in source.meta["items"]]
    there = [name for name in there if name in ("ema", "model")]
    return {
        "path": os.fspath(path),
        "kind": "checkpoint",
        "step": source.step,
        "weights": [source.converted] if source.converted else there,
        "items": list(source.meta["items"]),
        "model": dataclasses.asdict(source.config),
        **_count(source, lambda name: source[name].link),
        "provenance": [*source.meta.get("provenance", [])],
        "tools": source.meta["tools"],
    }


def _count(source, link_of) -> dict[str, Any]:
    """Counts tensors, numbers and dtypes by part."""
    parts: dict[str, dict[str, Any]] = {}
    for name in source:
        link, tensor = link_of(name), source[name]
        part = UNKNOWN if link is None else parameters.part_of(link.path)
        entry = parts.setdefault(part, {"tensors": 0, "parameters": 0, "dtypes": {}})
        entry["tensors"] += 1
        count = tensor.bytes // tensor.dtype.itemsize
        entry["parameters"] += count
        kinds = entry["dtypes"]
        kinds[tensor.dtype.name] = kinds.get(tensor.dtype.name, 0) + count
    order = [*parameters.PARTS, UNKNOWN]
    parts = {part: parts[part] for part in order if part in parts}
    return {
        "tensors": len(source),
        "parameters": sum(entry["parameters"] for entry in parts.values()),
        "bytes": sum(source[name].bytes for name in source),
        "parts": parts,
    }


def _unfinished(path: str | os.PathLike) -> dict[str, Any] | None:
    if not place.is_remote(path) and not pathlib.Path(path).is_dir():
        return None
    target = Place(path)
    marker = target.read(unfinished.MARKER)
    if marker is None:
        return None
    done = 0
    for key in target.keys(unfinished.JOURNAL):
        if key.endswith(".json"):
            done += sum(not part.startswith("file ") for part in json.loads(target.read(key)))
    work = json.loads(marker)["work"]
    return {"path": os.fspath(path), "kind": "unfinished", "tensors_done": done, "work": work}


def text(found: dict[str, Any]) -> str:
    """Returns the same for people."""
    if found["kind"] == "unfinished":
        return (
            f"{found['path']}: unfinished, {found['tensors_done']} tensors are written and "
            "verified; give the command that wrote it again to finish it"
        )
    what = "a BAGEL folder" if found["kind"] == "bagel" else f"a checkpoint, step {found['step']}"
    llm, vit = found["model"]["llm"], found["model"]["vit"]
    lines = [
        f"{found['path']}: {what}; weights: {' and '.join(found['weights'])}",
        f"language model {llm['layers']} layers of {llm['model_dim']}, vocabulary "
        f"{llm['vocab_size']}; ViT {vit['layers']} layers of {vit['width']}",
        "",
        f"{'part':<24}{'tensors':>8}{'parameters':>18}  dtypes",
    ]
    for part, entry in found["parts"].items():
        kinds = ", ".join(entry["dtypes"])
        lines.append(f"{part:<24}{entry['tensors']:>8}{entry['parameters']:>18,}  {kinds}")
    lines.append(
        f"{'all':<24}{found['tensors']:>8}{found['parameters']:>18,}  {size(found['bytes'])}"
    )
    lines += ["", "comes from" if found["provenance"] else "comes from: not known"]
    for number, entry in enumerate(found["provenance"], 1):
        lines += _entry(number, entry)
    return "\n".join(lines)


def _entry(number: int, entry: dict[str, Any]) -> list[str]:
    where = entry.get("folder", "")
    step = f", step {entry['step']}" if "step" in entry else ""
    lines = [f"  {number}. {entry['kind']} {where}{step}  {entry.get('time', '')}".rstrip()]
    if tools := ", ".join(f"{name} {version}" for name, version in entry.get("tools", {}).items()):
        lines.append(f"       {tools}")
    for file in entry.get("files", []):
        lines.append(f"       {file['sha256'][:16]}  {file['bytes']:>14,}  {file['name']}")
    for name, digest in entry.get("written", {}).get("sha256", {}).items():
        lines.append(f"       {digest[:16]}  written as {name}")
    if entry.get("dtype", convert.KEEP) != convert.KEEP:
        lines.append(f"       as {entry['dtype']}")
    return lines + [f"       {line}" for line in notes(entry)]


def notes(entry: dict[str, Any]) -> list[str]:
    """Returns a line for all that a conversion did beside copying; of its report or provenance."""
    lines = []
    if renamed := entry.get("renamed"):
        tensors = counted(renamed["tensors"], "tensor")
        lines.append(f"{tensors} renamed by {', '.join(renamed['rules'])}")
    if missing := entry.get("allowed_missing"):
        tensors = counted(len(missing["filled"]), "tensor")
        lines.append(f"{tensors} filled, allowed to be missing by {', '.join(missing['patterns'])}")
        lines += [f"  {name}: {how}" for name, how in missing["filled"].items()]
    lines += [f"{counted(n, 'tensor')}: {how}" for how, n in entry.get("changed", {}).items()]
    if aside := entry.get("set_aside"):
        tensors = counted(aside["tensors"], "tensor")
        lines.append(f"{tensors} set aside, never run: {', '.join(aside['patterns'])}")
    return lines
