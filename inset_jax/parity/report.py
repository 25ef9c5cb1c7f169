"""Comparing, counting and printing: from a golden folder to a verdict."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.parity import table

# file -> (module of this room, its replay function), parts before the whole
REPLAYS = {
    "tables.npz": ("tables", "replay_tables"),
    "transforms.npz": ("tables", "replay_transforms"),
    "packing.json": ("packing", "replay_packing"),
    "manifest_7b.json": ("tables", "replay_manifest"),
    "manifest_ae.json": ("tables", "replay_manifest"),
    "vae.npz": ("networks", "replay_vae"),
    "vit.npz": ("networks", "replay_vit"),
    "train_forward.npz": ("training", "replay_forward"),
    "grads.npz": ("training", "replay_gradients"),
    "train_steps.npz": ("training", "replay_steps"),
    "generate.npz": ("sampling", "replay_generate"),
    "text_gen.npz": ("sampling", "replay_text"),
}
WORDS_ONLY = {"manifest_info.json", "self_checks.json", "timing.json", "README.md"}


class Result(NamedTuple):
    """One line of the report."""

    file: str
    array: str
    shape: tuple[int, ...]
    error: float  # relative L2, or largest difference where the bar is exact, absolute or a level
    bar: float
    passed: bool
    found: str = ""  # why it failed, where a number does not say it


class Arrays(dict):
    """The arrays of a file by name, and `read`, the names of those that were looked up.

    One that is missing is the file's fault.
    """

    def __init__(self, arrays: Iterable = (), read: Iterable[str] = ()):
        super().__init__(arrays)
        self.read = set(read)

    def __getitem__(self, name: str):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default=None):
        return self[name] if name in self else default

    def __missing__(self, name: str):
        raise ValueError(f"the file has no array {name!r}")


class Golden(NamedTuple):
    """One golden file and where it lies."""

    path: Path
    arrays: Arrays
    weights: Path | None = None  # what is replayed with; None: the folder's own ckpt/

    @property
    def folder(self) -> Path:
        return self.path.parent


def compare(file: str, name: str, ours, reference) -> Result:
    """Compares one array under the bar of its role."""
    role = table.role_of(file, name)
    reference = np.asarray(reference)
    if unlike := _unlike(ours, reference):
        return Result(file, name, reference.shape, np.inf, 0.0, False, unlike)
    ours = np.asarray(ours)
    if role == table.EXACT:
        equal = np.array_equal(ours, reference)
        wrong = 0 if equal else int(np.sum(ours != reference))
        return Result(file, name, reference.shape, float(wrong), 0.0, equal)
    bar, error = _distance(role, ours.astype(np.float64), reference.astype(np.float64))
    return Result(file, name, reference.shape, error, bar, error <= bar)


def _unlike(ours, reference) -> str:
    """Says why two arrays cannot be compared at all, "" where they can."""
    if ours is None:
        return "not replayed"
    return f"shape {np.shape(ours)}" if np.shape(ours) != np.shape(reference) else ""


def _distance(role: str, ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Returns the bar of a role and how far two float64 arrays are apart by its measure."""
    with np.errstate(invalid="ignore"):  # inf - inf, where both are the same infinity
        difference = np.where(ours == reference, 0.0, ours - reference)
    if role == table.LEVEL:
        return 1.0, float(np.max(np.abs(difference), initial=0.0))
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x in (ours, reference))
    if role == table.ZERO or (role == table.GRADIENT and largest <= table.ZERO_BAR):
        return table.ZERO_BAR, largest
    size = float(np.linalg.norm(np.where(np.isfinite(reference), reference, 0.0)))
    error = float(np.linalg.norm(difference))
    return table.FORWARD_BAR, error / size if size else error


def check(golden: Golden, ours: Mapping[str, np.ndarray]) -> Iterator[Result]:
    """Compares every array of a file that is not an input.

    An unknown one is a failure, and so is an input that the replay has not read.
    """
    file, read = golden.path.name, golden.arrays.read
    for name, reference in golden.arrays.items():
        try:
            role = table.role_of(file, name)
        except ValueError as error:
            yield Result(file, name, np.shape(reference), np.inf, 0.0, False, str(error))
            continue
        if role == table.INPUT and name not in read:
            why = "an input that no comparison reads"
            yield Result(file, name, np.shape(reference), np.inf, 0.0, False, why)
        elif role in table.COMPARED:
            yield compare(file, name, ours.get(name), reference)
        elif unlike := role == table.ROUNDING and _unlike(ours.get(name), reference):
            yield Result(file, name, np.shape(reference), np.inf, 0.0, False, unlike)


def load(path: Path) -> Golden:
    """Reads a golden file: an .npz, or a .json whose leaves become arrays by path.

    Raises:
      ValueError: the file cannot be read.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as archive:
                return Golden(path, Arrays((name, archive[name]) for name in archive.files))
        return Golden(path, json.loads(path.read_text()))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def replay(golden: Golden) -> tuple[Golden, dict[str, np.ndarray]]:
    """Computes every compared array of a file from its inputs.

    Returns:
      the file with its arrays by name (a JSON file is flattened), of which those that were read are
      noted, and our arrays by the same names.
    """
    golden = golden._replace(arrays=Arrays(golden.arrays))
    module, function = REPLAYS[golden.path.name]
    module = importlib.import_module(f"inset_jax.parity.{module}")
    return getattr(module, function)(golden)


def files(folder: Path) -> list[Path]:
    """Returns the golden files below a folder: a model's, `common`, or the parent of both.

    Raises:
      ValueError: there are none, or a file that no replay knows.
    """
    if not folder.is_dir():
        raise ValueError(f"--golden={folder}: no such folder")
    inside = sorted(p for p in folder.glob("*") if p.is_file())
    inside += sorted(p for p in folder.glob("*/*") if p.is_file() and p.parent.name != "ckpt")
    found = [p for p in inside if p.suffix in (".npz", ".json") and p.name not in WORDS_ONLY]
    unknown = [p for p in found if p.name not in REPLAYS]
    if unknown:
        raise ValueError(f"{unknown[0]}: not a golden file; known are {sorted(REPLAYS)}")
    if not found:
        raise ValueError(f"--golden={folder}: no golden file in it or one level below")
    order = list(REPLAYS)
    return sorted(found, key=lambda p: (str(p.parent), order.index(p.name)))


def run(folder: Path) -> Iterator[Result]:
    """Replays every golden file below a folder and yields a line for each compared array.

    A file that cannot be replayed (it lacks an input, or the file with its inputs is not there) is
    one failure; the others are replayed all the same.
    """
    for path in files(folder):
        file = str(path.relative_to(folder))
        golden = load(path)
        try:
            golden, ours = replay(golden)
        except ValueError as error:
            yield Result(file, "*", (), np.inf, 0.0, False, f"not replayed: {error}")
            continue
        for result in check(golden, ours):
            yield result._replace(file=file)


def line(result: Result) -> str:
    """Formats one result."""
    verdict = "ok" if result.passed else f"FAIL {result.found}".rstrip()
    shape = "x".join(map(str, result.shape)) or "scalar"
    name = f"{result.file}:{result.array}"
    return f"{name:96} {shape:>16} {result.error:10.2e} {result.bar:8.0e}  {verdict}"


HEADER = f"{'array':96} {'shape':>16} {'error':>10} {'bar':>8}  verdict"


def summary(results: Iterable[Result]) -> str:
    """One line a file: how many arrays, the worst error, how many failed."""
    by_file: dict[str, list[Result]] = {}
    for result in results:
        by_file.setdefault(result.file, []).append(result)
    lines = [f"{'file':28} {'arrays':>7} {'worst':>10} {'failed':>7}"]
    for file, group in by_file.items():
        worst = max((r.error for r in group if r.bar == table.FORWARD_BAR), default=0.0)
        failed = sum(not r.passed for r in group)
        lines.append(f"{file:28} {len(group):7} {worst:10.2e} {failed:7}")
    return "\n".join(lines)
