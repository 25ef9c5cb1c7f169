import pickle

import numpy as np
import pytest

from inset_jax.data.mix import Mix, Turns, integer_weights


@pytest.mark.parametrize(
    "weights", [[1.0], [0.5, 0.5], [0.2, 0.2, 0.1, 0.5], [0.97, 0.01, 0.02], [0.3, 0.0, 0.7]]
)
def test_every_prefix_is_within_one_example_of_the_weights(weights):
    turns, _ = Turns(integer_weights(weights)).between(0, 2000)
    taken = np.cumsum(turns[:, None] == np.arange(len(weights)), axis=0)
    share = np.arange(1, 2001)[:, None] * np.array(weights)
    assert abs(taken - share).max() < 1


def test_weights_become_whole_numbers_as_they_are_written():
    assert integer_weights([0.2, 0.2, 0.1, 0.5]) == [2, 2, 1, 5]
    assert integer_weights([30, 60]) == [1, 2]
    assert integer_weights([0.97, 0.01, 0.02]) == [97, 1, 2]


@pytest.mark.parametrize("weights", [[3, 4, 5], [7001, 4000, 1], [1, 0]])
def test_turns_from_any_place_are_those_of_the_whole_sequence(weights):
    whole, none = Turns(weights).between(0, 30_000)
    assert not none.any()
    for first, count in [(0, 0), (1, 5), (4095, 3), (4096, 1), (11_002, 900), (25_000, 5000)]:
        found, before = Turns(weights).between(first, count)
        assert np.array_equal(found, whole[first : first + count])
        assert np.array_equal(before, np.bincount(whole[:first], minlength=len(weights)))


def test_examples_come_in_epochs_from_any_place():
    mix = Mix([50, 7], (0.9, 0.1), seed=3, first_epoch=65536)
    whole = mix.draws(0, 1000)
    own = whole.data_set == 0
    for epoch in range(10):
        examples = whole.example[own][epoch * 50 : epoch * 50 + 50]
        assert sorted(examples) == list(range(50))
        assert (whole.epoch[own][epoch * 50 : epoch * 50 + 50] == 65536 + epoch).all()
    part = pickle.loads(pickle.dumps(mix)).draws(333, 400)
    for found, expected in zip(part, whole, strict=True):
        assert np.array_equal(found, expected[333:733])
    assert not np.array_equal(Mix([50, 7], (0.9, 0.1), 4).draws(0, 99).example, whole.example[:99])
