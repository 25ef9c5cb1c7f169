import numpy as np
import pytest

from configs.inset_7b import experiment
from inset_jax.data import measure_packing, mixes
from inset_jax.data.index import measure


def test_greedy_packs_as_bagel_does():
    capacity = np.array([100, 100])
    rows = np.array([[60, 10], [50, 10], [30, 60], [45, 80], [9, 9]])
    # the second waits, comes first while the pack is below 16,384 of 36,864, does not fit again,
    # and is lost with the pack done; the fourth waits at a pack too full for that
    assert measure_packing.greedy(rows, capacity).tolist() == [0, -1, -1, -1, -1]
    done = np.concatenate([rows, [[50, 30]]])  # fills the second pack to 8/9
    assert measure_packing.greedy(done, capacity).tolist() == [0, -1, 1, -1, 1, 1]


@pytest.mark.parametrize("longest", [518, 980])
def test_the_stated_mix_fills_both_streams_far_better_than_greedy(longest, monkeypatch):
    for name in ("coarse", "extremes"):
        monkeypatch.delitem(mixes.MIXES, name)
    rule, bar = measure_packing.REFERENCES[longest]
    monkeypatch.setattr(measure_packing, "REFERENCES", {longest: (rule, bar)})
    row, small = measure_packing.packing(experiment(), 6000)
    assert sum(small["capacity"]) <= 16384 and small["bar"] is None
    assert small["scaled_down"] > row["scaled_down"] and min(small["fill"]) > 0.85
    assert row["examples"] == 8192 and row["left_out"] == 0
    assert min(row["fill"]) > bar - 0.005  # the last packs of so short a plan are not full
    assert min(row["greedy_fill"]) < 0.9
    assert "mixed" in measure_packing.packing_table([row])
    row["fill"] = [0.5, 0.9]
    assert measure_packing.packing_misses([row]) == [
        f"mixed with references of {longest} px: fill 50.00%, expected {bar:.0%}"
    ]


def test_made_up_mixes_have_their_shares_and_sizes():
    made, weights = mixes.mixed(1000)
    assert [len(own) for own in made] == [200, 200, 100, 500] and sum(weights) == 1
    sentences, again = made[0], mixes.mixed(1000)[0][0]
    assert np.array_equal(sentences.size, again.size)
    index = measure(sentences, experiment())
    references = np.add.reduceat((sentences.segment == 1).astype(int), sentences.start[:-1])
    assert references.min() == 3 and references.max() == 8 and len(index) == 200


def test_planning_is_timed_in_worker_processes():
    found = measure_packing.planning(experiment(), 3000, 2)
    assert found["examples"] >= 3000 and found["seconds"] > 0
    assert found["bytes_an_example"] < 20 and min(found["fill"]) > 0.9
