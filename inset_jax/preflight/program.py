"""The step that a run will take, on devices that are only described, and the bytes of its parts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from inset_jax.core import mesh as meshes
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.data import pack as packing
from inset_jax.model import inset
from inset_jax.train import optim, start

Tree = dict[str, Any]


class Program(NamedTuple):
    """A jitted function and what it is called with: trees of shapes, each with its sharding."""

    function: Any
    arguments: tuple
    held: dict[str, Any]  # part of the memory -> tree: what lies on the devices while it runs
    beside: tuple[str, ...]  # those parts of `held` that are no arguments
    state: Tree  # {"params": tree of the model, ...}, what the mesh should split


def build(config: Config, mesh: Mesh) -> Program:
    """Returns the very step of `train.loop`, with the shardings of `train.start`."""
    start.check_mesh(config, mesh)
    state, coder = start.wanted(config, mesh)
    packs = batch(config, mesh)
    trained, frozen = optim.split(state["params"], config.optimizer.frozen)
    held = {
        "parameters, trained": trained,
        "parameters, frozen": frozen,
        "optimizer state": state["opt_state"],
        "average (EMA)": state["ema"],
        "batch": packs,
        "autoencoder": coder,  # encodes targets between steps
    }
    step = start.jitted(config, state, mesh)
    return Program(step, (state, packs), held, ("autoencoder",), state)


def batch(config: Config, mesh: Mesh) -> Pack:
    """Returns the shapes of a step's packs, [accumulation, P, ...], as `data` makes them."""
    capacity, model = config.data.capacity, config.model
    one = packing.assemble(packing.layout([], model), capacity, model)
    if capacity.attention_tiles:
        one = packing.with_tiles(one, config.compute.attention_block, capacity.attention_tiles, "")
    front = (config.optimizer.accumulation, config.data.packs)

    def shaped(array):
        shape = (*front, *array.shape)
        names = (None, "pack") + (None,) * array.ndim
        return jax.ShapeDtypeStruct(
            shape, array.dtype, sharding=meshes.sharding(mesh, names, shape)
        )

    return jax.tree.map(shaped, one)


def unsplit(program: Program, mesh: Mesh, least: int = 16 << 20) -> list[dict]:
    """Returns the state's arrays that lie whole, or in fewer parts than could be, on every device.

    Sorted by what they cost: bytes a device beyond an even share, where that is at least `least`.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state):
        own = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        excess = own - leaf.size * leaf.dtype.itemsize // mesh.size
        if excess >= least:
            name = "/".join(str(getattr(key, "key", key)) for key in path)
            row = {"array": name, "shape": list(leaf.shape), "bytes": own, "excess": excess}
            found.append(row)
    return sorted(found, key=lambda row: -row["excess"])


def stacked(program: Program) -> list[tuple[int, ...]]:
    """Returns the shapes of the kernels of all layers, [layer, in, out], each once."""
    leaves = jax.tree_util.tree_leaves_with_path(program.state["params"])
    inside = lambda path: any(getattr(key, "key", None) == "layers" for key in path)
    return sorted({leaf.shape for path, leaf in leaves if inside(path) and leaf.ndim == 3})


def device_bytes(tree) -> int:
    """Bytes of a tree's parts on one device, without the padding of tiles."""
    size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def parameter_count(config: Config) -> int:
    """Numbers in the model without the autoencoder."""
    return sum(leaf.size for leaf in jax.tree.leaves(inset.abstract(config.model)[1]))
