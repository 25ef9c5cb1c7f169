"""The optimizer against its equations, on trees of a few numbers."""

import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core import simulated
from inset_jax.core.config import OptimizerConfig
from inset_jax.train import optim

ADAMW = OptimizerConfig(peak_lr=0.1, warmup_steps=2, eps=1e-8, clip_norm=1e9, ema_decay=0.9)


def tree(seed: int) -> dict:
    draw = np.random.default_rng(seed).standard_normal
    return {
        "llm": {
            "layers": {"und": {"mlp": {"up": {"kernel": jnp.asarray(draw((2, 6, 4)))}}}},
            "embed": {"table": jnp.asarray(draw((5, 3)))},
        },
        "vit": {"norm": {"scale": jnp.asarray(draw(3))}},
        "latent_position": {"table": jnp.asarray(draw((4, 2)))},
    }


def test_split_freezes_by_pattern_and_the_sincos_tables_always():
    trained, frozen = optim.split(tree(0), ("vit/*",))
    assert set(trained) == {"llm"}
    assert set(frozen) == {"vit", "latent_position"}
    jax.tree.map(np.testing.assert_array_equal, optim.merge(frozen, trained), tree(0))


def test_frozen_parameters_have_no_optimizer_state():
    trained, _ = optim.split(tree(0), ("llm/embed/*", "vit/*"))
    state = optim.create(ADAMW, 10).init(trained)
    shapes = sorted(x.shape for x in jax.tree.leaves(state))
    assert shapes == [(), (2, 6, 4), (2, 6, 4)]  # count and two moments of the one matrix


def test_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'vti/\*' matches no parameter; did you mean 'vit/\*'\?"):
        optim.split(tree(0), ("vti/*",))


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="every parameter is frozen"):
        optim.split(tree(0), ("*",))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.0, 0.05, 0.1, 0.1]),  # BAGEL: the first update has rate 0
        ({"first_step_zero": False}, [0.05, 0.1, 0.1, 0.1]),
        ({"warmup_steps": 0}, [0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine", "final_lr_ratio": 0.0}, [0.0, 0.05, 0.1, 0.05, 0.0]),
        ({"schedule": "cosine", "final_lr_ratio": 0.5}, [0.0, 0.05, 0.1, 0.075, 0.05]),
        ({"schedule": "cosine", "warmup_steps": 0, "final_lr_ratio": 0.0}, [0.1, 0.0853553]),
    ],
)
def test_schedule(changes, expected):
    rate = optim.schedule(replace(ADAMW, **changes), steps=4)
    np.testing.assert_allclose([rate(jnp.int32(k)) for k in range(len(expected))], expected, 1e-5)


def test_adamw_follows_its_equations():
    optimizer = optim.create(ADAMW, 10)
    trained, _ = optim.split(tree(0), ())
    grads, _ = optim.split(tree(1), ())
    state, moved = optimizer.init(trained), trained
    for _ in range(3):
        moved, state, told = optimizer.update(grads, state, moved)
    g = np.asarray(grads["vit"]["norm"]["scale"], np.float64)
    # constant gradients: both moments, corrected, are g and g^2 at every step
    rates = 0.0 + 0.05 + 0.1
    expected = np.asarray(trained["vit"]["norm"]["scale"]) - rates * g / (np.abs(g) + 1e-8)
    np.testing.assert_allclose(moved["vit"]["norm"]["scale"], expected, rtol=1e-5)
    assert told["learning_rate"] == np.float32(0.1)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(grads)))
    np.testing.assert_allclose(told["grad_norm"], norm, rtol=1e-5)


def test_clipping_scales_all_gradients_by_their_global_norm():
    # with a huge eps the update is the gradient over eps, so the clip is visible in it
    huge = {"clip_norm": 0.5, "eps": 1e6, "peak_lr": 1e6, "warmup_steps": 0}
    trained, _ = optim.split(tree(0), ())
    grads, _ = optim.split(tree(1), ())
    optimizer = optim.create(replace(ADAMW, **huge), 10)
    moved, _, told = optimizer.update(grads, optimizer.init(trained), trained)
    assert told["grad_norm"] > 1
    step = jax.tree.map(jnp.subtract, trained, moved)
    expected = jax.tree.map(lambda g: g * 0.5 / told["grad_norm"], grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), step, expected)


def test_weight_decay_spares_norms():
    config = replace(ADAMW, weight_decay=0.5, warmup_steps=0)
    trained, _ = optim.split(tree(0), ())
    optimizer = optim.create(config, 10)
    still = jax.tree.map(jnp.zeros_like, trained)
    moved, _, _ = optimizer.update(still, optimizer.init(trained), trained)
    np.testing.assert_array_equal(moved["vit"]["norm"]["scale"], trained["vit"]["norm"]["scale"])
    table = trained["llm"]["embed"]["table"]
    np.testing.assert_allclose(moved["llm"]["embed"]["table"], table * 0.95, rtol=1e-6)


def test_weight_decay_falls_with_the_rate_where_that_is_asked_for():
    config = replace(ADAMW, weight_decay=0.5, warmup_steps=0, schedule="cosine", final_lr_ratio=0.0)
    trained, _ = optim.split(tree(0), ())
    still = jax.tree.map(jnp.zeros_like, trained)
    table = trained["llm"]["embed"]["table"]
    for follows, falls in ((True, 0.853553), (False, 1.0)):
        optimizer = optim.create(replace(config, decay_follows_rate=follows), 4)
        state = {**optimizer.init(trained), "count": jnp.int32(1)}
        moved, _, told = optimizer.update(still, state, trained)
        np.testing.assert_allclose(told["learning_rate"], 0.0853553, rtol=1e-5)
        kept = 1 - 0.0853553 * 0.5 * falls
        np.testing.assert_allclose(moved["llm"]["embed"]["table"], table * kept, rtol=1e-6)


def test_muon_orthogonalises_each_matrix_of_a_stack_and_leaves_the_rest_to_adamw():
    config = replace(ADAMW, name="muon", warmup_steps=0)
    trained, _ = optim.split(tree(0), ())
    grads, _ = optim.split(tree(1), ())
    optimizer = optim.create(config, 10)
    state = optimizer.init(trained)
    moved, state, _ = optimizer.update(grads, state, trained)
    kernel = lambda t: t["llm"]["layers"]["und"]["mlp"]["up"]["kernel"]
    update = (kernel(trained) - kernel(moved)) / 0.1 / (optim.MUON_RMS * 6**0.5)
    singular = np.linalg.svd(np.asarray(update), compute_uv=False)
    assert singular.shape == (2, 4)
    # Newton-Schulz leaves singular values near one, not at one
    assert np.all((singular > 0.6) & (singular < 1.3))
    u, _, vt = np.linalg.svd(np.asarray(kernel(grads)), full_matrices=False)
    assert np.sum(np.asarray(update) * (u @ vt)) / (2 * 4) > 0.8
    assert "und" not in state["adam"]["mu"]["llm"].get("layers", {})
    assert set(state["muon"]) == {"mu"}


TWO_DEVICES = """
import re, jax, numpy as np
from inset_jax.core import mesh as meshes
from inset_jax.core.config import MeshConfig, OptimizerConfig
from inset_jax.train import optim

draw = np.random.default_rng(0).standard_normal
trained, grads = ({"layers": {"kernel": draw((4, 6, 5)).astype("float32")}} for _ in range(2))
optimizer = optim.create(OptimizerConfig(name="muon", warmup_steps=0), 10)
state = optimizer.init(trained)
alone = jax.jit(optimizer.update)(grads, state, trained)
with jax.set_mesh(meshes.build(MeshConfig(dcn=2, fsdp=1))):
    both = jax.jit(optimizer.update).lower(grads, state, trained).compile()
near = lambda a, b: np.testing.assert_allclose(a, b, 1e-5)
jax.tree.map(near, alone, both(grads, state, trained))
print({shape for shape in re.findall(r"f32.([0-9]+),5,5", both.as_text())})
"""


def test_each_device_turns_matrices_of_its_own():
    several = simulated.several(2)
    ran = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | several,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() == "{'2'}"  # products of two of the four


def test_average_has_no_warm_up():
    ema = optim.average({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, 0.9)
    np.testing.assert_allclose(ema["a"], [0.9, 0.9])


def test_beside_muon_adamw_may_have_a_rate_of_its_own():
    config = replace(ADAMW, name="muon", warmup_steps=0)
    trained, _ = optim.split(tree(0), ())
    grads, _ = optim.split(tree(1), ())
    moves = []
    for ratio in (1.0, 0.25):
        optimizer = optim.create(replace(config, adam_lr_ratio=ratio), 10)
        moved, _, _ = optimizer.update(grads, optimizer.init(trained), trained)
        moves.append(jax.tree.map(jnp.subtract, moved, trained)["llm"])
    whole, part = moves
    np.testing.assert_allclose(part["embed"]["table"], 0.25 * whole["embed"]["table"], rtol=1e-5)
    matrix = lambda move: move["layers"]["und"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(matrix(part), matrix(whole))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_has_logical_names_for_every_array(name):
    config = replace(ADAMW, name=name)
    trained, _ = optim.split(tree(0), ())
    names = jax.tree.map(lambda x: ("small",) * x.ndim, trained)
    logical = optim.state_logical(names, config)
    state = optim.create(config, 10).init(trained)
    paths = lambda t, leaf=None: {
        jax.tree_util.keystr(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(t, is_leaf=leaf)
    }
    is_names = lambda node: isinstance(node, tuple)
    named, arrays = paths(logical, is_names), paths(state)
    assert {path: len(value) for path, value in named.items()} == {
        path: value.ndim for path, value in arrays.items()
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_in_bfloat16_move_the_parameters_nearly_alike(name):
    config = replace(ADAMW, name=name, warmup_steps=0)
    trained, _ = optim.split(tree(0), ())
    moved = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = optim.create(replace(config, moments_dtype=dtype), 10)
        state, moved[dtype] = optimizer.init(trained), trained
        for seed in range(1, 4):
            grads, _ = optim.split(tree(seed), ())
            moved[dtype], state, _ = optimizer.update(grads, state, moved[dtype])
        kept = {x.dtype for key in state if key != "count" for x in jax.tree.leaves(state[key])}
        assert kept == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(moved["bfloat16"])} == {jnp.dtype("float32")}
    steps = jax.tree.map(jnp.subtract, moved["float32"], trained)
    errors = jax.tree.map(jnp.subtract, moved["float32"], moved["bfloat16"])
    norm = lambda found: np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(found)))
    assert 0 < norm(errors) < 0.02 * norm(steps)
