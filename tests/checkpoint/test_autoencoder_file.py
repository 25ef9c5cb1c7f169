"""One autoencoder as a file in BAGEL's format, with its config and facts inside."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open

from inset_jax.checkpoint import autoencoder, convert, names
from inset_jax.core.config import ModelConfig, VaeConfig, edit
from inset_jax.model import vae

CONFIG = VaeConfig(
    channels=32, multipliers=(1, 2), res_blocks=1, latent_channels=4, scale=0.5, shift=0.25
)
MODEL = edit(ModelConfig(), vae=CONFIG, llm__layers=1, llm__model_dim=64, llm__vocab_size=152064)


@pytest.fixture(scope="module")
def params() -> dict:
    """Random numbers in the shapes of the tree; no initialiser is compiled."""
    rng = np.random.default_rng(0)
    _, shapes = vae.abstract(CONFIG)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("dtype", "bar"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_file_comes_back_as_the_same_tree(tmp_path, params, dtype, bar):
    file = tmp_path / "ae.safetensors"
    autoencoder.save(file, params, CONFIG, {"steps": 3}, dtype)
    back = convert.load_autoencoder(file, MODEL)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for path, leaf in names.flatten(params).items():
        np.testing.assert_allclose(names.flatten(back)[path], leaf, rtol=bar, atol=bar * 1e-3)
    assert autoencoder.read_config(file) == CONFIG
    assert autoencoder.read_facts(file) == {"steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["ae.safetensors"]


def test_tensors_have_bagels_names_and_layout(tmp_path, params):
    file = tmp_path / "ae.safetensors"
    autoencoder.save(file, params, CONFIG, {})
    with safe_open(file, "numpy") as opened:
        kernel = opened.get_tensor("encoder.down.0.downsample.conv.weight")
        assert opened.metadata()["format"] == "pt"
        assert json.loads(opened.metadata()["vae_config"])["ch_mult"] == [1, 2]
    ours = params["encoder"]["down"]["0"]["downsample"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, ours.transpose(3, 2, 0, 1))


def test_scale_that_disagrees_with_the_file_is_refused(tmp_path, params):
    file = tmp_path / "ae.safetensors"
    autoencoder.save(file, params, CONFIG, {})
    with pytest.raises(ValueError, match=r"model\.vae\.scale is 0\.3 in the config and 0\.5 in"):
        convert.load_autoencoder(file, edit(MODEL, vae__scale=0.3))


def test_parameters_of_another_config_or_too_large_are_not_written(tmp_path, params):
    file = tmp_path / "ae.safetensors"
    wider = dataclasses.replace(CONFIG, latent_channels=8)
    with pytest.raises(ValueError, match=r"(?s)not those of the config.*conv_out/kernel"):
        autoencoder.save(file, params, wider, {})
    huge = jax.tree.map(lambda leaf: leaf * 1e6, params)
    with pytest.raises(ValueError, match="is not finite as float16"):
        autoencoder.save(file, huge, CONFIG, {}, "float16")
    assert not list(tmp_path.iterdir())


def test_file_of_another_kind_is_refused_by_name(tmp_path):
    file = tmp_path / "ae.safetensors"
    file.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"ae\.safetensors: damaged or no safetensors"):
        autoencoder.read_config(file)


def test_damaged_text_in_the_header_names_the_file(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "ae.safetensors"
    save_file({"x": np.zeros(1)}, file, metadata={autoencoder.CONFIG: "{", autoencoder.FACTS: "["})
    with pytest.raises(ValueError, match=r"ae\.safetensors: vae_config .* damaged JSON"):
        autoencoder.read_config(file)
    with pytest.raises(ValueError, match=r"ae\.safetensors: facts .* damaged JSON"):
        autoencoder.read_facts(file)
