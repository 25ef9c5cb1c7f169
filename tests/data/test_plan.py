import pickle
from collections import Counter

import numpy as np

from configs.tiny import experiment
from inset_jax.core.config import CapacityConfig, DropoutConfig, edit
from inset_jax.data.course import best_capacity
from inset_jax.data.dropout import NEVER, TEXT, VIT
from inset_jax.data.index import COLUMNS, Index
from inset_jax.data.plan import Draw, Plan

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
        name=name,
        source=name,
        key=f"{name} {count} {seed}",
        ids=[f"{name}-{n}" for n in range(count)],
        kinds=["t2i"] * count,
        number=np.arange(count),
        start=np.arange(count + 1) * 3,
        tokens=tokens.reshape(-1, 4),
        code=np.tile(np.array([TEXT, VIT, NEVER], np.int8), count),
        opens=np.ones(3 * count, bool),
        percent=np.full(count, 100, np.uint8),
        skipped={},
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
    # text and image leave nothing; the target's two markers stay
    assert length.tolist() == [2, index.tokens[17, 1], 0, 0, 1]
    with_null = Plan([index], edit(CONFIG, model__null_token=True), drops=everything)
    assert with_null.lengths(Draw(0, 5, 0))[0] == 4
    assert Plan([index], CONFIG).lengths(Draw(0, 5, 0))[0] > 4


def test_weights_mix_the_data_sets():
    indexes = [make_index(30), make_index(30, "other", 1), make_index(30, "third", 2)]
    config = edit(CONFIG, data__weights=(0.6, 0.4, 0.0), data__train=("a", "b", "c"))
    drawn = [draw.data_set for pack in packs(Plan(indexes, config), 60) for draw in pack]
    share = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.allclose(share, [0.6, 0.4, 0], atol=0.05) and share[2] == 0


def test_sections_from_any_process_give_the_same_packs(tmp_path):
    indexes = [make_index(300), make_index(100, "other", 1)]
    config = edit(CONFIG, data__weights=(0.5, 0.5), data__train=("a", "b"))
    make = lambda folder=None: Plan(indexes, config, drops=DROPS, folder=folder)
    alone, ahead = make(tmp_path / "one"), make(tmp_path / "two")
    assert alone.section_size == 512 and alone.hash == ahead.hash
    ahead.make_sections([3, 1, 0, 2], workers=2)
    memory = packs(make(), 900)
    assert memory[-1] and memory == packs(alone, 900) == packs(ahead, 900)
    for number in range(4):
        name = f"plan-{alone.hash}/section-{number:06d}/rows.npy"
        files = [tmp_path / folder / name for folder in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    # another process finds the files and reads them in any order
    again = pickle.loads(pickle.dumps(make(tmp_path / "two")))
    assert again.pack(777) == memory[777] and again.pack(5) == memory[5]


def test_a_section_is_read_from_its_file_and_not_planned_again(tmp_path, monkeypatch):
    index = make_index(50)
    expected = packs(Plan([index], CONFIG, folder=tmp_path), 30)
    monkeypatch.setattr("inset_jax.data.fill.fill_packs", None)
    plan = Plan([index], CONFIG, folder=tmp_path)
    assert packs(plan, 30) == expected
    assert isinstance(plan.section(0).rows.base, np.memmap)


def test_the_hash_names_what_the_packs_depend_on():
    index, base = make_index(50), CONFIG
    plain = Plan([index], base).hash
    like = lambda **change: Index(**{**index._asdict(), **change})
    assert Plan([like(name="moved")], edit(base, data__packs=7)).hash == plain
    others = [
        Plan([like(key="changed")], base),
        Plan([index], edit(base, run__seed=1)),
        Plan([index], edit(base, data__capacity__vit=299)),
        Plan([index], base, drops=DROPS),
        Plan([index], base, endless=False),
        Plan([index], base, stage=1),
    ]
    assert len({plain, *(plan.hash for plan in others)}) == len(others) + 1


def test_a_stage_has_epochs_and_orders_of_its_own():
    index = make_index(50)
    first, second = (packs(Plan([index], CONFIG, stage=n), 20) for n in (0, 1))
    assert {draw.epoch for pack in second for draw in pack} <= set(range(65536, 65546))
    assert [d.example for pack in first for d in pack] != [d.example for p in second for d in p]


def test_capacities_that_fit_the_mix_are_filled():
    index = make_index(4000)
    mean = Plan([index], CONFIG, drops=DROPS).sample(4000)[:, :2].mean(axis=0)
    und, gen = best_capacity(mean, 600)
    config = edit(CONFIG, data__capacity__und=und, data__capacity__gen=gen)
    config = edit(config, data__capacity__vit=und, data__capacity__examples=99)
    assert Plan([index], config, drops=DROPS).fill([0])[:2].min() > 0.97
    lopsided = edit(config, data__capacity__und=gen, data__capacity__gen=und)
    assert Plan([index], lopsided, drops=DROPS).fill([0])[:2].min() < 0.7
