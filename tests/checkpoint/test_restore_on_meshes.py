import os
import subprocess
import sys

import pytest

from inset_jax.core import simulated
from tests.checkpoint.folders import FOLDER, inward

ON_EIGHT_DEVICES = """
import sys, jax, numpy as np, tensorstore as ts
from inset_jax.checkpoint import arrays, convert, load, names, place
from inset_jax.core import mesh
from inset_jax.core.config import MeshConfig

def count():
    (metric,) = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for value in metric["values"])

expected = names.flatten(convert.load_bagel(sys.argv[2]))
shapes = convert.shapes(load.read_config(sys.argv[1]))
item = place.Place(sys.argv[1] + "/0/params")
cuts = {path: arrays.read_cut(item, path) for path in shapes}
for sizes in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}):
    placed = load.shardings(load.read_config(sys.argv[1]), mesh.build(MeshConfig(**sizes)))
    needed = index = 0
    for path, cut in cuts.items():
        parts = placed[path].devices_indices_map(cut.shape).values()
        parts = {tuple(p.indices(n)[:2] for p, n in zip(part, cut.shape)) for part in parts}
        read = [r for p in parts for r in arrays.ranges(cut, path, [slice(*s) for s in p])]
        assert len(set(read)) == len(read), path
        needed += sum(r.length for r in read)
        index += sum(len({r.file for r in arrays.ranges(cut, path, [slice(*s) for s in p])})
                     * int(np.prod(cut.pieces)) * arrays.INDEX_BYTES for p in parts)
    before = count()
    loaded = load.load_any(sys.argv[1], mesh.build(MeshConfig(**sizes)))
    found = names.flatten(loaded.params)
    for path, leaf in found.items():
        assert leaf.sharding == placed[path], path
        np.testing.assert_array_equal(leaf, expected[path])
    whole = sum(leaf.nbytes for leaf in expected.values())
    assert needed == whole, (needed, whole)
    described = sum(len(arrays.zarr_json(cut)) for cut in cuts.values())
    extra = count() - before - needed
    print(sizes, "numbers", needed, "beside them", extra, "of index and descriptions")
    assert 0 <= extra <= index + 3 * described < whole / 10, (extra, index, described)
print("same")
"""


def test_eight_devices_get_every_number_and_read_each_byte_once(tmp_path):
    """Cut for these meshes: cut for a pod, so small a model would be half index."""
    inward(FOLDER, tmp_path / "orbax", mesh=(("fsdp", 8), ("tensor", 2)))
    command = [sys.executable, "-c", ON_EIGHT_DEVICES, str(tmp_path / "orbax"), str(FOLDER)]
    done = subprocess.run(
        command, env=os.environ | simulated.several(8), capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("same\n"), done.stderr[-2000:]


def test_training_starts_from_it(converted, tmp_path):
    """One device; a folder of another model is refused before anything is read."""
    jax = pytest.importorskip("jax")
    from inset_jax.checkpoint import load
    from inset_jax.core import mesh
    from inset_jax.core.config import Config, MeshConfig, RunConfig, edit
    from inset_jax.train import start

    config = Config(model=load.read_config(converted), run=RunConfig(init_from=str(converted)))
    devices = mesh.build(MeshConfig(), jax.devices()[:1])
    begun = start.begin(config, devices, tmp_path)
    assert begun.origin == f"params of {converted}, step 0"
    assert [entry["kind"] for entry in begun.provenance] == ["bagel", "checkpoint"]
    kernel = begun.state["params"]["latent_in"]["kernel"]
    assert kernel.dtype == "float32" and int(begun.state["step"]) == 0
    other = edit(config, model__llm__layers=3)
    with pytest.raises(ValueError, match=r"llm\.layers is 2 there and 3 here"):
        start.begin(other, devices, tmp_path)
