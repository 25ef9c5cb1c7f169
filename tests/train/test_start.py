"""Where a run's weights come from."""

import pathlib

import jax
import numpy as np
import pytest

from inset_jax.checkpoint import bagel, convert, store
from inset_jax.core import mesh as meshes
from inset_jax.core import overrides
from inset_jax.core.config import MeshConfig, OptimizerConfig, edit
from inset_jax.preflight import program
from inset_jax.train import optim, start

BAGEL = pathlib.Path(__file__).parents[1] / "golden" / "tiny_a" / "ckpt"


@pytest.fixture(scope="module")
def mesh():
    return meshes.build(MeshConfig())


@pytest.fixture(scope="module")
def random(config, mesh):
    """A state whose averages differ from its parameters, with moments, and an autoencoder."""
    begun = start.begin(config, mesh, pathlib.Path("none"))
    moved = {
        "ema": jax.tree.map(lambda x: x + 1, begun.state["ema"]),
        "opt_state": jax.tree.map(lambda x: (x + 1.001).astype(x.dtype), begun.state["opt_state"]),
    }
    return {**begun.state, **moved}, begun.vae


@pytest.fixture
def old(config, random, tmp_path) -> pathlib.Path:
    """The work folder of a run that has saved step 3."""
    with store.Store(tmp_path / "old" / "checkpoints") as saver:
        saver.save(3, start.to_items(*random), {"config": overrides.to_dict(config)})
    return tmp_path / "old"


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_run_goes_on_from_its_newest_checkpoint(config, mesh, random, old):
    begun = start.begin(config, mesh, old / "checkpoints")
    equal(begun.state, {**random[0], "step": np.int32(3)})
    equal(begun.vae, random[1])
    assert "step 3" in begun.origin


def test_moments_go_on_in_the_dtype_of_the_config(config, mesh, random, old):
    less = edit(config, optimizer__moments_dtype="bfloat16")
    found = start.begin(less, mesh, old / "checkpoints").state["opt_state"]
    rounded = lambda x: x.astype("bfloat16") if x.ndim else x  # a count beside them
    expected = jax.tree.map(rounded, random[0]["opt_state"])
    equal(found, expected)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)


def test_checkpoint_of_another_model_is_refused(config, mesh, old):
    other = edit(config, model__llm__mlp_dim=28)
    with pytest.raises(ValueError, match="mlp_dim is 24 there and 28 here"):
        start.begin(other, mesh, old / "checkpoints")


def test_init_from_a_checkpoint_takes_the_averages_and_starts_anew(
    config, mesh, random, old, tmp_path
):
    fresh = edit(
        config,
        run__init_from=str(old),
        optimizer=OptimizerConfig(name="muon", frozen=("vit/*",)),
    )
    begun = start.begin(fresh, mesh, tmp_path / "new")
    equal(begun.state["params"], optim.merge(random[0]["params"], random[0]["ema"]))
    equal(begun.vae, random[1])
    assert int(begun.state["step"]) == 0
    assert "vit" not in begun.state["ema"]
    assert begun.provenance[-1]["step"] == 3


def test_init_from_bagel_folder(config, mesh, tmp_path):
    whole = edit(config, model=bagel.config_from_bagel(BAGEL), run__init_from=str(BAGEL))
    begun = start.begin(whole, mesh, tmp_path)
    equal(begun.state["params"], convert.load_bagel(BAGEL)["model"])
    assert begun.provenance[-1]["kind"] == "bagel"


def test_init_from_another_model_is_refused(config, mesh, tmp_path):
    with pytest.raises(ValueError, match=r"ckpt is another model: .*llm.layers is 2 there and 1"):
        start.begin(edit(config, run__init_from=str(BAGEL)), mesh, tmp_path)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("model__vae__scale", 1.0, "vae.scale is 0.3611 there and 1.0 here"),
        ("model__llm__rope_theta", 1e4, "llm.rope_theta is 1000000.0 there and 10000.0 here"),
        ("model__llm__norm_eps", 1e-5, "llm.norm_eps is 1e-06 there and 1e-05 here"),
        ("model__vit__heads", 2, "vit.heads is 4 there and 2 here"),
        ("model__prediction", "clean", "prediction is 'velocity' there and 'clean' here"),
    ],
)
def test_init_from_bagel_folder_whose_weights_mean_something_else(
    config, mesh, tmp_path, field, value, said
):
    same = edit(config, model=bagel.config_from_bagel(BAGEL), run__init_from=str(BAGEL))
    with pytest.raises(ValueError, match=rf"another model: {said}$"):
        start.begin(edit(same, **{field: value}), mesh, tmp_path)


def test_init_from_bagel_folder_adds_what_it_cannot_say(config, mesh, tmp_path):
    same = edit(config, model=bagel.config_from_bagel(BAGEL), run__init_from=str(BAGEL))
    more = edit(same, model__null_token=True, model__position_scale=2.0)
    begun = start.begin(more, mesh, tmp_path)
    equal(begun.state["params"], convert.load_bagel(BAGEL, more.model)["model"])
    assert begun.state["params"]["null"]["table"].shape[0] == 2


def test_init_from_nothing_is_refused(config, mesh, tmp_path):
    with pytest.raises(ValueError, match="none: "):
        start.begin(edit(config, run__init_from="none"), mesh, tmp_path)


def test_every_array_of_the_state_is_updated_in_place(config, mesh):
    state, _ = start.wanted(config, mesh)
    packs = program.batch(config, mesh)
    with jax.set_mesh(mesh):
        lowered = start.jitted(config, state, mesh).lower(state, packs)
    # what an output of the program takes the place of
    assert lowered.as_text().count("tf.aliasing_output") == len(jax.tree.leaves(state))


def test_step_that_is_compiled_again_for_packs_of_a_known_shape_is_an_error():
    step = start.OnceAShape(jax.jit(lambda state, packs: state + packs.sum()))
    for size in (3, 3, 4, 3):
        step(np.float32(1), np.zeros(size, np.float32))
    # another kind of array that needs no other program
    step(np.float32(1), jax.device_put(np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="compiled again for packs of shapes that it knew"):
        step(np.float32(1), np.zeros(3, np.int32))
