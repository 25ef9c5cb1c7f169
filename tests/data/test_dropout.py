import numpy as np
import pytest

from inset_jax.core.config import DropoutConfig
from inset_jax.data import dropout
from inset_jax.data.dropout import NEVER, TEXT, VAE, VIT
from inset_jax.data.record import Segment

CODE = np.array([TEXT, VIT, TEXT, VIT, VAE, NEVER], np.int8)
OPENS = np.ones(6, bool)
NONE = dict(segment_text=0.0, segment_vit=0.0, segment_vae=0.0)


def draws(config: DropoutConfig, count: int = 4000, code=CODE, opens=OPENS) -> np.ndarray:
    return np.array([dropout.draw(code, opens, config, 0, f"x{n}", 0) for n in range(count)])


def test_a_draw_depends_on_seed_example_and_epoch_only():
    config = DropoutConfig(segment_text=0.5, segment_vit=0.5)
    one = lambda *key: dropout.draw(CODE, OPENS, config, *key).tolist()
    assert one(0, "a", 0) == one(0, "a", 0)
    others = [one(seed, name, epoch) for seed in (0, 1) for name in "abcd" for epoch in (0, 1)]
    assert len({tuple(own) for own in others}) > 4


def test_segments_drop_one_by_one_at_the_references_rates():
    rate = draws(DropoutConfig(segment_text=0.1, segment_vit=0.3, segment_vae=0.5)).mean(axis=0)
    assert np.allclose(rate, [0.1, 0.3, 0.1, 0.3, 0.5, 0], atol=0.03)


def test_whole_modalities_drop_by_example():
    config = DropoutConfig(example_text=0.2, example_images=0.3, example_both=0.1, **NONE)
    patterns, counts = np.unique(draws(config), axis=0, return_counts=True)
    found = {tuple(map(int, p)): c / 4000 for p, c in zip(patterns, counts)}
    expected = {
        (0, 0, 0, 0, 0, 0): 0.4,
        (1, 0, 1, 0, 0, 0): 0.2,
        (0, 1, 0, 1, 1, 0): 0.3,
        (1, 1, 1, 1, 1, 0): 0.1,
    }
    assert found.keys() == expected.keys()
    assert all(abs(found[p] - expected[p]) < 0.03 for p in expected)


def test_frames_go_with_their_first_frame():
    code, opens = np.array([VAE, VAE, VAE, NEVER]), np.array([True, False, False, True])
    found = draws(DropoutConfig(segment_vae=0.5), 50, code, opens)
    assert set(map(tuple, found.tolist())) == {(False,) * 4, (True, True, True, False)}


def test_no_probability_drops_nothing():
    assert not draws(DropoutConfig(**NONE), 20).any()


@pytest.mark.parametrize("has_target", [True, False])
def test_only_conditions_of_a_drawing_may_drop(has_target):
    image = dict(image=b"x", width=1, height=1)
    segments = [Segment("text", text="a"), Segment("vit", **image), Segment("vae", **image)]
    segments.append(Segment("text", text="b", loss=True))
    if has_target:
        segments.append(Segment("target", **image))
        assert dropout.codes(segments).tolist() == [TEXT, VIT, VAE, NEVER, NEVER]
    else:
        assert dropout.codes(segments).tolist() == [NEVER] * 4
