"""Compiles kernels for TPUs that are not there and counts the bundles of their bodies.

libtpu compiles on any machine and writes down the final schedule of a kernel: bundles, the very
long instruction words of which a core runs one a cycle. Their number in a loop's body is a measure
of cycles, good for ratios: it holds no wait for memory. Nothing here runs on a TPU.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import NamedTuple

TOPOLOGIES = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
KINDS = {"v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}  # as JAX names them

# GHz of one core, bytes a second of memory for each core (v5p and tpu7x have two cores a chip);
# source: peak bfloat16 rates and memory bandwidths as published for each chip
CLOCK_GHZ = {"v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2}
BANDWIDTH = {"v5p": 2765e9 / 2, "v6e": 1640e9, "tpu7x": 7380e9 / 2}

BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s*(\w\w)?:\s*>*\s*\{")
BLOCK_STARTS = {"LB", "LH", "PF", "PB", "CT"}  # loops' bodies and heads, predicated regions


class Body(NamedTuple):
    """One straight piece of a kernel's program."""

    bundles: int
    products: int  # instructions that feed a matrix unit


class Compiled(NamedTuple):
    """What an ahead-of-time compile found out."""

    bodies: dict[str, list[Body]]  # a kernel's name: its pieces in program order
    seconds: float
    executable: object  # jax.stages.Compiled


def prepare(dump: pathlib.Path | None) -> None:
    """Sets what libtpu reads when it is loaded; must come before the first compile.

    Args:
      dump: an existing folder for schedules; None writes none.

    Raises:
      ValueError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu compiles for TPUs and is not installed: pip install '.[tpu]'")
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-16",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    if dump is not None:
        flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = flags


def compile_for(chip: str, function: Callable, shapes, dump: pathlib.Path) -> Compiled:
    """Compiles `function` for one device of a chip and reads the bundles of its kernels.

    Args:
      shapes: arguments, a tuple of pytrees of `jax.ShapeDtypeStruct`.
      dump: the folder given to `prepare`; emptied first.
    """
    import jax

    from inset_jax.core import mesh as meshes
    from inset_jax.core.config import MeshConfig

    for file in dump.iterdir():
        file.unlink()
    mesh = meshes.build(MeshConfig(), described(chip)[:1])
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        executable = jax.jit(function).lower(*jax.tree.map(place, shapes)).compile()
    seconds = time.perf_counter() - start
    return Compiled(kernels_in(dump), seconds, executable)


def described(chip: str) -> list:
    """Returns devices of a chip that are not there, for ahead-of-time compiles."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices


def kernels_in(dump: pathlib.Path) -> dict[str, list[Body]]:
    """Reads every schedule in a dump: kernel's name -> pieces with at least 50 bundles."""
    found = {}
    for file in sorted(dump.glob("*final_bundles.txt")):
        if "schedule-analysis" in file.name:
            continue
        name = re.sub(r"^\d+-|(\.\d+)?-\d+-final_bundles\.txt$", "", file.name)
        found[name] = [body for body in bodies(file.read_text()) if body.bundles >= 50]
    return found


def bodies(text: str) -> list[Body]:
    """Cuts a schedule into straight pieces, at labels and after branches."""
    pieces, bundles, products = [], 0, 0

    def finish():
        nonlocal bundles, products
        if bundles:
            pieces.append(Body(bundles, products))
        bundles = products = 0

    branched = False
    for line in text.splitlines():
        head = BUNDLE.match(line)
        if head:
            if branched or head[1] in BLOCK_STARTS:
                finish()
            branched = False
            bundles += 1
        products += line.count("vmatmul")
        branched = branched or "sbr.rel" in line
    finish()
    return pieces


def of_kernel(found: Compiled, part: str) -> list[Body]:
    """The pieces of the one kernel whose name contains `part`; JAX decorates what it derives."""
    (name,) = [name for name in found.bodies if part in name]
    return found.bodies[name]


def work(pieces: list[Body]) -> list[Body]:
    """The pieces that do a tile's products: those with many, in program order."""
    most = max((piece.products for piece in pieces), default=0)
    return [piece for piece in pieces if piece.products > most / 4]
