"""The device mesh and the one table that turns logical names into its axes.

Models are written for one device and name their dimensions; which axis a dimension is split over is
decided here and nowhere else. With no mesh set (`jax.set_mesh`), every function is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
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
    "token": ("context",),
    "key": (),
    "feature": (),
}


def build(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes AXES over the devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh sizes {dict(zip(AXES, sizes))}: each is at least 1, one may be -1")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [max(len(devices) // known, 1) if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes))} needs {math.prod(sizes)} devices, there are "
            f"{len(devices)}: change one size or set it to -1"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=np.asarray(devices))


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
