"""What the rules of `core.mesh` make of a run's state on a slice, by shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax

from inset_jax.core import mesh as meshes
from inset_jax.core.config import Config
from inset_jax.preflight import program
from inset_jax.preflight.chips import GIB, Slice
from inset_jax.preflight.report import aligned
from inset_jax.train import start, step

ITEMS = {"params": "parameters", "ema": "average", "opt_state": "optimizer"}


class Row(NamedTuple):
    """Arrays whose dimensions carry the same names and are split alike."""

    names: tuple[str, ...]
    axes: tuple[str, ...]  # a dimension: "fsdp", "dcn+fsdp", or "" where it lies whole
    arrays: int  # of the parameters
    bytes: dict[str, int]  # on one device, by item of the state


def mesh_of(config: Config, slice_: Slice) -> jax.sharding.AbstractMesh:
    """Returns the mesh of a config on a slice; its devices need not be there.

    Raises:
      ValueError: its sizes do not fit the slice.
    """
    inside = range(slice_.devices // slice_.count)
    found = meshes.sizes(config.mesh, [inside] * slice_.count)
    return jax.sharding.AbstractMesh(tuple(found.values()), tuple(found))


def rows(config: Config, mesh: jax.sharding.AbstractMesh) -> list[Row]:
    """Returns what a device holds of the state, the most first."""
    state, _ = start.wanted(config, mesh)
    logical = step.state_logical(config)
    found: dict[tuple, Row] = {}
    is_names = lambda node: isinstance(node, tuple)
    for item in ITEMS:
        named = jax.tree.leaves(logical[item], is_leaf=is_names)
        for names, leaf in zip(named, jax.tree.leaves(state[item]), strict=True):
            key = (names, _axes(leaf))
            row = found.setdefault(key, Row(*key, 0, dict.fromkeys(ITEMS, 0)))
            row.bytes[item] += program.device_bytes(leaf)
            found[key] = row._replace(arrays=row.arrays + (item == "params"))
    return sorted(found.values(), key=lambda row: -sum(row.bytes.values()))


def _axes(leaf: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    parts = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
    sizes = leaf.sharding.mesh.shape
    split = lambda part: (part,) if isinstance(part, str) else part or ()
    return tuple("+".join(axis for axis in split(part) if sizes[axis] > 1) for part in parts)


def text(config: Config, slice_: Slice) -> str:
    """Returns both tables: the rules, and what they make of the state."""
    return "\n".join(_lines(config, slice_))


def _lines(config: Config, slice_: Slice) -> Iterator[str]:
    mesh = mesh_of(config, slice_)
    yield f"{config.name} on {slice_.name}: {slice_.devices} devices; GiB of each"
    yield ""
    rules = [
        [name, " ".join(f"{axis}={mesh.shape[axis]}" for axis in axes) or "whole"]
        for name, axes in meshes.RULES.items()
    ]
    yield from aligned([["logical name", "mesh axes"], *rules])
    yield ""
    gib = lambda size: f"{size / GIB:.3f}"
    found = rows(config, mesh)
    cells = [
        [
            ", ".join(f"{n}: {a}" if a else n for n, a in zip(row.names, row.axes)) or "a number",
            str(row.arrays),
            *map(gib, row.bytes.values()),
            gib(sum(row.bytes.values())),
        ]
        for row in found
    ]
    sums = [sum(row.bytes[item] for row in found) for item in ITEMS]
    cells.append(["all", str(sum(r.arrays for r in found)), *map(gib, sums), gib(sum(sums))])
    head = ["dimensions of arrays: axes", "arrays", *ITEMS.values(), "all"]
    yield from aligned([head, *cells])
