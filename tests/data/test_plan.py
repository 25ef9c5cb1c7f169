import pickle
from collections import Counter

import numpy as np
import pytest

from configs.tiny import experiment
from inset_jax.core.config import CapacityConfig, DropoutConfig, edit
from inset_jax.data.dropout import NEVER, TEXT, VIT
from inset_jax.data.index import COLUMNS, Index
from inset_jax.data.plan import Draw, Plan, next_data_set

CAPACITY = CapacityConfig(und=300, gen=300, vit=300, cross_entropy=50, examples=6)
CONFIG = edit(experiment(), data__capacity=CAPACITY)


def make_index(count: int, name: str = "set", seed: int = 0) -> Index:
    """Examples of a text, an image and a target, of random lengths."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 60, (count, 3))
    tokens = np.zeros((count, 3, 4), np.int64)
    tokens[:, 0, 0] = rows[:, 0]
    tokens[:, 1, 0] = tokens[:, 1, 2] = rows[:, 1]
    tokens[:, 2, 0], tokens[:, 2, 1] = 2, rows[:, 2] * 2
    return Index(
        name,
        [f"{name}-{n}" for n in range(count)],
        ["t2i"] * count,
        np.arange(count),
        np.arange(count + 1) * 3,
        tokens.reshape(-1, 4),
        np.tile(np.array([TEXT, VIT, NEVER], np.int8), count),
        np.ones(3 * count, bool),
        {},
    )


DROPS = DropoutConfig(example_both=0.2)


def packs(plan: Plan, count: int) -> list[list[Draw]]:
    return [plan.pack(number) for number in range(count)]


def test_the_plan_is_the_same_in_any_order_and_process():
    make = lambda: Plan([make_index(50), make_index(20, "other", 1)], CONFIG, drops=DROPS)
    plan, again = make(), make()
    assert again.pack(40) == packs(plan, 41)[40]
    assert packs(pickle.loads(pickle.dumps(plan)), 20) == packs(plan, 20)
    other_seed = Plan(plan.indexes, edit(CONFIG, run__seed=1), drops=DROPS)
    assert packs(other_seed, 20) != packs(plan, 20)


def test_every_example_comes_once_an_epoch():
    plan = Plan([make_index(50)], CONFIG, drops=DROPS)
    drawn = [draw for pack in packs(plan, 80) for draw in pack]
    count = Counter((draw.example, draw.epoch) for draw in drawn)
    assert max(count.values()) == 1
    for epoch in range(3):
        assert sorted(n for n, e in count if e == epoch) == list(range(50))


def test_epochs_come_in_different_orders_but_do_not_drift_apart():
    plan = Plan([make_index(50)], CONFIG)
    drawn = [draw for pack in packs(plan, 100) for draw in pack]
    order = lambda epoch: [draw.example for draw in drawn if draw.epoch == epoch]
    assert order(0) != order(1) != order(2)
    places = {e: [n for n, draw in enumerate(drawn) if draw.epoch == e] for e in range(4)}
    # the oldest waiting example opens a pack, so a straggler waits a window of packs at most
    assert max(places[0]) < min(places[3])


def test_no_pack_exceeds_a_capacity_and_most_are_full():
    plan = Plan([make_index(400)], CONFIG, drops=DROPS)
    used = np.array([sum(map(plan.lengths, pack)) for pack in packs(plan, 60)])
    limit = [getattr(CAPACITY, name) for name in COLUMNS]
    assert (used <= limit).all()
    assert (used[:, :2].max(axis=1) > 240).mean() > 0.9  # one stream nearly full
    assert np.array_equal(plan.room(plan.pack(3)), limit - used[3])


def test_one_pass_has_every_example_once_and_ends():
    indexes = [make_index(50), make_index(7, "other", 1)]
    plan = Plan(indexes, CONFIG, endless=False)
    drawn = Counter((d.data_set, d.example) for pack in packs(plan, len(plan)) for d in pack)
    assert set(drawn) == {(0, n) for n in range(50)} | {(1, n) for n in range(7)}
    assert set(drawn.values()) == {1} and plan.pack(len(plan)) == []


def test_dropout_is_drawn_before_lengths_are_measured():
    index = make_index(100)
    everything = DropoutConfig(example_both=1.0)
    plan = Plan([index], CONFIG, drops=everything)
    length = plan.lengths(Draw(0, 5, 0))
    # text and image leave at most a null token each; the target's two markers stay
    assert length.tolist() == [4, index.tokens[17, 1], 0, 0, 1]
    assert Plan([index], CONFIG).lengths(Draw(0, 5, 0))[0] > 4


def test_weights_mix_the_data_sets():
    indexes = [make_index(30), make_index(30, "other", 1), make_index(30, "third", 2)]
    config = edit(CONFIG, data__weights=(0.6, 0.4, 0.0), data__train=("a", "b", "c"))
    drawn = [draw.data_set for pack in packs(Plan(indexes, config), 60) for draw in pack]
    share = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.allclose(share, [0.6, 0.4, 0], atol=0.05) and share[2] == 0


@pytest.mark.parametrize(
    "weights", [[1.0], [0.5, 0.5], [0.2, 0.2, 0.1, 0.5], [0.97, 0.01, 0.02], [0.3, 0.0, 0.7]]
)
def test_every_prefix_is_within_one_example_of_the_weights(weights):
    weights = np.array(weights)
    taken = np.zeros(len(weights), np.int64)
    for total in range(2000):
        taken[next_data_set(weights, taken, total)] += 1
        assert abs(taken - weights * (total + 1)).max() < 1
