import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from inset_jax.checkpoint import arrays, convert, names, place
from inset_jax.checkpoint.place import Place
from inset_jax.core import mesh as core_mesh
from inset_jax.core.config import MeshConfig, ModelConfig
from tests.checkpoint.folders import GOLDEN

SHAPES = [  # shape, names of dims, the dim that may be cut, dtype
    ((3, 64, 96), ("layer", "embed", "mlp"), 2, "bfloat16"),
    ((128, 64), ("vocab", "embed"), 0, "float32"),
    ((64,), ("embed",), None, "float16"),
    ((2, 97, 101), ("layer", "embed", "mlp"), 2, "float32"),  # nothing divides: padded files
    ((1009, 7), ("small", "small"), 0, "float32"),
    ((3, 3, 4, 5), ("small",) * 4, None, "float64"),
]


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(arrays, "FILE_BYTES", 4000)


def files_of(cut, array, stacked):
    for at in np.ndindex(*cut.files):
        block = array[tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, cut.file))]
        yield at, block[0] if stacked else block


@pytest.mark.parametrize("shape, logical, long, dtype", SHAPES)
def test_tensorstore_reads_what_is_encoded(small_files, shape, logical, long, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    cut = arrays.cut(shape, dtype, logical, arrays.MESH, long)
    item = Place("memory://arrays/item")
    item.write("x/zarr.json", arrays.zarr_json(cut))
    for at, block in files_of(cut, array, logical[0] == "layer"):
        assert block.nbytes <= 4000 or long is None
        block = np.asfortranarray(block)  # as a transposed tensor arrives
        item.write(arrays.key("x", at), arrays.encode(cut, block))
    stored = ts.open({"driver": "zarr3", "kvstore": item.spec("x")}, context=place.context())
    found = stored.result().read().result()
    assert found.tobytes() == array.tobytes()
    assert arrays.read_cut(item, "x") == cut


def test_a_range_holds_exactly_the_part_asked_for(small_files):
    shape, dtype = (3, 64, 96), np.dtype(np.float32)
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    cut = arrays.cut(shape, dtype, ("layer", "embed", "mlp"), {"fsdp": 8, "tensor": 2}, 2)
    stored = {
        arrays.key("x", at): arrays.encode(cut, block) for at, block in files_of(cut, array, True)
    }
    index = (slice(1, 2), slice(8, 16), slice(48, 96))
    found = arrays.ranges(cut, "x", index)
    numbers = [np.frombuffer(stored[r.file], dtype, r.length // 4, r.offset) for r in found]
    assert sum(map(len, numbers)) == array[index].size
    assert sorted(np.concatenate(numbers)) == sorted(array[index].ravel())


def full_size():
    """Yields every parameter of the 7B model: path, shape, logical names, cut; allocates none."""
    config = ModelConfig()
    logical = convert.logical_axes(config)
    for path, shape in convert.shapes(config).items():
        row = names.from_path(path, shape)[0]
        long = {"linear": len(shape) - 1, "conv": None}.get(
            row.transform, 0 if row.layer is None else 1
        )
        dtype = ml_dtypes.bfloat16 if path.startswith("model/") else np.float32
        yield path, shape, logical[path], arrays.cut(shape, dtype, logical[path], arrays.MESH, long)


def test_the_published_manifest_maps_completely_onto_files_of_bounded_size():
    wanted = convert.shapes(ModelConfig())
    links, foreign = names.links(wanted)
    assert not foreign
    manifest = json.loads((GOLDEN / "manifest_7b.json").read_text())
    manifest |= json.loads((GOLDEN / "manifest_ae.json").read_text())
    manifest = manifest.get("tensors", manifest)
    found = {name: names.source_shape(link, wanted[link.path]) for name, link in links.items()}
    assert {name: tuple(entry["shape"]) for name, entry in manifest.items()} == found
    cuts = {path: cut for path, _, _, cut in full_size()}
    assert max(cut.file_bytes for cut in cuts.values()) <= arrays.FILE_BYTES
    assert sum(math.prod(cut.files) for cut in cuts.values()) < 3000
    assert all(n % f == 0 for cut in cuts.values() for n, f in zip(cut.shape, cut.file))


def reads_by_host(shape, cut, sharding):
    """Returns for each host (bytes of the pieces it reads, bytes it needs)."""
    hosts = {}
    for device, index in sharding.devices_indices_map(shape).items():
        spans = tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        hosts.setdefault(device.process_index, set()).add(spans)
    for host, parts in hosts.items():  # Orbax reads an index once a host, however many devices
        read = [r for part in parts for r in arrays.ranges(cut, "x", [slice(*s) for s in part])]
        need = sum(math.prod(high - low for low, high in part) for part in parts)
        assert len(set(read)) == len(read), "a piece is read twice by one host"
        yield host, sum(r.length for r in read), need * cut.dtype.itemsize


@pytest.mark.parametrize("sizes", [{}, {"tensor": 4}, {"dcn": 4}])
def test_a_v5p_pod_reads_each_byte_once_per_host_that_needs_it(sizes, monkeypatch):
    pytest.importorskip("libtpu", reason="no libtpu: the TPU's topology is not known")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other test processes may have it too
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4")
    mesh = core_mesh.build(MeshConfig(**sizes), topology.devices)
    assert mesh.size == 64 and len({d.process_index for d in topology.devices}) == 16
    total = {}
    for path, shape, logical, cut in full_size():
        if path.startswith("vae/"):
            continue  # replicated: every host reads all of it
        sharding = core_mesh.sharding(mesh, logical, shape)
        layer = ((1, *shape[1:]), logical) if logical[0] == "layer" else (shape, logical)
        one = cut._replace(shape=layer[0])  # all layers are cut alike: one stands for them
        sharding = core_mesh.sharding(mesh, logical, layer[0])
        for host, read, need in reads_by_host(layer[0], one, sharding):
            assert read == need, (path, host, read, need)
            count = shape[0] if logical[0] == "layer" else 1
            total[host] = total.get(host, 0) + count * read
    split = 16 if not sizes else 1
    whole = sum(math.prod(s) * 2 for p, s, _, _ in full_size() if not p.startswith("vae/"))
    assert max(total.values()) < 1.2 * whole / split


def test_meshes_that_divide_the_cut_need_no_byte_twice():
    devices = np.array(jax.devices() * 1)
    assert devices.size >= 1
    for fsdp in (1, 2, 8, 32, 64):
        for path, shape, logical, cut in full_size():
            for dim, name in enumerate(logical):
                if core_mesh.RULES.get(name) == ("fsdp",) and shape[dim] % fsdp == 0:
                    assert (shape[dim] // fsdp) % cut.piece[dim] == 0, path
