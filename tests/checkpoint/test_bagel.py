import json
import pathlib
import shutil

import pytest

from inset_jax.checkpoint import bagel
from inset_jax.core.config import ModelConfig, TokenConfig, VaeConfig, edit


def rewrite(path: pathlib.Path, **changes):
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "drop"}))


def test_the_last_stored_vit_layer_does_not_count(folder):
    rewrite(folder / "vit_config.json", num_hidden_layers=5)
    assert bagel.config_from_bagel(folder).vit.layers == 4


def test_sizes_come_from_the_folder(folder):
    config = bagel.config_from_bagel(folder)
    assert (config.llm.model_dim, config.llm.head_dim, config.llm.kv_heads) == (64, 16, 2)
    assert (config.vit.side, config.connector_side, config.latents.max_side) == (16, 16, 16)
    assert config.vae.multipliers == (1, 1, 2, 2)
    assert config.tokens == TokenConfig(500, 501, 502, 503)


def test_a_folder_like_the_released_one_is_the_full_size_preset(tmp_path):
    for name, values in bagel.to_files(ModelConfig()).items():
        (tmp_path / name).write_text(json.dumps(values))
    rewrite(tmp_path / "config.json", vae_config="drop", max_latent_size="drop")
    (tmp_path / "special_tokens.json").unlink()
    config = bagel.config_from_bagel(tmp_path)
    assert config == ModelConfig() and config.vae == VaeConfig()
    (tmp_path / "config.json").write_text('{"name": ["BAGEL-7B-MoT"],}')
    assert bagel.config_from_bagel(tmp_path) == config


def test_files_and_config_are_inverse(folder, tmp_path, tiny):
    for name, values in bagel.to_files(tiny[0]).items():
        (tmp_path / name).write_text(json.dumps(values))
        theirs = json.loads((folder / name).read_text())
        both = [key for key in values if key in theirs and key != "vae_config"]
        assert len(both) >= 4 and all(values[key] == theirs[key] for key in both)
    assert bagel.config_from_bagel(tmp_path) == tiny[0]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llm_config.json", {"hidden_size": "drop"}, "hidden_size is None, expected a number"),
        ("llm_config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ("llm_config.json", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is .*only None"),
        ("llm_config.json", {"num_attention_heads": 5}, "hidden_size 64 does not divide .* 5"),
        (
            "vit_config.json",
            {"image_size": 225},
            "image_size 225 is not a multiple of patch_size 14",
        ),
        ("config.json", {"interpolate_pos": True}, "interpolate_pos is True; only False"),
        ("config.json", {"max_latent_size": "64"}, "max_latent_size is '64', expected a number"),
    ],
)
def test_a_bad_value_is_named_with_its_file(folder, name, changes, message):
    rewrite(folder / name, **changes)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        bagel.config_from_bagel(folder)


def test_a_missing_or_broken_file_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder"):
        bagel.config_from_bagel(tmp_path / "nowhere")
    (folder / "vit_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vit_config.json: not readable as JSON"):
        bagel.config_from_bagel(folder)
    (folder / "vit_config.json").unlink()
    bagel.config_from_bagel(folder)  # config.json repeats it
    rewrite(folder / "config.json", vit_config="drop")
    with pytest.raises(ValueError, match=r"vit_config.json: missing, and config.json has no"):
        bagel.config_from_bagel(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prediction": "clean"}, "prediction is 'clean', not 'velocity'"),
        ({"null_token": True}, "null_token is True, not False"),
        ({"time_scale": 30.0}, "time_scale is 30.0, not 1.0"),
        ({"llm__head_dim": 8}, r"query_heads \* llm.head_dim is 32, not 64"),
    ],
)
def test_what_bagel_cannot_hold_is_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        bagel.to_files(edit(tiny[0], **changes))


def test_a_bagel_folder_is_recognised(folder, tmp_path):
    assert bagel.is_bagel(folder)
    (tmp_path / "work").mkdir()
    assert not bagel.is_bagel(tmp_path / "work") and not bagel.is_bagel(tmp_path / "nowhere")
    shutil.copy(folder / "config.json", tmp_path / "work")
    assert not bagel.is_bagel(tmp_path / "work")
