import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core.config import SampleConfig
from inset_jax.sample import guidance
from inset_jax.sample.guidance import BRANCHES, MODES, Scales, combine


def draw(seed, shape=(1, 5, 4)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scales(first, second, picture=(0, 0, 0, 0, 0)):
    full = lambda value: jnp.full((1, len(picture)), value, jnp.float32)
    return Scales(full(first), full(second), jnp.asarray([picture], jnp.int32))


V, A, B = draw(0), draw(1), draw(2)


def test_inset_is_its_equation():
    alpha, beta = 4.0, 1.5
    balanced = A + alpha * (V - A)
    expected = B + beta * (balanced - B)
    np.testing.assert_allclose(combine(V, A, B, scales(4.0, 1.5), "none", 0.0), expected, atol=1e-5)


def test_both_scales_one_give_the_conditional_prediction():
    np.testing.assert_allclose(combine(V, A, B, scales(1.0, 1.0), "none", 0.0), V, atol=1e-6)


def test_alpha_one_is_classifier_free_guidance():
    guided = combine(V, A, B, scales(1.0, 3.0), "none", 0.0)
    np.testing.assert_allclose(guided, B + 3.0 * (V - B), atol=1e-5)


def test_without_images_and_alpha_one_it_is_bagels_text_guidance_unrenormalised():
    null = A  # without images both of INSET's branches are empty, and so is BAGEL's text-free one
    inset = combine(V, null, null, scales(1.0, 4.0), "none", 0.0)
    bagel = combine(V, null, V, scales(4.0, 1.0), "global", 1.0)
    np.testing.assert_allclose(inset, bagel, atol=1e-5)


def test_a_stage_that_does_not_act_leaves_the_velocity_to_the_bit():
    still = combine(V, V, V, scales(1.0, 1.0), "none", 0.0)
    assert np.array_equal(still, V)


@pytest.mark.parametrize("renorm", ["global", "channel"])
def test_renormalised_norms_never_grow_and_stop_at_the_minimum(renorm):
    axes = (1, 2) if renorm == "global" else (2,)
    norm = lambda x: np.sqrt((np.asarray(x) ** 2).sum(axes))
    plain = combine(V, A, B, scales(6.0, 2.0), "none", 0.0)
    free = combine(V, A, B, scales(6.0, 2.0), renorm, 0.0)
    held = combine(V, A, B, scales(6.0, 2.0), renorm, 0.8)
    assert (norm(plain) > norm(V)).any()
    np.testing.assert_allclose(norm(free), np.minimum(norm(V), norm(plain)), rtol=1e-5)
    floor = np.clip(norm(V) / norm(plain), 0.8, 1.0) * norm(plain)
    np.testing.assert_allclose(norm(held), floor, rtol=1e-5)


def test_text_channel_renormalises_between_the_stages():
    v1 = A + 4.0 * (V - A)
    v1 = v1 * np.clip(np.linalg.norm(V, axis=-1) / np.linalg.norm(v1, axis=-1), 0, 1)[..., None]
    guided = combine(V, A, B, scales(4.0, 2.0), "text_channel", 0.0)
    np.testing.assert_allclose(guided, B + 2.0 * (v1 - B), rtol=1e-4, atol=1e-5)


def test_global_renormalisation_is_per_picture():
    """A batch of two pictures (and padding) equals the two alone; BAGEL mixes their norms."""
    picture = (0, 0, 1, 1, 1, -1)
    v, a, b = (draw(seed, (1, 6, 4)) * np.asarray([1, 1, 9, 9, 9, 0])[:, None] for seed in range(3))
    both = combine(v, a, b, scales(4.0, 2.0, picture), "global", 0.0)
    for rows in (slice(0, 2), slice(2, 5)):
        size = rows.stop - rows.start
        alone = combine(
            v[:, rows], a[:, rows], b[:, rows], scales(4.0, 2.0, (0,) * size), "global", 0.0
        )
        np.testing.assert_allclose(both[:, rows], alone, rtol=1e-6)
    assert np.isfinite(both).all()


def test_branches_keep_what_they_are_named_for():
    roles = ["text", "clean", "vit", "text", "vit", "text", "plan"]
    kept = {name: [i for i, k in enumerate(stay(roles)) if k] for name, stay in BRANCHES.items()}
    assert kept == {
        "full": [0, 1, 2, 3, 4, 5, 6],
        "visual": [1, 2, 4],
        "null": [],
        "text": [0, 3, 5],
        "without_last_text": [0, 1, 2, 3, 4],
    }
    assert BRANCHES["without_last_text"](["text", "vit"]) == [True, True]
    assert BRANCHES["without_last_text"](["text", "text"]) == [True, False]


def test_bagel_ignores_the_image_scale_without_a_text_scale():
    assert MODES["bagel"].acts(1.0, 2.0) == (False, False)
    assert MODES["bagel"].acts(4.0, 1.0) == (True, False)
    assert MODES["bagel"].acts(4.0, 0.5) == (True, False)
    assert MODES["inset"].acts(1.0, 0.5) == (False, True)
    assert MODES["none"].acts(4.0, 4.0) == (False, False)


def test_the_interval_is_open_below_and_closed_above():
    settings = SampleConfig(interval=(0.4, 0.9))
    assert [guidance.acts_at(settings, t) for t in (0.4, 0.41, 0.9, 0.91)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": "bagle"}, "bagle.*bagel.*inset"),
        ({"renorm": "l2"}, "l2.*text_channel"),
        ({"interval": (0.9, 0.4)}, "low < t <= high"),
        ({"renorm_min": 2.0}, "renorm_min 2.0"),
        ({"shift": 0.0}, "shift 0.0"),
    ],
)
def test_unusable_settings_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        guidance.check(dataclasses.replace(SampleConfig(), **change))


def test_every_preset_is_usable():
    for (mode, _), settings in guidance.PRESETS.items():
        guidance.check(settings)
        assert settings.guidance == mode
