"""Whether a step is the same whatever it runs on: losses and gradients of real packs by layout.

Each layout runs in processes of its own, on simulated CPU devices: they open the records, take
their share of a step's packs, encode the pictures, and compute what the training step computes up
to the optimizer (`step.gradients`), in float32. The first one leaves FOLDER/<layout>.npz.

    python -m inset_jax.train.equality FOLDER LAYOUT PROCESS PORT
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core import host, overrides, processes
from inset_jax.core.config import Config, MeshConfig, edit
from inset_jax.core.simulated import several

BAR = 1e-5
PATIENCE = 900  # seconds for a layout
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
LOSSES = ("total", "cross_entropy", "flow")
# no bias of keys without a rotation moves a softmax: rounding is all that is left of its gradient,
# which is held to the size of another
ZERO = {"vit/layers/attention/key/bias": "vit/layers/attention/query/bias"}


class Layout(NamedTuple):
    """What a step runs on: processes, devices of each, and the mesh over all of them."""

    name: str
    processes: int
    devices: int
    sizes: Mapping[str, int]


LAYOUTS = (
    Layout("one", 1, 1, {}),
    Layout("fsdp", 1, 8, {"fsdp": 8}),
    Layout("axes", 1, 8, {"fsdp": 2, "context": 2, "tensor": 2}),
    Layout("processes", 4, 2, {"fsdp": 8}),
    # groups of processes stand for slices (`core.mesh.build`)
    Layout("slices", 4, 2, {"dcn": 2, "fsdp": 4}),
    Layout("slices-axes", 4, 2, {"dcn": 2, "fsdp": 1, "context": 2, "tensor": 2}),
)


class Row(NamedTuple):
    """How far a layout is from the first one."""

    layout: Layout
    share: float  # of a kernel of the decoder that one device holds
    loss: float  # the largest relative difference of the three losses
    gradient: float  # the largest of all arrays: max |difference| / max |array|
    worst: str  # that array
    arrays: int
    seconds: float  # of all its processes, start and compile with them

    @property
    def equal(self) -> bool:
        return max(self.loss, self.gradient) <= BAR


def compare(config: Config, folder: pathlib.Path, layouts: Sequence[Layout] = LAYOUTS):
    """Runs the layouts one after the other; yields the Row of each, the first against itself.

    Args:
      config: names records and tokenizer; computes in float32; `data.packs` that all meshes divide.
      folder: for what the processes leave.

    Raises:
      ValueError: a process failed; with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(overrides.to_dict(config)))
    first = None
    for layout in layouts:
        began = time.perf_counter()
        _run(layout, folder)
        seconds = time.perf_counter() - began
        with np.load(folder / f"{layout.name}.npz") as file:
            found = dict(file)
        share = float(found.pop("share"))
        first = first or found
        if absent := [name for name in LOSSES if not first[name] > 0]:
            raise ValueError(f"nothing to learn in the packs: {', '.join(absent)} is 0")
        errors = {name: _relative(found, first, name) for name in first}
        loss = max(errors.pop(name) for name in LOSSES)
        worst = max(errors, key=errors.get)
        yield Row(layout, share, loss, errors[worst], worst, len(errors), seconds)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the equality table, in Markdown."""
    lines = [
        "| processes x devices | mesh | part of a kernel | losses | gradients, worst |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        layout = row.layout
        mesh = " x ".join(f"{axis} {size}" for axis, size in layout.sizes.items()) or "one device"
        told = f"{row.gradient:.1e} (`{row.worst}`)" if row.gradient else "0"
        run_by, part = f"{layout.processes} x {layout.devices}", f"1/{round(1 / row.share)}"
        cells = [run_by, mesh, part, f"{row.loss:.1e}", told]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measure(config: Config, layout: Layout) -> dict[str, np.ndarray] | None:
    """What one process does; all of a layout call it. Returns the arrays in process 0."""
    import jax

    from inset_jax.core import mesh as meshes
    from inset_jax.data import pack as packing
    from inset_jax.data.loader import Loader
    from inset_jax.model import inset
    from inset_jax.train import start, step
    from inset_jax.train.latents import LatentWriter

    mesh = meshes.build(config.mesh, jax.devices()[: layout.processes * layout.devices])
    start.check_mesh(config, mesh)
    with jax.set_mesh(mesh):
        shapes, coder = start.wanted(config, mesh)
        params, coder = _filled(shapes["params"], 0), _filled(coder, 1)
        share = meshes.share(mesh, config.data.packs)
        loader = Loader(config, "train", share.index, share.count)
        batch = next(loader)
        loader.close()
        write = LatentWriter(config, coder, mesh)
        packs = start.place(packing.stack([write(batch.pack, batch.pictures)]), mesh)
        gradients = jax.jit(step.gradients(inset.abstract(config.model)[0], config))
        grads, losses, by_example, by_time = gradients(params, packs)
        named = {f"loss {n}": x for n, x in (by_example._asdict() | by_time._asdict()).items()}
        leaves = jax.tree_util.tree_leaves_with_path(grads)
        named |= {"/".join(key.key for key in path): leaf for path, leaf in leaves}
        found = {name: meshes.fetch(x) for name, x in (losses._asdict() | named).items()}
        kernel = params["llm"]["layers"]["gen"]["mlp"]["up"]["kernel"]
        found["share"] = np.array(kernel.addressable_shards[0].data.size / kernel.size)
    return found if jax.process_index() == 0 else None


def _filled(shapes, seed: int):
    """Random arrays on the mesh, the same on any; initialisers take longer to compile."""
    import jax

    from inset_jax.core import mesh as meshes

    random = np.random.default_rng(seed)

    def fill(path, leaf):
        near = 1.0 if path[-1].key == "scale" else 0.0
        return (near + 0.1 * random.standard_normal(leaf.shape)).astype(leaf.dtype)

    arrays = jax.tree_util.tree_map_with_path(fill, shapes)
    return meshes.put(arrays, jax.tree.map(lambda leaf: leaf.sharding, shapes))


def _relative(found: Mapping, first: Mapping, name: str) -> float:
    """The largest difference of two arrays of a name, relative to the largest number of one."""
    array, expected = found[name], first[name]
    size = float(np.max(np.abs(first[ZERO.get(name, name)]), initial=0.0))
    if array.shape != expected.shape or not np.all(np.isfinite(array)) or size == 0:
        return 0.0 if np.array_equal(array, expected) else np.inf
    return float(np.max(np.abs(array.astype(np.float64) - expected))) / size


def _run(layout: Layout, folder: pathlib.Path) -> None:
    """Runs the processes of a layout to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(pathlib.Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | several(layout.devices, QUICK) | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "inset_jax.train.equality", str(folder), layout.name]
    started = []
    try:
        for number in range(layout.processes):
            with open(folder / f"{layout.name}.{number}.log", "w") as log:
                words = [*command, str(number), str(port)]
                told = {"stdout": log, "stderr": subprocess.STDOUT}
                with host.undisturbed():
                    started.append(subprocess.Popen(words, env=environment, **told))
        for number, process in enumerate(started):
            try:
                failed = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                failed = True
            if failed:
                said = (folder / f"{layout.name}.{number}.log").read_text().splitlines()[-8:]
                raise ValueError("\n".join([f"{layout.name}, process {number}:", *said]))
    finally:
        for process in started:
            process.kill()
            process.wait()


def main(folder: str, name: str, process: str, port: str) -> None:
    """One process of one layout."""
    layout = next(one for one in LAYOUTS if one.name == name)
    place = processes.Place(f"127.0.0.1:{port}", layout.processes, int(process))
    told = json.loads((pathlib.Path(folder) / "config.json").read_text())
    sizes = {axis: 1 for axis in MeshConfig.__dataclass_fields__} | dict(layout.sizes)
    config = edit(overrides.from_dict(told), mesh=MeshConfig(**sizes))
    with processes.joined(place if layout.processes > 1 else None):
        found = measure(config, layout)
        if found is not None:
            np.savez(pathlib.Path(folder) / f"{name}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
