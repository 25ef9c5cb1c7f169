"""Imports point one way: the table of rooms, enforced on the source, late imports included."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "inset_jax"

# room (or file beside the rooms) -> rooms it may import, besides itself
MAY_IMPORT = {
    "core": set(),
    "kernels": {"core"},
    "data": {"core"},
    "model": {"core", "kernels"},
    "checkpoint": {"core", "model"},
    "train": {"core", "data", "model", "checkpoint", "kernels"},
    "sample": {"core", "data", "model", "checkpoint"},
    "engine": {"core", "data"},
    "evaluate": {"core", "data", "sample"},
    "generate": {"core", "data", "model", "checkpoint", "sample"},
    "convert": {"core", "checkpoint", "parity"},
    # compiles what a run would; nothing imports it
    "preflight": {"core", "data", "model", "kernels", "sample", "train"},
    # replays a reference run through all rooms; the convert command alone imports it
    "parity": {"core", "kernels", "data", "model", "checkpoint", "train", "sample"},
}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow", "transformers"}


def _room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: pathlib.Path) -> set[str]:
    """Returns every module that a file imports anywhere, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _rooms_imported(path: pathlib.Path) -> set[str]:
    parts = [name.split(".") for name in _imports(path)]
    return {part[1] for part in parts if part[0] == "inset_jax" and len(part) > 1}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_is_in_the_table():
    assert {_room(path) for path in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room):
    allowed = MAY_IMPORT[room] | {room}
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in FILES
        if _room(path) == room and (found := _rooms_imported(path) - allowed)
    }
    assert not wrong


def test_configs_import_core_only():
    for path in (ROOT / "configs").glob("*.py"):
        assert _rooms_imported(path) <= {"core"}, path


def test_the_package_does_not_import_what_is_run_from_the_clone():
    for path in FILES:
        roots = {name.split(".")[0] for name in _imports(path)}
        assert not roots & {"tools", "launch", "configs", "tests"}, path


def test_data_names_no_accelerator_library_and_no_heavy_one():
    for path in FILES:
        if _room(path) == "data":
            roots = {name.split(".")[0] for name in _imports(path)}
            assert not roots & HEAVY, path


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def _loaded(imports: str) -> set[str]:
    return set(_python(f"import sys\n{imports}\nprint(*sys.modules)").split())


def test_importing_the_package_is_light():
    assert not _loaded("import inset_jax") & (HEAVY | {"numpy", "grain", "tensorflow_datasets"})


def test_importing_the_data_room_loads_nothing_heavy():
    modules = [f"inset_jax.data.{path.stem}" for path in (PACKAGE / "data").glob("[a-z]*.py")]
    loaded = _loaded(f"import {', '.join(modules)}")
    assert not loaded & (HEAVY | {"grain", "tensorflow_datasets", "tokenizers"})


def test_importing_the_package_costs_less_than_a_third_of_a_second():
    code = "import time; t = time.perf_counter(); import inset_jax; print(time.perf_counter() - t)"
    assert min(float(_python(code)) for _ in range(3)) < 0.3
