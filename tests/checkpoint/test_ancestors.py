import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from inset_jax.checkpoint import bagel, convert, load, names, provenance
from inset_jax.checkpoint.ancestors import Ancestors, init, interpolate
from inset_jax.checkpoint.plan import Options
from inset_jax.checkpoint.to_orbax import Manner
from tests.checkpoint.folders import FOLDER, contents, outward

LLM = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
VIT = {
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_size": 4,
        "image_size": 12,
    }
}
TOKENS = {"<|im_start|>": 90, "<|im_end|>": 91, "<|vision_start|>": 92, "<|vision_end|>": 93}


def llm_tensors():
    m, kv, f = LLM["hidden_size"], 16, LLM["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (96, m), "lm_head.weight": (96, m)}
    shapes["model.norm.weight"] = (m,)
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (m,),
            at + "post_attention_layernorm.weight": (m,),
        }
        for name, size in (("q", m), ("k", kv), ("v", kv)):
            shapes |= {at + f"self_attn.{name}_proj.weight": (size, m)}
            shapes |= {at + f"self_attn.{name}_proj.bias": (size,)}
        shapes |= {at + "self_attn.o_proj.weight": (m, m), at + "mlp.down_proj.weight": (m, f)}
        shapes |= {at + f"mlp.{name}_proj.weight": (f, m) for name in ("gate", "up")}
    return shapes


def vit_tensors():
    config = VIT["vision_config"]
    m, f, at = config["hidden_size"], config["intermediate_size"], "vision_model."
    shapes = {
        at + "embeddings.patch_embedding.weight": (m, 3, 4, 4),
        at + "embeddings.patch_embedding.bias": (m,),
        at + "embeddings.position_embedding.weight": (9, m),
        **{at + f"post_layernorm.{name}": (m,) for name in ("weight", "bias")},
        at + "head.probe": (1, 1, m),
        "text_model.final_layer_norm.weight": (m,),
        "logit_scale": (1,),
        "logit_bias": (1,),
    }
    for layer in range(3):  # the last one never runs
        at = f"vision_model.encoder.layers.{layer}."
        linear = {f"self_attn.{n}_proj": (m, m) for n in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (f, m), "mlp.fc2": (m, f)}
        for name, shape in linear.items():
            shapes |= {at + name + ".weight": shape, at + name + ".bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {at + name + ".weight": (m,), at + name + ".bias": (m,)}
    return shapes


def numbers(shapes, dtype, seed):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def ancestors(tmp_path):
    """Folders as Hugging Face has them; the language model sharded and in bfloat16."""
    llm, vit = tmp_path / "qwen", tmp_path / "siglip"
    llm.mkdir()
    vit.mkdir()
    (llm / "config.json").write_text(json.dumps(LLM))
    (llm / "added_tokens.json").write_text(json.dumps(TOKENS))
    (llm / "merges.txt").write_text("a b\n")
    (vit / "config.json").write_text(json.dumps(VIT))
    (vit / "preprocessor_config.json").write_text("{}")
    found = numbers(llm_tensors(), ml_dtypes.bfloat16, 1)
    place = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(found)}
    for file in set(place.values()):
        save_file({n: t for n, t in found.items() if place[n] == file}, llm / file)
    index = llm / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    save_file(numbers(vit_tensors(), np.float32, 2), vit / "model.safetensors")
    vae = tmp_path / "ae.safetensors"
    vae.write_bytes(autoencoder())
    return Ancestors(llm, vit, vae, vit_side=5, connector_side=6, latent_side=4)


def autoencoder():
    """The golden autoencoder with its sizes in the header, as our own files have them."""
    from safetensors.numpy import load_file, save

    config = bagel.from_vae_config(bagel.config_from_bagel(FOLDER).vae)
    return save(load_file(FOLDER / "ae.safetensors"), {"vae_config": json.dumps(config)})


def begin(ancestors, target, **options):
    return init(ancestors, target, Options(**options), Manner())


def test_a_model_begins_as_bagels_training_does(ancestors, tmp_path):
    report = begin(ancestors, tmp_path / "new", seed=3)
    loaded = load.load_any(tmp_path / "new", dtype=convert.KEEP)
    config, params = loaded.config, loaded.params["model"]
    assert (config.llm.layers, config.vit.layers, config.vit.side) == (2, 2, 5)
    assert (config.connector_side, config.latents.max_side, config.tokens.image_end) == (6, 4, 93)
    llm = numbers(llm_tensors(), ml_dtypes.bfloat16, 1)
    for expert in ("und", "gen"):
        layers = params["llm"]["layers"][expert]
        up = layers["mlp"]["up"]["kernel"]
        assert up.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(up[1], llm["model.layers.1.mlp.up_proj.weight"].T)
        bias = llm["model.layers.0.self_attn.k_proj.bias"]
        np.testing.assert_array_equal(layers["attention"]["key"]["bias"][0], bias)
        assert np.all(np.asarray(layers["attention"]["query_norm"]["scale"]) == 1)
        np.testing.assert_array_equal(
            params["llm"]["norm"][expert]["scale"], llm["model.norm.weight"]
        )
    np.testing.assert_array_equal(params["llm"]["head"]["kernel"], llm["lm_head.weight"].T)
    vit = numbers(vit_tensors(), np.float32, 2)
    patch = vit["vision_model.embeddings.patch_embedding.weight"]
    pixels = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    there = np.einsum("mcij,ijc->m", patch, pixels)  # the convolution on one patch
    here = pixels.reshape(-1) @ np.asarray(params["vit"]["patch"]["kernel"])
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
    table = vit["vision_model.embeddings.position_embedding.weight"]
    np.testing.assert_array_equal(params["vit"]["position"]["table"], interpolate(table, 5))
    assert not np.any(params["latent_out"]["kernel"]) and not np.any(params["latent_out"]["bias"])
    kernel = np.asarray(params["connector"]["fc1"]["kernel"])
    assert 0.2 < kernel.max() <= 0.25 and -0.25 <= kernel.min() < -0.2  # 1 / sqrt(16 inputs)
    assert report["changed"]["bicubic from 3x3 to 5x5"] == 1
    assert report["changed"]["patch convolution as a linear layer"] == 1
    assert report["set_aside"]["tensors"] == 4 + 16


def test_the_seed_decides_what_is_random(ancestors, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        begin(ancestors, tmp_path / name, seed=seed)
    a, b, c = (contents(tmp_path / name / "0" / "params") for name in "abc")
    assert a == b
    changed = {name.split("/")[0] for name in a if a[name] != c[name]}
    assert changed == {
        f"model.{part}.{leaf}"
        for part in ("connector.fc1", "connector.fc2", "time.fc1", "time.fc2", "latent_in")
        for leaf in ("kernel", "bias")
    }


def test_the_chain_names_every_ancestor(ancestors, tmp_path):
    begin(ancestors, tmp_path / "new", dtype="bfloat16")
    chain = provenance.ancestry(tmp_path / "new")
    assert [entry["kind"] for entry in chain] == [
        *("qwen2", "siglip", "autoencoder", "init", "checkpoint")
    ]
    assert len(chain[0]["files"]) == 3 and len(chain[0]["files"][0]["sha256"]) == 64
    assert chain[3]["seed"] == 0 and chain[3]["dtype"] == "bfloat16"
    copied = chain[3]["changed"]["copied from the understanding expert"]
    assert copied == 2 * 12 - 3 * 2 + 1 + 6  # all of two layers but their q/k norms, and the norm


def test_it_goes_out_as_a_bagel_folder(ancestors, tmp_path):
    begin(ancestors, tmp_path / "new")
    outward(tmp_path / "new", tmp_path / "back")
    found = contents(tmp_path / "back")
    assert {"merges.txt", "added_tokens.json", "preprocessor_config.json"} <= set(found)
    assert bagel.config_from_bagel(tmp_path / "back") == load.read_config(tmp_path / "new")
    one = names.flatten(convert.load_bagel(tmp_path / "back"))
    two = names.flatten(load.load_any(tmp_path / "new").params)
    assert all(np.array_equal(one[path], two[path]) for path in one)


def test_a_tied_head_becomes_a_copy(ancestors, tmp_path):
    found = numbers(llm_tensors(), np.float32, 1)
    del found["lm_head.weight"]
    for path in ancestors.llm.glob("model*"):
        path.unlink()
    save_file(found, ancestors.llm / "model.safetensors")
    report = begin(ancestors, tmp_path / "new")
    llm = load.load_any(tmp_path / "new").params["model"]["llm"]
    np.testing.assert_array_equal(llm["head"]["kernel"].T, llm["embed"]["table"])
    assert report["changed"]["copied from the token embedding (tied)"] == 1


def test_a_table_of_the_wanted_size_is_copied(ancestors, tmp_path):
    report = begin(ancestors._replace(vit_side=3), tmp_path / "new")
    assert not [how for how in report["changed"] if "bicubic" in how]


def test_what_does_not_fit_is_listed(ancestors, tmp_path):
    found = numbers(vit_tensors(), np.float32, 2)
    found["vision_model.encoder.layers.0.mlp.fc3.weight"] = found.pop(
        "vision_model.encoder.layers.0.mlp.fc1.weight"
    )
    found["vision_model.post_layernorm.bias"] = np.zeros(5, np.float32)
    save_file(found, ancestors.vit / "model.safetensors")
    with pytest.raises(ValueError) as error:
        begin(ancestors, tmp_path / "new")
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["missing", "unexpected", "misshapen"]
    assert "(nearest: vision_model.encoder.layers.0.mlp.fc3.weight)" in lines[0]
    (ancestors.llm / "config.json").write_text(json.dumps({**LLM, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act is 'relu'; only 'silu' is supported"):
        begin(ancestors, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_positions_are_interpolated_as_pytorch_does():
    """interpolate(mode="bicubic", align_corners=False) of PyTorch 2.13 on the same numbers."""
    up = interpolate((np.arange(9, dtype=np.float32) ** 1.5)[:, None], 5).reshape(5, 5)
    rows = [
        [-0.578206, -0.300322, 0.328, 1.427103, 2.189714],
        [4.926984, 6.055062, 8.0, 10.148245, 11.485654],
        [15.232583, 16.828316, 19.530209, 22.380566, 24.129171],
    ]
    np.testing.assert_allclose(up[[0, 2, 4]], rows, atol=1e-4)
    down = interpolate((np.arange(16, dtype=np.float32) ** 1.5)[:, None], 2).reshape(2, 2)
    np.testing.assert_allclose(down, [[3.377052, 8.915874], [35.45966, 46.76604]], atol=1e-4)
    table = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    np.testing.assert_allclose(interpolate(table, 4), table, atol=1e-6)


def test_the_sizes_are_those_of_the_configs(ancestors):
    from inset_jax.checkpoint.ancestors import config_of

    config = config_of(ancestors)
    assert dataclasses.asdict(config.llm)["head_dim"] == 8 and config.llm.mlp_dim == 48
    assert config.vit.patch_dim == 48 and config.vae.channels == 32
