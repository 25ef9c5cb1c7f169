"""Where a run's weights come from."""

import pathlib

import jax
import numpy as np
import pytest

from inset_jax.checkpoint import bagel, convert, store
from inset_jax.core import mesh as meshes
from inset_jax.core import overrides
from inset_jax.core.config import MeshConfig, OptimizerConfig, edit
from inset_jax.train import optim, start

BAGEL = pathlib.Path(__file__).parents[1] / "golden" / "tiny_a" / "ckpt"


@pytest.fixture(scope="module")
def mesh():
    return meshes.build(MeshConfig())


def save(config, mesh, directory: pathlib.Path):
    """Saves a state whose averages differ from its parameters; returns it."""
    begun = start.begin(config, mesh, directory)
    state = {**begun.state, "ema": jax.tree.map(lambda x: x + 1, begun.state["ema"])}
    with store.Store(directory) as saver:
        items = start.to_items(state, begun.vae)
        saver.save(3, items, {"config": overrides.to_dict(config)})
    return state, begun.vae


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_run_goes_on_from_its_newest_checkpoint(config, mesh, tmp_path):
    state, coder = save(config, mesh, tmp_path / "checkpoints")
    begun = start.begin(config, mesh, tmp_path / "checkpoints")
    equal(begun.state, {**state, "step": np.int32(3)})
    equal(begun.vae, coder)
    assert "step 3" in begun.origin


def test_checkpoint_of_another_model_is_refused(config, mesh, tmp_path):
    save(config, mesh, tmp_path)
    other = edit(config, model__llm__mlp_dim=28)
    with pytest.raises(ValueError, match="mlp_dim is 24 there and 28 here"):
        start.begin(other, mesh, tmp_path)


def test_init_from_a_checkpoint_takes_the_averages_and_starts_anew(config, mesh, tmp_path):
    state, coder = save(config, mesh, tmp_path / "old" / "checkpoints")
    fresh = edit(
        config,
        run__init_from=str(tmp_path / "old"),
        optimizer=OptimizerConfig(name="muon", frozen=("vit/*",)),
    )
    begun = start.begin(fresh, mesh, tmp_path / "new")
    equal(begun.state["params"], optim.merge(state["params"], state["ema"]))
    equal(begun.vae, coder)
    assert int(begun.state["step"]) == 0
    assert "vit" not in begun.state["ema"]
    assert begun.provenance[-1]["step"] == 3


def test_init_from_bagel_folder(config, mesh, tmp_path):
    whole = edit(config, model=bagel.config_from_bagel(BAGEL), run__init_from=str(BAGEL))
    begun = start.begin(whole, mesh, tmp_path)
    equal(begun.state["params"], convert.load_bagel(BAGEL)["model"])
    assert begun.provenance[-1]["kind"] == "bagel"


def test_init_from_another_model_is_refused(config, mesh, tmp_path):
    with pytest.raises(ValueError, match="layers is 1 in the config and 2 in the weights"):
        start.begin(edit(config, run__init_from=str(BAGEL)), mesh, tmp_path)


def test_init_from_nothing_is_refused(config, mesh, tmp_path):
    with pytest.raises(ValueError, match="none: "):
        start.begin(edit(config, run__init_from="none"), mesh, tmp_path)
