import jax
import numpy as np
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


class Chip:
    """As much of a device as meshes look at."""

    platform = device_kind = "cpu"

    def __init__(self, number: int, process: int, slice_index: int | None = None):
        self.id, self.process_index = number, process
        if slice_index is not None:
            self.slice_index = slice_index


def slices(count: int, each: int, per_process: int = 2) -> list[Chip]:
    """Devices of several slices, as jax.devices() lists them, but mixed up."""
    chips = [Chip(n, n // per_process, n // each) for n in range(count * each)]
    return chips[::2] + chips[1::2]


def test_dcn_goes_from_slice_to_slice():
    built = mesh.build(MeshConfig(dcn=2, tensor=2), slices(2, 4))
    assert dict(built.shape) == {"dcn": 2, "fsdp": 2, "context": 1, "tensor": 2}
    for number, part in enumerate(built.devices):
        assert {chip.slice_index for chip in part.flat} == {number}
    four = mesh.build(MeshConfig(dcn=4), slices(2, 4))  # two groups in each slice
    assert [{c.slice_index for c in part.flat} for part in four.devices] == [{0}, {0}, {1}, {1}]


def test_axes_that_would_cross_between_slices_are_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"dcn=1 does not fit 2 slices of 4 .*mesh\.dcn=2 mesh\.fs"
    ):
        mesh.build(MeshConfig(dcn=1), slices(2, 4))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"dcn": 1, "fsdp": 6, "context": 1, "tensor": 1}, (1, 8, 1, 1)),
        ({"dcn": 1, "fsdp": -1, "context": 1, "tensor": 3}, (1, 2, 1, 4)),
        ({"dcn": 2, "fsdp": 2, "context": 2, "tensor": 2}, (1, 2, 2, 2)),
    ],
)
def test_nearest_mesh_keeps_what_can_stay(asked, found):
    assert tuple(mesh.nearest(asked, [range(8)]).values()) == found


class TorusChip(Chip):
    """One chip of a v5p torus, at its place."""

    platform, device_kind, core_on_chip, slice_index = "tpu", "TPU v5", 0, 0

    def __init__(self, number: int, coords: tuple[int, int, int]):
        super().__init__(number, number // 4)
        self.coords = coords


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"context": 2}, {"context": 2, "tensor": 8}])
def test_axes_may_be_parts_of_a_side_of_the_torus(sizes):
    chips = [TorusChip(n, (n % 4, n // 4 % 4, n // 16)) for n in range(64)]
    built = mesh.build(MeshConfig(**sizes), chips)
    assert built.shape["fsdp"] == 64 // np.prod(list(sizes.values()))
    assert len({chip.id for chip in built.devices.flat}) == 64
    one, other = (np.array(chip.coords) for chip in built.devices[0, 0, :, :2].flat[:2])
    assert np.sum(one != other) == 1  # neighbours, over one wire


def test_slices_of_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match=r"unequal sizes \(slice: devices\): \{0: 4, 1: 2\}"):
        mesh.build(MeshConfig(dcn=2), slices(2, 4)[:6])


def test_processes_share_packs_by_where_their_devices_stand():
    chips = [Chip(n, n // 2) for n in range(8)]
    over = lambda order, **sizes: mesh.Mesh(
        np.array([chips[n] for n in order]).reshape([sizes.get(a, 1) for a in mesh.AXES]), mesh.AXES
    )
    straight = over(range(8), fsdp=8)
    assert mesh.share(straight, 16, 1) == mesh.Share(1, 4, (4, 5, 6, 7), True)
    snake = over((0, 2, 1, 3, 4, 6, 5, 7), fsdp=8)
    assert mesh.share(snake, 8, 0).rows == (0, 2)
    wide = over(range(8), fsdp=2, tensor=4)  # two processes work on the same packs
    assert mesh.share(wide, 4, 1) == mesh.Share(0, 2, (0, 1), False)
    assert mesh.share(wide, 4, 2) == mesh.Share(1, 2, (2, 3), True)
    with pytest.raises(ValueError, match="parts of one another's packs"):
        mesh.share(over((0, 2, 1, 4, 3, 5, 6, 7), fsdp=4, tensor=2), 4, 0)
