import dataclasses
import functools

import jax
import numpy as np
import pytest

from inset_jax.core.config import CapacityConfig, SampleConfig, edit
from inset_jax.data.layout import Item, layout
from inset_jax.data.pack import assemble, stack
from inset_jax.model import inset
from inset_jax.sample import sampler as sampler_module
from inset_jax.sample.guidance import MODES
from inset_jax.sample.plan import Request, branch_items
from tests.sample.small import COMPUTE, CONFIG, image, make_sampler, picture, text

SETTINGS = SampleConfig(guidance="inset", num_timesteps=4)


@functools.cache
def training_pass(config):
    definition, _ = inset.abstract(config)

    def run(params, pack):
        model = inset.bind(definition, params)
        decoded, _ = model(pack, 1.0, COMPUTE)
        return model.predict(decoded.hidden["gen"])

    return jax.jit(run)


def training_velocity(sampler, request, branch, x_t, t):
    """The training forward pass over one branch with its one picture as a target."""
    config = sampler.config
    (drawn,) = request.pictures
    raw = np.log(t / (1 - t)) if t < 1 else np.inf
    # with x0 = eps the interpolation is x_t itself
    target = Item("target", size=drawn.size, timestep=raw, latent=x_t, noise=x_t)
    laid = layout([[*branch_items(request, branch, config), target]], config)
    pack = stack([assemble(laid, CapacityConfig(48, 16, 16, 0, 1), config)])

    predicted = training_pass(config)(sampler.params["model"], pack)
    return np.asarray(predicted)[0][pack.gen_weight[0] > 0]


def watched(sampler, requests, settings=SETTINGS):
    moments = []
    drawing = sampler.draw(requests, settings, moments.append)
    return drawing, moments


@pytest.mark.parametrize("index", [0, 2])
def test_one_forward_pass_a_step_equals_the_training_pass_branch_by_branch(
    sampler, requests, index
):
    request = requests[index]
    _, moments = watched(sampler, [request])
    alpha, beta = request.scales
    rows = slice(len(request.pictures[0].noise))
    for moment in moments[::2]:
        x_t = np.asarray(moment.state)[0, rows]
        v, a, b = (
            training_velocity(sampler, request, branch, x_t, moment.t)
            for branch in ("full", MODES["inset"].first, MODES["inset"].second)
        )
        expected = b + beta * (a + alpha * (v - a) - b)
        ours = np.asarray(moment.velocity)[0, rows]
        assert np.linalg.norm(ours - expected) < 2e-5 * np.linalg.norm(expected)


def test_a_batch_of_different_sentences_equals_the_singles(sampler, requests):
    together = sampler.draw(requests, SETTINGS).latents
    alone = [latent for request in requests for latent in sampler.draw([request], SETTINGS).latents]
    assert len(together) == 4
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_packs_change_nothing(sampler, requests, monkeypatch):
    one = sampler.draw(requests, SETTINGS).latents
    monkeypatch.setattr(sampler_module, "pack_count", lambda: 2)
    two = sampler.draw(requests, SETTINGS).latents
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_evaluations_are_counted_and_the_still_part_runs_once(sampler, requests, monkeypatch):
    calls = {"keep": 0, "step": 0, "branches": []}

    def keep(*args):
        calls["keep"] += 1
        return programs.keep(*args)

    def step(params, kept, arrays, *args):
        calls["step"] += 1
        calls["branches"].append(arrays.rows.shape[1])
        return programs.step(params, kept, arrays, *args)

    programs = sampler.programs
    monkeypatch.setattr(sampler, "programs", programs._replace(keep=keep, step=step))
    settings = dataclasses.replace(SETTINGS, interval=(0.5, 0.95))  # t = 1, .86, .6 at shift 3
    drawing = sampler.draw(requests, settings)
    assert (drawing.evaluations, drawing.still_passes) == (3, 1)
    assert calls == {"keep": 1, "step": 3, "branches": [1, 3, 3]}


def test_no_guidance_is_the_conditional_prediction(sampler, requests):
    plain = sampler.draw(requests[:1], dataclasses.replace(SETTINGS, guidance="none")).latents
    ones = sampler.draw([requests[0]._replace(scales=(1.0, 1.0))], SETTINGS).latents
    np.testing.assert_allclose(plain[0], ones[0], atol=1e-6)


def test_without_images_alpha_one_is_bagels_text_guidance_unrenormalised(sampler, requests):
    request = requests[1]
    ours = sampler.draw([request._replace(scales=(1.0, 4.0))], SETTINGS).latents
    bagel = dataclasses.replace(SETTINGS, guidance="bagel", renorm="global", renorm_min=1.0)
    theirs = sampler.draw([request._replace(scales=(4.0, 1.0))], bagel).latents
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)


def test_similar_sentences_do_not_compile_again(sampler, requests):
    sampler.draw(requests[:1], SETTINGS)
    compiled = [program._cache_size() for program in (sampler.programs.keep, sampler.programs.step)]
    items = (text(1, 2, 4), image(8), text(5, 6), image(9, 28, 28))
    longer = Request(items, (picture(9),), (3.0, 2.0))
    sampler.draw([longer], dataclasses.replace(SETTINGS, num_timesteps=3, shift=2.0))
    assert compiled == [
        program._cache_size() for program in (sampler.programs.keep, sampler.programs.step)
    ]


def test_a_clean_prediction_is_turned_into_a_velocity(requests):
    clean = make_sampler(edit(CONFIG, prediction="clean"))
    _, moments = watched(clean, requests[1:2], dataclasses.replace(SETTINGS, guidance="none"))
    moment = moments[1]
    x_t = np.asarray(moment.state)[0, :3]
    request = requests[1]._replace(pictures=requests[1].pictures[:1])
    predicted = training_velocity(clean, request, "full", x_t, moment.t)
    np.testing.assert_allclose(
        np.asarray(moment.velocity)[0, :3], (x_t - predicted) / moment.t, atol=1e-4
    )


def test_a_null_token_model_draws(requests):
    model = make_sampler(edit(CONFIG, null_token=True))
    drawn = model.draw(requests[:1], dataclasses.replace(SETTINGS, num_timesteps=2)).latents
    assert np.isfinite(drawn[0]).all()


def test_what_a_watcher_raises_ends_the_drawing(sampler, requests):
    seen = []

    def watch(moment):
        seen.append((moment.index, moment.count))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.draw(requests[:1], SETTINGS, watch)
    assert seen == [(0, 3)]


def test_unusable_settings_are_refused(sampler, requests):
    with pytest.raises(ValueError, match="num_timesteps=1"):
        sampler.draw(requests[:1], dataclasses.replace(SETTINGS, num_timesteps=1))
    with pytest.raises(ValueError, match="guidance"):
        sampler.draw(requests[:1], dataclasses.replace(SETTINGS, guidance="cfg"))
