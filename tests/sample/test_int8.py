import dataclasses

import jax
import numpy as np
import pytest

from inset_jax.core.config import SampleConfig
from inset_jax.model import inset, int8
from inset_jax.sample import trace
from inset_jax.sample.sampler import Sampler
from tests.sample.small import COMPUTE, CONFIG

SETTINGS = SampleConfig(guidance="inset", num_timesteps=3)


@pytest.fixture(scope="module")
def shrunk(sampler):
    params = sampler.params | {"model": int8.shrink(sampler.params["model"])}
    return Sampler(CONFIG, params, COMPUTE)


def test_a_column_keeps_its_largest_number_and_loses_half_a_step_at_most():
    kernel = np.random.default_rng(0).normal(size=(2, 64, 5)).astype(np.float32)
    kernel[1, :, 3] = 0
    value, scale = int8.quantised(kernel)
    assert (value.dtype, value.shape, scale.shape) == (np.int8, (2, 64, 5), (2, 5))
    assert np.abs(value).max(axis=1)[0].tolist() == [127] * 5
    assert np.all(np.abs(value * scale[:, None] - kernel) <= scale[:, None] * 0.5001)
    assert not value[1, :, 3].any()
    for ours, theirs in zip(jax.jit(int8.quantised)(kernel), (value, scale), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_only_the_kernels_of_the_language_models_layers_shrink(sampler, shrunk):
    declared = inset.abstract(CONFIG, is_int8=True)[1]
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shrunk.params["model"])
    assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), declared)
    logical = inset.logical_axes(CONFIG, is_int8=True)["llm"]["layers"]["gen"]["mlp"]["down"]
    assert logical == {"kernel": ("layer", "mlp", "embed"), "kernel_scale": ("layer", "embed")}
    paths = jax.tree_util.tree_leaves_with_path(shrunk.params["model"])
    small = {jax.tree_util.keystr(path) for path, leaf in paths if leaf.dtype == np.int8}
    assert len(small) == 14 and all("llm" in path and "layers" in path for path in small)
    assert int8.is_shrunk(shrunk.params["model"]) and not int8.is_shrunk(sampler.params["model"])


def test_it_draws_what_the_same_numbers_in_float_draw(sampler, shrunk, requests):
    def dequantised(tree):
        if "kernel_scale" in tree:
            kernel = tree["kernel"] * tree["kernel_scale"][:, None]
            return {**{k: v for k, v in tree.items() if k != "kernel_scale"}, "kernel": kernel}
        return {k: dequantised(v) if isinstance(v, dict) else v for k, v in tree.items()}

    params = shrunk.params | {"model": dequantised(shrunk.params["model"])}
    same = Sampler(CONFIG, params, COMPUTE).draw(requests[:1], SETTINGS).latents[0]
    ours = shrunk.draw(requests[:1], SETTINGS).latents[0]
    np.testing.assert_allclose(ours, same, atol=2e-5)
    exact = sampler.draw(requests[:1], SETTINGS).latents[0]
    assert 0 < np.linalg.norm(ours - exact) < 0.05 * np.linalg.norm(exact)


def test_velocities_along_its_own_drawing_are_those_it_drew_with(sampler, requests):
    settings = dataclasses.replace(SETTINGS, interval=(0.0, 0.9))
    drawn = trace.draw(sampler, requests[0], settings)
    again = trace.velocities(sampler, requests[0], settings, drawn)
    np.testing.assert_allclose(again, drawn.velocity, atol=1e-6)
