"""A BAGEL folder into a checkpoint that training and generation load directly, onto any mesh."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import inset_jax
from inset_jax.checkpoint import (
    arrays,
    bagel,
    finish,
    names,
    provenance,
    streaming,
    tensors,
    tokenizer,
)
from inset_jax.checkpoint import plan as plans
from inset_jax.checkpoint.place import Place, refuse_inside
from inset_jax.checkpoint.plan import Options, Plan
from inset_jax.checkpoint.progress import Progress
from inset_jax.checkpoint.unfinished import Journal

MARGIN = 64 << 20  # bytes of room beside the parameters: descriptions, side files, journal


class Manner(NamedTuple):
    """How a conversion runs; nothing here changes what it writes."""

    jobs: int = 4
    dry_run: bool = False
    progress: Callable[[str, int], Progress] = lambda what, total: Progress(what, total, quiet=True)


def convert(
    folder: str | os.PathLike, target: str | os.PathLike, options: Options, manner: Manner
) -> dict[str, Any]:
    """Writes a BAGEL folder as a checkpoint, or goes on where an earlier call was interrupted.

    Returns:
      what was done, as JSON can hold it.

    Raises:
      ValueError: the folder is not a whole BAGEL model; `errors.Damaged`, `errors.Unwritable`.
    """
    folder = pathlib.Path(folder)
    refuse_inside(target, folder)
    config = bagel.config_from_bagel(folder)
    source = tensors.open_folder(folder, options.weights)
    plan = plans.of_bagel(folder, source, config, options)
    configs = [folder / name for name in bagel.CONFIG_FILES if (folder / name).is_file()]
    past, weights = provenance.kept(folder), tensors.which(folder, options.weights)

    def describe(sha256: Mapping[str, str]) -> dict[str, Any]:
        notes = {**plan.notes, "dtype": options.dtype}
        own = provenance.entry("bagel", folder, [*source.files, *configs], sha256, **notes)
        return {"provenance": [*past, own], "weights": weights}

    side = lambda: itertools.chain(side_files(folder), headers(source))
    report = {"command": "to-orbax", "source": str(folder)}
    return report | run(Place(target), plan, source, Recipe(options, describe, side), manner)


class Recipe(NamedTuple):
    """What `run` needs beside a plan."""

    options: Options
    describe: Callable[[Mapping[str, str]], dict[str, Any]]  # file hashes -> meta of the step
    side: Callable[[], Iterable[tuple[str, bytes]]]  # the files beside the step, by key


def run(
    target: Place, plan: Plan, source: tensors.Tensors, recipe: Recipe, manner: Manner
) -> dict[str, Any]:
    """Carries a plan out; see `convert`."""
    total = sum(source[name].bytes for name in source)
    report = {
        "target": target.name,
        "tensors": len(plan.feeds),
        "parameters": sum(math.prod(cut.shape) for cut in plan.cuts.values()),
        "bytes": plan.bytes,
        "dtypes": sorted({cut.dtype.name for cut in plan.cuts.values()}),
        "not_converted": unused(source),
        **plan.notes,
    }
    if manner.dry_run:
        return report | {"dry_run": True}
    work = identity(plan, source, recipe.options)
    journal = Journal(target, work)
    try:
        if finish.is_complete(target):
            journal.close()
            return report | {"resumed": len(plan.feeds)}
        if not journal.found:
            finish.check_room(target, plan.bytes + MARGIN)
        progress = manner.progress("converting", total)
        job = streaming.Work(
            plan, source, finish.step_place(target), journal, progress, manner.jobs
        )
        sha256 = streaming.pour(job)
        finish.complete(target, job, recipe.describe(sha256), recipe.side())
        progress.close()
    finally:
        journal.flush()
        journal.release()
    return report | {
        "resumed": journal.found,
        "seconds": round(progress.seconds, 2),
        "bytes_per_second": round(progress.rate),
        "sha256": sha256,
    }


def identity(plan: Plan, source: tensors.Tensors, options: Options) -> dict[str, Any]:
    """Returns what makes two conversions the same."""
    stats = {str(path.absolute()): path.stat() for path in source.files}
    return {
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "options": options._asdict(),
        "model": repr(plan.config),
        "versions": [inset_jax.__version__, names.VERSION, arrays.VERSION],
    }


def side_files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yields a folder's files that hold no tensors, with their key in a checkpoint.

    Hidden files and folders, and the provenance that the checkpoint carries itself, stay behind.
    """
    for path in beside(folder):
        yield f"{finish.FILES}/{path.relative_to(folder).as_posix()}", path.read_bytes()
    if (content := tokenizer.content(folder)) is not None:
        yield tokenizer.FILE, content


def beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the files of a BAGEL folder that hold no tensors: configs, tokenizer, ..."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        known = tensors.is_tensor_file(path.name) or path.name == provenance.KEPT
        if path.is_file() and not hidden and not known:
            yield path


def headers(source: tensors.Tensors) -> Iterator[tuple[str, bytes]]:
    """Yields the headers of the safetensors files, with their key in a checkpoint."""
    for path, opened in source.opened.items():
        if isinstance(opened, tensors.SafeFile):
            yield f"{finish.HEADERS}/{path.name}", opened.header


def unused(source: tensors.Tensors) -> list[str]:
    """Returns the tensor files that lie beside the converted ones."""
    folders = {path.parent for path in source.files}
    return sorted(
        str(path)
        for folder in folders
        for path in folder.iterdir()
        if tensors.is_tensor_file(path.name) and path not in source.files
    )
