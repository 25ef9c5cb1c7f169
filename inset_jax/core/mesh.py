"""The device mesh and the one table that turns logical names into its axes.

Models are written for one device and name their dimensions; which axis a dimension is split over is
decided here and nowhere else. With no mesh set (`jax.set_mesh`), every function is the identity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inset_jax.core.config import MeshConfig

AXES = ("dcn", "fsdp", "context", "tensor")

# logical name -> mesh axes. Parameters use "embed" for the model width, activations "feature":
# the first is split by FSDP, the second never is.
RULES: dict[str, tuple[str, ...]] = {
    "layer": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "head_dim": (),
    "small": (),  # dimensions too small or too odd to split
    "pack": ("dcn", "fsdp"),
    "matrix": AXES,  # of a stack, while Muon turns each by itself
    "token": ("context",),
    "key": (),
    "feature": (),
}


def build(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes AXES over the devices; "dcn" goes from slice to slice.

    Inside a slice, the axes follow the chips' wires; where they do not fit whole sides of its torus
    (2 x 32 on 4 x 4 x 4), one side serves two axes. Where there are no slices, groups of devices in
    the order of their numbers stand for them, so those of whole processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit their slices;
        the nearest that do are named.
    """
    slices = _slices(list(jax.devices() if devices is None else devices))
    dcn, *rest = sizes(config, slices).values()
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    inside = lambda own: mesh_utils.create_device_mesh(
        (dcn // len(slices), *rest), own, allow_split_physical_axes=True
    )
    parts = [inside(own) for own in slices]
    return Mesh(np.concatenate(parts), AXES, axis_types=kinds)


def sizes(config: MeshConfig, slices: Sequence[Sequence]) -> dict[str, int]:
    """Returns the size of each of AXES on the devices of these slices, -1 filled in.

    Raises:
      ValueError: as `build`.
    """
    count = sum(len(own) for own in slices)
    asked = {axis: getattr(config, axis) for axis in AXES}
    given = list(asked.values())
    if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
        raise ValueError(f"mesh sizes {asked}: each is at least 1, one may be -1")
    known = math.prod(size for size in given if size != -1)
    found = {a: max(count // known, 1) if size == -1 else size for a, size in asked.items()}
    hint = lambda: " ".join(f"mesh.{axis}={size}" for axis, size in nearest(asked, slices).items())
    if (needed := math.prod(found.values())) != count:
        raise ValueError(
            f"mesh {found} needs {needed} devices, there are "
            f"{count}: change one size or set it to -1; the nearest that works is {hint()}"
        )
    if found["dcn"] % len(slices):
        raise ValueError(
            f"mesh.dcn={found['dcn']} does not fit {len(slices)} slices of {len(slices[0])} "
            "devices: the other axes would cross between slices; the nearest that works is "
            f"{hint()}"
        )
    return found


def nearest(asked: Mapping[str, int], slices: Sequence[Sequence]) -> dict[str, int]:
    """Returns sizes of AXES for these slices that differ least from those asked for.

    Near is few doublings and halvings, over all axes; an axis of -1 may be of any size.
    """
    count = sum(len(own) for own in slices)
    divisors = lambda number: [d for d in range(1, number + 1) if number % d == 0]
    inside = count // len(slices)
    found = []
    for each, context in itertools.product(divisors(inside), repeat=2):
        for tensor in divisors(inside // (each * context) if inside % (each * context) == 0 else 0):
            fsdp = inside // (each * context * tensor)
            sizes = dict(zip(AXES, (each * len(slices), fsdp, context, tensor)))
            cost = sum(abs(math.log2(sizes[a] / n)) for a, n in asked.items() if n > 0)
            found.append((round(cost, 6), each, context, tensor, sizes))
    return min(found, key=lambda one: one[:-1])[-1]


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Groups devices by the slice that they are in, in the order of its number; one at least."""
    by_slice: dict[int, list] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if len({len(own) for own in by_slice.values()}) > 1:
        counts = {number: len(own) for number, own in sorted(by_slice.items())}
        raise ValueError(f"slices of unequal sizes (slice: devices): {counts}")
    return [by_slice[number] for number in sorted(by_slice)]


def spec(
    logical: Sequence[str | None], shape: Sequence[int] | None = None, mesh=None
) -> PartitionSpec:
    """Returns the partition of an array whose dimensions carry these logical names.

    With `shape` and `mesh` given, an axis that does not divide its dimension is left out: the array
    is then replicated along it.

    Raises:
      ValueError: an unknown name, or one mesh axis asked for by two dimensions.
    """
    parts, used = [], set()
    for dim, name in enumerate(logical):
        if name is not None and name not in RULES:
            raise ValueError(f"unknown logical name {name!r}; core.mesh.RULES has {sorted(RULES)}")
        axes = RULES[name] if name is not None else ()
        if axes and used.intersection(axes):
            raise ValueError(f"two dimensions of {tuple(logical)} are split over {axes}")
        used.update(axes)
        if shape is not None and mesh is not None:
            ways = math.prod(mesh.shape[axis] for axis in axes)
            if shape[dim] % ways:
                axes = ()
        parts.append(axes if len(axes) != 1 else axes[0])
    return PartitionSpec(*(part or None for part in parts))


def sharding(mesh: Mesh, logical: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of an array with these logical names on this mesh."""
    return NamedSharding(mesh, spec(logical, shape, mesh))


class Share(NamedTuple):
    """Which of a step's packs a process works on."""

    index: int  # which of `count` equal shares; processes that split a pack have the same one
    count: int
    rows: tuple[int, ...]  # where its packs lie in the global batch, ascending
    is_first: bool  # whether no process of a lower number has the same share


def share(mesh: Mesh, packs: int, process: int | None = None) -> Share:
    """Returns the share of one process (default: this one) of the packs of a step.

    A mesh follows the chips' wires, so a process's packs are wherever its devices stand in it.

    Raises:
      ValueError: the mesh gives processes packs that overlap in part.
    """
    process = jax.process_index() if process is None else process
    split = sharding(mesh, ("pack",), (packs,))
    rows: dict[int, set[int]] = {}
    for device, (part,) in split.devices_indices_map((packs,)).items():
        rows.setdefault(device.process_index, set()).update(range(packs)[part])
    distinct = sorted({tuple(sorted(own)) for own in rows.values()})
    if sum(len(own) for own in distinct) != packs or len({len(own) for own in distinct}) > 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)}: processes have parts of one another's packs; make "
            "mesh.context x mesh.tensor a divisor or a multiple of the devices of a process"
        )
    mine = tuple(sorted(rows[process]))
    first = min(number for number, own in rows.items() if tuple(sorted(own)) == mine)
    return Share(distinct.index(mine), len(distinct), mine, first == process)


def put(tree, shardings):
    """Puts arrays that every process has whole onto a mesh; each sends its own devices' parts."""

    def one(array, where):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return jax.tree.map(one, tree, shardings)


def by_pack(tree):
    """Puts NumPy arrays [P, ...] that every process has whole onto the mesh that is set (or onto
    the device), P split over its pack axes."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(tree)
    return put(tree, jax.tree.map(lambda array: pack_sharding(mesh, array.shape), tree))


def pack_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Returns where an array [P, ...] lies: P split over the pack axes."""
    return sharding(mesh, ("pack",) + (None,) * (len(shape) - 1), shape)


def fetch(array) -> np.ndarray:
    """Returns an array of any mesh, whole, in every process; all of them call it together."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(_same, out_shardings=everywhere)(array).addressable_data(0)
    return np.asarray(array)


def _same(array):
    return array


def on_this_host(tree, mesh: Mesh) -> tuple[Mesh, dict]:
    """Returns a mesh of this process's devices and the arrays of `mesh`, whole on each of them."""
    if jax.process_count() > 1:
        everywhere = NamedSharding(mesh, PartitionSpec())
        whole = jax.jit(lambda x: x, out_shardings=everywhere)(tree)
        tree = jax.tree.map(lambda x: x.addressable_data(0), whole)
    own = build(MeshConfig(), jax.local_devices())
    return own, jax.device_put(tree, NamedSharding(own, PartitionSpec()))


def constrain(array: jax.Array, logical: Sequence[str | None]) -> jax.Array:
    """Tells the compiler how an activation is split; the identity without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, spec(logical, array.shape, mesh))


def platform() -> str:
    """Returns what a jitted function will run on: "tpu", "gpu" or "cpu".

    A mesh that is set decides, also one of devices that are only described (ahead-of-time compiles
    for machines that are not there); else it is JAX's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """Returns the kind of those devices as JAX names it, such as "TPU v6 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def ways(name: str) -> int:
    """Returns into how many parts the current mesh splits dimensions of this logical name."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES[name])


def index(name: str) -> jax.Array:
    """Returns, inside `per_device`, which part of a dimension of this name the device holds."""
    return jax.lax.axis_index(RULES[name])


def total(array: jax.Array, *names: str) -> jax.Array:
    """Returns, inside `per_device`, the sum over the devices that share dimensions so named."""
    axes = tuple(axis for name in names for axis in RULES[name])
    mesh = jax.sharding.get_abstract_mesh()
    return array if mesh.empty or mesh.size == 1 else jax.lax.psum(array, axes)


def gathered(array: jax.Array, name: str, dim: int) -> jax.Array:
    """Returns, inside `per_device`, the parts of all along this name's axes, side by side."""
    return jax.lax.all_gather(array, RULES[name], axis=dim, tiled=True)


def exchanged(array: jax.Array, name: str, split: int, joined: int) -> jax.Array:
    """Inside `per_device`, along this name's axes: each device keeps its part of dimension `split`,
    and has of dimension `joined` the parts of all."""
    return jax.lax.all_to_all(array, RULES[name], split, joined, tiled=True)


def dividing(name: str, *sizes: int) -> str | None:
    """Returns the logical name if its mesh axes divide all these sizes, else None: not split."""
    return None if any(size % ways(name) for size in sizes) else name


def per_device(function: Callable, inputs, outputs) -> Callable:
    """Runs `function` on each device's own part of its arguments (shard_map over the current mesh).

    Args:
      function: takes and returns arrays (or pytrees that `inputs`, `outputs` are prefixes of).
      inputs: one tuple of logical names an argument.
      outputs: logical names of the result, or a tuple of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    is_names = lambda node: (
        isinstance(node, tuple) and all(n is None or isinstance(n, str) for n in node)
    )
    specs = jax.tree.map(spec, (inputs, outputs), is_leaf=is_names)
    return jax.shard_map(function, in_specs=specs[0], out_specs=specs[1], check_vma=False)
