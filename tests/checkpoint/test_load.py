import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from inset_jax.checkpoint import load, names, provenance, store
from inset_jax.core import mesh as core_mesh
from inset_jax.core import simulated
from inset_jax.core.config import MeshConfig
from inset_jax.model import int8
from tests.checkpoint.folders import change, write_tokenizer


def equal(a, b):
    a, b = names.flatten(a), names.flatten(b)
    assert list(a) == list(b)
    return all(np.array_equal(a[path], b[path]) for path in a)


def doubled(tree):
    return jax.tree.map(lambda leaf: leaf * 2, tree)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """A run's work folder with two steps; the moving average covers the model without the VAE."""
    config, params = tiny
    work = tmp_path_factory.mktemp("run")
    meta = {"config": {"model": dataclasses.asdict(config)}, "provenance": [{"kind": "bagel"}]}
    with store.Store(work / "checkpoints") as writer:
        for step in (1, 2):
            state = {"params": params, "ema": {"model": doubled(params["model"])}}
            writer.save(step, state, meta)
    (work / "checkpoints" / "tokenizer.json").write_text("{}")
    return work


def test_a_bagel_folder_and_its_checkpoint_are_the_same_model(folder, run, tiny):
    write_tokenizer(folder)
    one, two = load.load_any(folder), load.load_any(run, weights="params")
    assert one.config == two.config == tiny[0] == load.read_config(run) == load.read_config(folder)
    assert equal(one.params, two.params) and equal(one.params, tiny[1])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(one.params))
    assert one.tokenizer == folder / "tokenizer.json"
    assert two.tokenizer == run / "checkpoints" / "tokenizer.json"
    assert one.info["kind"] == "bagel" and two.info["kind"] == "checkpoint"
    assert (two.info["step"], two.info["weights"]) == (2, "params")
    assert two.info["meta"]["provenance"] == [{"kind": "bagel"}]


def test_the_weights_that_are_asked_for_are_taken_of_a_bagel_folder(folder):
    average, model = folder / "ema.safetensors", folder / "model.safetensors"
    shutil.copy(average, model)
    change(folder, lambda found: found["vae2llm.bias"].__setitem__(0, 7), model.name)

    def taken(weights):
        loaded = load.load_any(folder, weights=weights)
        return loaded.info["weights"], float(loaded.params["model"]["latent_in"]["bias"][0]) == 7

    assert (taken("ema"), taken("params")) == (("ema", False), ("params", True))
    average.rename(folder / "kept")
    assert taken("ema") == ("params", True)  # what there is, under its own name
    (folder / "kept").rename(average)
    model.unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors or .* found .*ema.safet"):
        taken("params")


@pytest.mark.parametrize("inside, step", [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)])
def test_the_average_is_taken_where_there_is_one(run, tiny, inside, step):
    loaded = load.load_any(run / inside)
    assert (loaded.info["step"], loaded.info["weights"]) == (step, "ema")
    assert equal(loaded.params["model"], doubled(tiny[1]["model"]))
    assert equal(loaded.params["vae"], tiny[1]["vae"])
    assert loaded.tokenizer == run / "checkpoints" / "tokenizer.json"


def test_kernels_become_int8_on_the_host_and_on_the_devices(folder, run, tiny):
    mesh = core_mesh.build(MeshConfig(), jax.devices()[:1])
    expected = int8.shrink(tiny[1]["model"])
    for path, where, weights in (
        (folder, None, "ema"),
        (folder, mesh, "ema"),
        (run, mesh, "params"),
    ):
        found = load.load_any(path, where, weights, is_int8=True).params
        assert equal(found["vae"], tiny[1]["vae"])
        leaves, wanted = names.flatten(found["model"]), names.flatten(expected)
        assert set(leaves) == set(wanted)
        for name, leaf in leaves.items():
            assert leaf.dtype == wanted[name].dtype
            np.testing.assert_allclose(leaf, wanted[name], rtol=1e-6, atol=leaf.dtype == np.int8)


def test_a_mesh_and_a_dtype_may_be_asked_for(folder, run):
    mesh = core_mesh.build(MeshConfig(), jax.devices()[:1])
    for path in (folder, run):
        kernel = load.load_any(path, mesh, dtype="bfloat16").params["model"]["llm"]["head"][
            "kernel"
        ]
        assert kernel.dtype == "bfloat16"
        assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
        coder = load.load_any(path, mesh, dtype="bfloat16").params["vae"]
        assert equal(coder, load.load_any(run, mesh).params["vae"])  # not rounded


def test_what_is_no_model_is_refused(tmp_path, run):
    with pytest.raises(ValueError, match="nowhere: is no folder, so neither a complete checkpoint"):
        load.load_any(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="weights='best': expected 'ema' or 'params'"):
        load.load_any(run, weights="best")


def test_parameters_that_are_not_those_of_the_config_are_refused(tmp_path, tiny):
    config, params = tiny
    odd = {**params, "vae": {**params["vae"], "codebook": np.zeros(3, np.float32)}}
    with store.Store(tmp_path) as writer:
        writer.save(1, {"params": odd}, {"config": dataclasses.asdict(config)})
    with pytest.raises(ValueError, match="unexpected: vae/codebook"):
        load.load_any(tmp_path)


def test_ancestors_are_known_through_training(folder, run):
    (entry,) = provenance.ancestry(folder)
    assert entry["kind"] == "bagel"
    by_name = {file["name"]: file for file in entry["files"]}
    assert set(by_name) == {
        *("ema.safetensors", "ae.safetensors", "config.json"),
        *("llm_config.json", "vit_config.json", "special_tokens.json"),
    }
    data = (folder / "ae.safetensors").read_bytes()
    assert by_name["ae.safetensors"]["bytes"] == len(data)
    digest = subprocess.run(
        ["sha256sum", folder / "ae.safetensors"], capture_output=True, text=True
    )
    assert by_name["ae.safetensors"]["sha256"] == digest.stdout.split()[0]
    first, second = provenance.ancestry(run)
    assert first == {"kind": "bagel"} and (second["kind"], second["step"]) == ("checkpoint", 2)


ON_EIGHT_DEVICES = """
import sys, jax, numpy as np
from inset_jax.checkpoint import convert, load, names
from inset_jax.core import mesh
from inset_jax.core.config import MeshConfig
loaded = load.load_any(sys.argv[1], mesh.build(MeshConfig(fsdp=4, tensor=2)), weights="params")
expected = names.flatten(convert.load_bagel(sys.argv[2]))
found = names.flatten(loaded.params)
assert all(np.array_equal(found[path], expected[path]) for path in expected)
kernel = loaded.params["model"]["llm"]["layers"]["und"]["mlp"]["gate"]["kernel"]
print(len(kernel.addressable_shards), kernel.addressable_shards[0].data.shape, kernel.shape)
"""


def test_a_checkpoint_of_one_device_loads_onto_eight(folder, run):
    command = [sys.executable, "-c", ON_EIGHT_DEVICES, str(run), str(folder)]
    result = subprocess.run(
        command, env=os.environ | simulated.several(8), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "8 (2, 16, 48) (2, 64, 96)"


def test_a_step_is_self_contained_when_the_folder_moves(run, tmp_path, tiny):
    shutil.copytree(run / "checkpoints" / "2", tmp_path / "2")
    assert equal(load.load_any(tmp_path, weights="params").params, tiny[1])
