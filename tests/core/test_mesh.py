import jax
import pytest
from jax.sharding import PartitionSpec

from inset_jax.core import mesh
from inset_jax.core.config import MeshConfig


def test_sizes_must_multiply_to_the_devices():
    with pytest.raises(ValueError, match=r"needs 4 devices, there are 1: change one size"):
        mesh.build(MeshConfig(fsdp=4), jax.devices()[:1])


def test_minus_one_takes_what_is_left():
    assert dict(mesh.build(MeshConfig(), jax.devices()[:1]).shape)["fsdp"] == 1


def test_unknown_logical_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"unknown logical name 'embde'.*'embed'"):
        mesh.spec(("embde",))


def test_one_axis_cannot_split_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions"):
        mesh.spec(("embed", "pack"))


def test_rules_name_mesh_axes_and_only_those():
    assert mesh.spec(("layer", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert {axis for axes in mesh.RULES.values() for axis in axes} <= set(mesh.AXES)
