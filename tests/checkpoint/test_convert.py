import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from inset_jax.checkpoint import convert, names
from inset_jax.core.config import edit
from tests.checkpoint.folders import cast, change, shard

GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


def same(a, b):
    a, b = names.flatten(a), names.flatten(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def test_a_tensor_is_found_at_its_slice(folder, tiny):
    gate = load_file(folder / "ema.safetensors")[GATE]
    kernel = tiny[1]["model"]["llm"]["layers"]["und"]["mlp"]["gate"]["kernel"]
    assert kernel.shape == (2, 64, 96) and kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[1], gate.T)


def test_low_precision_is_widened_exactly(folder):
    cast(folder, ml_dtypes.bfloat16)
    kept = names.flatten(convert.load_bagel(folder, dtype=convert.KEEP)["model"])
    wide = names.flatten(convert.load_bagel(folder)["model"])
    for path in kept:
        assert wide[path].dtype == np.float32
        np.testing.assert_array_equal(wide[path], kept[path].astype(np.float32))


def test_shards_with_an_index_load_alike(folder, tiny):
    shard(folder)
    assert same(convert.load_bagel(folder), tiny[1])


def test_the_convolution_form_of_the_patch_embedding_loads_alike(folder, tiny):
    def as_convolution(found):
        linear = found[names.PATCH_WEIGHT].reshape(-1, 14, 14, 3)
        found[names.PATCH_WEIGHT] = np.ascontiguousarray(linear.transpose(0, 3, 1, 2))

    change(folder, as_convolution)
    assert same(convert.load_bagel(folder), tiny[1])


def test_every_fault_is_listed_at_once_with_the_nearest_name(folder):
    def spoil(found):
        found["language_model.model.layers.1.mlp.gate_projj.weight"] = found.pop(GATE)
        found["stray.weight"] = np.zeros(3, np.float32)
        found["llm2vae.bias"] = np.zeros(63, np.float32)

    change(folder, spoil)
    with pytest.raises(ValueError) as error:
        convert.load_bagel(folder)
    renamed = GATE.replace("proj.", "projj.")
    assert str(error.value).splitlines() == [
        f"{folder}: the tensors are not those of the model",
        f"  missing: {GATE} (nearest: {renamed})",
        f"  unexpected: {renamed} (nearest: {GATE})",
        "  unexpected: stray.weight",
        "  misshapen: llm2vae.bias is [63], expected [64]",
    ]


def test_numbers_that_are_not_finite_are_named_and_counted(folder):
    def spoil(found):
        found[GATE][3, 5] = np.nan
        found["vae2llm.bias"][:2] = np.inf

    change(folder, spoil)
    with pytest.raises(ValueError, match="2 tensors not finite") as error:
        convert.load_bagel(folder)
    assert f"{GATE} (1 number)" in str(error.value)
    assert "vae2llm.bias (2 numbers)" in str(error.value)


def test_a_number_too_large_for_the_dtype_is_named(folder):
    change(folder, lambda found: found["vae2llm.bias"].__setitem__(0, 1e6))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"vae2llm.bias \(1 number\)"):
        convert.load_bagel(folder, dtype="float16")


def test_a_model_of_other_sizes_is_a_sentence_a_few_tensors_and_a_count(folder, tiny):
    config = edit(tiny[0], llm__mlp_dim=128, vit__layers=3)
    with pytest.raises(ValueError) as error:
        convert.load_bagel(folder, config)
    sentence, *lines = str(error.value).splitlines()
    assert "mlp_dim (intermediate_size) is 128 in the config and 96 in the weights" in sentence
    # a layer of the ViT that is not there, and three kernels of both experts in both layers
    assert [line.split(":")[0].strip() for line in lines] == ["missing"] * 4 + ["misshapen"] * 4
    assert lines[3] == "  missing: and 13 more" and lines[7] == "  misshapen: and 9 more"
    assert "is [64, 96], expected [64, 128]" in lines[4]
    assert len(error.value.tensors["misshapen"]) == 12


def test_sizes_that_disagree_are_said_first_in_one_sentence(folder, tiny):
    sizes = {  # field: here, there, how it is called
        "latents__max_side": (32, 16, "latents.max_side (max_latent_size)"),
        "connector_side": (70, 16, "connector_side (vit_max_num_patch_per_side)"),
        "vit__side": (20, 16, "vit.side (image_size / patch_size)"),
        "vit__layers": (3, 2, "vit.layers (num_hidden_layers - 1)"),
        "vit__mlp_dim": (100, 80, "vit.mlp_dim (intermediate_size)"),
        "llm__layers": (4, 2, "llm.layers (num_hidden_layers)"),
        "llm__mlp_dim": (128, 96, "llm.mlp_dim (intermediate_size)"),
        "llm__vocab_size": (600, 512, "llm.vocab_size"),
        "llm__head_dim": (8, 16, "llm.head_dim (hidden_size / num_attention_heads)"),
        "vae__res_blocks": (2, 1, "vae.res_blocks (num_res_blocks)"),
        "vae__channels": (64, 32, "vae.channels (ch)"),
        "vae__multipliers": ((1, 2), 4, "levels of vae.multipliers (ch_mult)"),
    }
    config = edit(tiny[0], **{field: here for field, (here, _, _) in sizes.items()})
    with pytest.raises(ValueError) as error:
        convert.load_bagel(folder, config)
    sentence = str(error.value).splitlines()[0]
    for here, there, name in sizes.values():
        here = len(here) if isinstance(here, tuple) else here
        assert f"{name} is {here} in the config and {there} in the weights" in sentence


def test_a_stale_max_latent_size_in_the_folder_is_found_on_loading(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "max_latent_size": 64}))
    with pytest.raises(ValueError, match=r"\(max_latent_size\) is 64 in the config and 16 in the"):
        convert.load_bagel(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(folder, keep):
    file = folder / "ae.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"ae.safetensors: damaged or no safetensors file"):
        convert.load_bagel(folder)


def test_missing_and_contradicting_files_are_named(folder):
    files = shard(folder)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    moved = {**values["weight_map"], GATE: files[0], "llm2vae.bias": files[1]}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ValueError, match=r"index.json: says that .* is in model-0000.-of-00003"):
        convert.load_bagel(folder)
    unlisted = {k: v for k, v in values["weight_map"].items() if k != GATE}
    index.write_text(json.dumps({"weight_map": unlisted}))
    with pytest.raises(ValueError, match=f"index.json: does not list {GATE}"):
        convert.load_bagel(folder)
    index.write_text(json.dumps(values))
    (folder / files[1]).unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00003.safetensors, which is miss"):
        convert.load_bagel(folder)
    index.unlink()
    with pytest.raises(ValueError, match=r"expected ema.safetensors or model.safetensors or"):
        convert.load_bagel(folder)


def test_layers_of_several_dtypes_cannot_keep_them(folder):
    change(folder, lambda found: found.update({GATE: found[GATE].astype(np.float16)}))
    convert.load_bagel(folder)
    with pytest.raises(ValueError, match=r"several dtypes \(float16, float32\)"):
        convert.load_bagel(folder, dtype=convert.KEEP)


def test_a_null_token_starts_as_the_opening_tokens(folder, tiny):
    config = edit(tiny[0], null_token=True)
    model = convert.load_bagel(folder, config)["model"]
    np.testing.assert_array_equal(
        model["null"]["table"], model["llm"]["embed"]["table"][[500, 502]]
    )
