"""One step: normalisation over the whole batch, absent losses, frozen parts, bad numbers.

That four steps equal those of the reference trainer is tested in tests/parity (train_steps.npz).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.model import inset
from inset_jax.train import optim, step


@pytest.fixture(scope="module")
def definition(config):
    return inset.abstract(config.model)[0]


@pytest.fixture(scope="module")
def params(config):
    """Random parameters, the heads' zeros filled in so that every gradient is something."""
    created = inset.create(config.model, 0)[1]
    rng = np.random.default_rng(0)
    some = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
    return jax.tree.map(some, created)


@pytest.fixture(scope="module")
def advance(definition, config):
    return jax.jit(step.train_step(definition, config))


def test_losses_by_example_have_room_for_those_of_every_stage(
    definition, params, config, make_pack, batch
):
    staged = edit(config, data__stages=((5, "capacity.examples=5"),))
    packs = batch(make_pack(0))
    _, _, by_example, _ = jax.eval_shape(step.gradients(definition, staged), params, packs)
    assert by_example.flow.shape[-1] == 5 > config.data.capacity.examples


def test_accumulation_equals_one_big_batch(advance, params, config, make_pack, batch):
    # packs of unequal numbers of targets: a mean of means would be another number
    packs = [make_pack(0, texts=2), make_pack(1, draws=False)]
    state = step.initial_state(params, config)
    whole, one = advance(state, batch(*packs))
    parts, two = advance(state, batch(*packs, accumulation=2))
    for name in step.Losses._fields:
        np.testing.assert_allclose(getattr(one.losses, name), getattr(two.losses, name), 1e-6)
    np.testing.assert_allclose(one.grad_norm, two.grad_norm, 1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, whole["params"], parts["params"])
    assert two.by_example.flow.shape == (2, 1, 3)


def test_losses_by_example_add_up_to_the_whole(advance, params, config, make_pack, batch):
    _, report = advance(
        step.initial_state(params, config), batch(make_pack(0, texts=2), make_pack(1))
    )
    sums = [np.sum(part) for part in report.by_example]
    np.testing.assert_allclose(sums[0] / sums[1], report.losses.cross_entropy, 1e-6)
    np.testing.assert_allclose(sums[2] / sums[3], report.losses.flow, 1e-6)
    total = 0.5 * report.losses.cross_entropy + 2.0 * report.losses.flow
    np.testing.assert_allclose(report.losses.total, total, 1e-6)
    weight = report.by_example.flow_weight[0]
    np.testing.assert_array_equal(weight, [[0, 0, 4], [0, 4, 0]])
    flow, flow_weight = report.by_time
    np.testing.assert_allclose(flow.sum(), sums[2], 1e-6)
    assert flow_weight.sum() == 8 and flow_weight.shape == (step.TIME_BUCKETS,)


@pytest.mark.parametrize(
    ("kwargs", "absent"),
    [
        ({"draws": False}, {"flow"}),
        ({"answers": False}, {"cross_entropy"}),
        ({"draws": False, "answers": False}, {"flow", "cross_entropy"}),
        ({"texts": 0, "draws": False}, {"flow", "cross_entropy"}),  # an empty pack
    ],
)
def test_what_is_absent_costs_nothing(advance, params, kwargs, absent, config, make_pack, batch):
    state, report = advance(
        step.initial_state(params, config), batch(make_pack(0, **kwargs), make_pack(0, **kwargs))
    )
    assert report.finite
    for name in ("flow", "cross_entropy"):
        value = getattr(report.losses, name)
        assert (value == 0) if name in absent else (value > 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_batch_without_pictures_trains(advance, params, config, make_pack, batch):
    empty = make_pack(0)
    no_image = empty._replace(und_patch=np.full_like(empty.und_patch, -1))
    _, report = advance(step.initial_state(params, config), batch(no_image, no_image))
    assert report.finite
    assert report.losses.flow > 0


def test_loss_that_is_not_finite_changes_nothing(advance, params, config, make_pack, batch):
    state = step.initial_state(params, config)
    good, _ = advance(state, batch(make_pack(0), make_pack(1)))
    bad = make_pack(1)
    bad.gen_latent[0, 0] = np.nan
    after, report = advance(good, batch(make_pack(0), bad))
    assert not report.finite
    jax.tree.map(np.testing.assert_array_equal, after, good)


def test_frozen_parameters_stay_and_tables_always_do(definition, params, config, make_pack, batch):
    part = edit(config, optimizer__frozen=("vit/*", "llm/layers/und/*"))
    state = step.initial_state(params, part)
    after, _ = jax.jit(step.train_step(definition, part))(state, batch(make_pack(0), make_pack(1)))
    before = optim.flatten_dict(params, sep="/")
    for path, value in optim.flatten_dict(after["params"], sep="/").items():
        is_still = path.startswith(("vit/", "llm/layers/und/")) or "_position/" in path
        # null rows of the vocabulary stay put too, so compare whole arrays
        assert np.array_equal(value, before[path]) == is_still, path
    assert set(optim.flatten_dict(after["ema"], sep="/")) == {
        path
        for path in before
        if not path.startswith(("vit/", "llm/layers/und/")) and "_position/" not in path
    }


def test_average_follows_the_parameters(advance, params, config, make_pack, batch):
    state = step.initial_state(params, config)
    after, _ = advance(state, batch(make_pack(0), make_pack(1)))
    kernel = lambda tree: tree["latent_out"]["kernel"]
    expected = 0.5 * kernel(params) + 0.5 * kernel(after["params"])
    np.testing.assert_allclose(kernel(after["ema"]), expected, rtol=1e-6)
    assert int(after["step"]) == 1


def test_clean_prediction_learns_the_latent_itself(params, config, make_pack, batch):
    clean = edit(config, model__prediction="clean")
    definition, _ = inset.abstract(clean.model)
    # a latent head of zeros predicts zero: the error is the mean square of the latents
    blank = {**params, "latent_out": jax.tree.map(jnp.zeros_like, params["latent_out"])}
    packs = jax.tree.map(lambda x: x[0], batch(make_pack(0), make_pack(1)))
    _, (losses, *_) = jax.jit(step.loss_function(definition, clean))(
        blank, packs, step.weights(packs)
    )
    squares = np.mean(np.square(packs.gen_latent), axis=-1)
    expected = np.average(squares, weights=packs.gen_weight)
    np.testing.assert_allclose(losses.flow, expected, rtol=1e-5)


def test_every_array_of_the_state_has_logical_names(config):
    shapes = jax.eval_shape(lambda: step.initial_state(inset.create(config.model, 0)[1], config))
    is_names = lambda node: isinstance(node, tuple)
    ranks = jax.tree.map(lambda leaf: leaf.ndim, shapes)
    named = jax.tree.map(len, step.state_logical(config), is_leaf=is_names)
    assert named == ranks


def test_gradients_are_summed_in_the_dtype_of_the_config(params, config, make_pack, batch):
    packs = batch(make_pack(0, texts=2), make_pack(1))

    def slopes(sums: str) -> dict:
        own = edit(config, compute__dtype="bfloat16", compute__gradient_sums=sums)
        found = jax.jit(step.gradients(inset.abstract(config.model)[0], own))(params, packs)[0]
        leaves = jax.tree_util.tree_leaves_with_path(found)
        return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}

    usual, wide = slopes("compute"), slopes("float32")
    rounded = lambda x: np.array_equal(x, x.astype(jnp.bfloat16).astype(np.float32))
    kernels = [name for name in usual if name.endswith("/kernel")]
    assert "llm/head/kernel" in kernels and "vit/patch/kernel" in kernels
    assert all(rounded(usual[name]) for name in kernels)
    assert not [name for name, x in wide.items() if rounded(x) and x.any()]
    for name in kernels:  # apart by what the one has lost at its end
        error = np.linalg.norm(wide[name] - usual[name])
        assert error < 2**-8 * np.linalg.norm(wide[name]), name
