"""The averaged weights of a run alone, as a checkpoint like any other."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from inset_jax.checkpoint import load, store
from inset_jax.checkpoint.export import export
from inset_jax.core import overrides
from inset_jax.core.config import Config, edit
from inset_jax.model import inset, vae
from tools import export_weights

TINY = edit(
    overrides.load("configs/tiny.py"),
    data__train=("/somewhere/records",),
    data__tokenizer="/somewhere/words.json",
    run__autoencoder="/somewhere/ae.safetensors",
)
MADE = {"kind": "init", "seed": 0}  # by the conversion command, out of no folder
BEFORE = {"kind": "checkpoint", "folder": "/somewhere/earlier", "step": 3}


@pytest.fixture
def run(tmp_path):
    """A run's folder with one step, whose average differs from its parameters."""
    config: Config = TINY
    _, model = inset.create(config.model, seed=0)
    _, coder = vae.create(config.model.vae, seed=1)
    average = jax.tree.map(lambda x: x + 1, model)
    state = {"params": {"model": model, "vae": coder}, "ema": {"model": average}}
    with store.Store(tmp_path / "run" / "checkpoints") as saver:
        saver.save(7, state, {"config": overrides.to_dict(config), "provenance": [MADE, BEFORE]})
    (tmp_path / "run" / "checkpoints" / "tokenizer.json").write_text("{}")
    return tmp_path / "run", average


def test_the_average_becomes_the_parameters(run, tmp_path):
    source, average = run
    assert export(source, tmp_path / "out", {"cost": "little"}) == {"step": 7, "weights": "ema"}
    loaded = load.load_any(tmp_path / "out")
    assert loaded.info["weights"] == "params" and loaded.config == TINY.model
    for ours, theirs in zip(
        jax.tree.leaves(loaded.params["model"]), jax.tree.leaves(average), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(p.name for p in (tmp_path / "out" / "7").iterdir() if p.is_dir()) == [
        "meta",
        "params",
    ]
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_its_past_is_told_without_the_places_it_lay_at(run, tmp_path):
    source, _ = run
    export(source, tmp_path / "out", {"cost": "little"})
    meta = store.read_meta(tmp_path / "out")
    assert meta["provenance"][:2] == [MADE, BEFORE | {"folder": "earlier"}]
    assert (
        meta["provenance"][2] | {"folder": "run", "step": 7, "cost": "little"}
        == (meta["provenance"][2])
    )
    assert "somewhere" not in json.dumps(meta) and str(tmp_path) not in json.dumps(meta)
    assert meta["config"]["data"]["train"] == ["records"]
    assert meta["config"]["run"]["autoencoder"] == "ae.safetensors"


@pytest.mark.parametrize(
    "params, average", [("float32",) * 2, ("bfloat16",) * 2, ("bfloat16", "float32")]
)
def test_the_average_stays_in_the_dtype_that_is_stored(run, tmp_path, params, average):
    as_saved = load.load_any(run[0]).params
    cast = lambda dtype: jax.tree.map(lambda x: x.astype(dtype), as_saved["model"])
    state = {"params": as_saved | {"model": cast(params)}, "ema": {"model": cast(average)}}
    with store.Store(tmp_path / "other") as saver:
        saver.save(1, state, {"config": overrides.to_dict(TINY)})
    export(tmp_path / "other", tmp_path / "out", {})
    stored = store.stored(tmp_path / "out", 1, "params")
    kinds = {(name.split("/")[0], str(leaf.dtype)) for name, leaf in stored.items()}
    assert kinds == {("model", average), ("vae", "float32")}


def test_a_run_from_before_a_field_was_there_is_exported(run, tmp_path):
    state = load.load_any(run[0]).params
    config = overrides.to_dict(TINY)
    del config["data"]["plans"], config["run"]["autoencoder"]
    with store.Store(tmp_path / "older") as saver:
        saver.save(1, {"params": state}, {"config": config})
    export(tmp_path / "older", tmp_path / "out", {})
    told = store.read_meta(tmp_path / "out")["config"]
    assert "plans" not in told["data"] and "autoencoder" not in told["run"]
    assert told["data"]["tokenizer"] == "words.json"


def test_the_command_leaves_accelerators_alone():
    words = "from tools import export_weights as e; e.main(['none', 'new']); import jax; "
    words += "print(jax.config.jax_platforms)"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["cpu"], done.stderr


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path, capsys):
    source, _ = run
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert export_weights.main([str(source), str(tmp_path / "out")]) == 1
    assert "holds something already" in capsys.readouterr().err
    assert export_weights.main([str(tmp_path / "nowhere"), str(tmp_path / "new")]) == 1
    assert "nowhere" in capsys.readouterr().err
