"""Where a run begins: the state on the mesh, from random weights, other weights or a checkpoint.

The state is {"params", "ema", "opt_state", "guard", "step"} of the model without the autoencoder,
whose parameters stand apart because they do not train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from inset_jax.checkpoint import bagel, convert, differences, load, provenance, store
from inset_jax.core import mesh as meshes
from inset_jax.core import processes
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.model import inset, vae
from inset_jax.train import guard, step

Tree = dict[str, Any]

# of a model and not in a BAGEL folder: the null token is added to it, the tables are in its files
UNSAID = ("position_ratio", "position_step", "position_scale", "null_token")
COMPILED = "/jax/core/compile/backend_compile_duration"  # a program compiled, or found compiled


class Begun(NamedTuple):
    """What a run starts with."""

    state: Tree  # of `train.step`
    vae: Tree  # parameters of the autoencoder
    origin: str  # one line: where the weights are from
    provenance: list[dict]  # the same for the checkpoints' meta, with everything before it
    useful: float = 0.0  # seconds of the steps that it holds, see `goodput`


def wanted(config: Config, mesh: Mesh) -> tuple[Tree, Tree]:
    """Returns the state and the autoencoder as trees of shapes with their shardings."""
    _, params = inset.abstract(config.model)
    state = jax.eval_shape(lambda p: step.initial_state(p, config), params)
    _, coder = vae.abstract(config.model.vae)
    return (
        _placed(state, step.state_logical(config), mesh),
        _placed(coder, vae.logical_axes(config.model.vae), mesh),
    )


def jitted(config: Config, state: Tree, mesh: Mesh):
    """Returns the step as it runs on the mesh: the state stays where it is and is updated in place.

    Args:
      state: arrays, or their shapes with shardings (`wanted`).
    """
    definition, _ = inset.abstract(config.model)
    places = jax.tree.map(lambda x: x.sharding, state)
    everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(
        step.train_step(definition, config), donate_argnums=0, out_shardings=(places, everywhere)
    )


class OnceAShape:
    """The jitted step, which is compiled once for each shape of the packs and never again.

    A stage of a curriculum that changes capacities brings a new shape.
    """

    def __init__(self, step):
        self._step, self._known = step, set()

    def __call__(self, state: Tree, packs: Pack):
        """Takes a step.

        Raises:
          ValueError: packs of a known shape were compiled anew, which would go on unnoticed but for
            the time that it takes.
        """
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(packs))
        with _compiles() as compiled:
            result = self._step(state, packs)
        if compiled and shapes in self._known:
            raise ValueError(
                "the training step was compiled again for packs of shapes that it knew: something "
                "else in its arguments has changed between two steps (a dtype, a sharding)"
            )
        self._known.add(shapes)
        return result


@contextlib.contextmanager
def _compiles() -> Iterator[list[float]]:
    """Collects the seconds of each compile that this thread asks for."""
    seconds, thread = [], threading.get_ident()

    def note(event: str, duration: float, **facts) -> None:
        if event == COMPILED and threading.get_ident() == thread:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def begin(config: Config, mesh: Mesh, directory: pathlib.Path) -> Begun:
    """Returns the newest state of the directory, or the first one if it has none.

    Raises:
      ValueError: a checkpoint of another model, or a damaged one; `run.init_from` is neither a
        BAGEL folder nor a checkpoint, or is another model by its JSON files or its meta.
    """
    if store.steps(directory):
        return _resumed(config, mesh, directory)
    if config.run.init_from:
        return _from_weights(config, mesh)
    return _random(config, mesh)


def place(packs: Pack, mesh: Mesh) -> Pack:
    """Puts this process's packs [accumulation, P, ...] onto the mesh, P split over its pack axes.

    Returns the global batch: the packs of all processes, each where its process's devices stand in
    the mesh (`core.mesh.share`).
    """
    shares = meshes.share(mesh, math.prod(mesh.shape[axis] for axis in meshes.RULES["pack"])).count
    rows = meshes.share(mesh, len(packs.und_token[0]) * shares).rows
    local = {row: number for number, row in enumerate(rows)}

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0], array.shape[1] * shares, *array.shape[2:])
        sharding = meshes.sharding(mesh, (None, "pack") + (None,) * (array.ndim - 2), shape)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            own = [local[row] for row in range(shape[1])[index[1]]]
            return np.asarray(array)[:, own]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, packs)


def hosts() -> str:
    """Says who has come together: processes, hosts and devices; all processes call it."""
    names = processes.gather(socket.gethostname())
    told = [(len(names), "process", "es"), (len(set(names)), "host", "s")]
    told.append((jax.device_count(), f"{jax.devices()[0].device_kind} device", "s"))
    return ", ".join(f"{count} {name}{more * (count > 1)}" for count, name, more in told)


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Refuses packs that the mesh cannot share out.

    Raises:
      ValueError: says the nearest number that works.
    """
    ways = mesh.shape["dcn"] * mesh.shape["fsdp"]
    packs = config.data.packs
    if packs % ways:
        raise ValueError(
            f"data.packs={packs} cannot be split over the {ways} devices of mesh.dcn and mesh.fsdp:"
            f" make it {math.ceil(packs / ways) * ways}"
        )


def _random(config: Config, mesh: Mesh) -> Begun:
    seed, source = config.run.seed, config.run.autoencoder
    state, coder = wanted(config, mesh)
    first = lambda: step.initial_state(inset.create(config.model, seed)[1], config)
    build = jax.jit(first, out_shardings=_shardings(state))
    origin = f"random weights of seed {seed}"
    if source:
        loaded = convert.load_autoencoder(source, config.model)
        encode = lambda: meshes.put(loaded, _shardings(coder))
        origin += f", autoencoder of {source}"
    else:
        create = lambda: vae.create(config.model.vae, seed)[1]
        encode = jax.jit(create, out_shardings=_shardings(coder))
    return Begun(build(), encode(), origin, [])


def _from_weights(config: Config, mesh: Mesh) -> Begun:
    """Weights from elsewhere with a fresh optimizer; of a checkpoint, the averaged ones."""
    source = config.run.init_from
    state, coder = wanted(config, mesh)
    is_bagel, there = bagel.is_bagel(source), load.read_config(source)
    if is_bagel:
        own = {field: getattr(config.model, field) for field in UNSAID}
        there = dataclasses.replace(there, **own)
    if unlike := differences.models(there, config.model):
        raise ValueError(f"run.init_from={source} is another model: {'; '.join(unlike)}")
    if is_bagel:
        loaded = convert.load_bagel(source, config.model)
        shapes = {"model": state["params"], "vae": coder}
        params = meshes.put(loaded, _shardings(shapes))
        origin = f"BAGEL's weights of {source}"
    else:
        loaded = load.load_any(source, mesh)
        params = loaded.params
        origin = f"{loaded.info['weights']} of {source}, step {loaded.info['step']}"
    first = jax.jit(
        lambda p: step.initial_state(p, config), out_shardings=_shardings(state), donate_argnums=0
    )
    return Begun(first(params["model"]), params["vae"], origin, provenance.ancestry(source))


def _resumed(config: Config, mesh: Mesh, directory: pathlib.Path) -> Begun:
    number = store.latest(directory)
    state, coder = wanted(config, mesh)
    items = {
        "params": {"model": state["params"], "vae": coder},
        "ema": {"model": state["ema"]},
        "opt_state": state["opt_state"],
    }
    found = store.restore(directory, items, number, config.model)
    meta = store.read_meta(directory, number)
    memory = guard.from_json(meta.get("guard", {}), config.run)
    resumed = {
        "params": found["params"]["model"],
        "ema": found["ema"]["model"],
        "opt_state": found["opt_state"],
        "guard": meshes.put(memory, _shardings(state["guard"])),
        "step": meshes.put(np.int32(number), state["step"].sharding),
    }
    origin, history = f"step {number} of {directory}", meta.get("provenance", [])
    useful = meta.get("useful_seconds", 0.0)
    return Begun(resumed, found["params"]["vae"], origin, history, useful)


def to_items(state: Tree, coder: Tree) -> Tree:
    """Returns the items of a checkpoint: what `_resumed` reads."""
    return {
        "params": {"model": state["params"], "vae": coder},
        "ema": {"model": state["ema"]},
        "opt_state": state["opt_state"],
    }


def _placed(shapes: Tree, logical: Tree, mesh: Mesh) -> Tree:
    """Adds to each shape the sharding that its logical names give it."""
    is_names = lambda node: isinstance(node, tuple)
    put = lambda names, leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=meshes.sharding(mesh, names, leaf.shape)
    )
    return jax.tree.map(put, logical, shapes, is_leaf=is_names)


def _shardings(shapes: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
