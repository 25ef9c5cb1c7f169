"""Rates: what packs hold, what it is worth, who is slow, and the share of time that counts."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from inset_jax.core import chips
from inset_jax.core.config import edit
from inset_jax.train import goodput, throughput, work
from inset_jax.train.stopwatch import Stopwatch


def test_load_of_a_pack_is_what_it_holds_without_padding(make_pack):
    pack = make_pack(0, texts=2)
    load = work.held(pack)
    # two examples of 3 + 4 text tokens with two markers each and one of 2, and three pictures
    assert load.gen == np.sum(pack.gen_example >= 0) == 4
    assert load.und == np.sum(pack.und_example >= 0) > 12
    assert load.vit == 3 * 4 and load.vit_pairs == 3 * 4 * 4
    assert load.targets == np.sum(pack.ce_weight > 0)
    seen = sum(
        int(np.sum((v.low[:, None] <= q) & (q < v.high[:, None])))
        for v, q in ((v, np.arange(10**3)) for v in pack.visibility.values())
    )
    assert load.pairs == seen
    twice = work.held(type(pack)(*(_twice(part) for part in pack)))
    assert twice == work.Load(*(2 * x for x in load))


def _twice(part):
    if isinstance(part, dict):
        return {name: _twice(value) for name, value in part.items()}
    if isinstance(part, tuple):
        return type(part)(*map(_twice, part))
    return np.stack([part, part])


def test_work_is_linear_in_the_load(config):
    load = work.Load(50, 20, 16, 9, 700, 64)
    whole = work.total(work.parts(config, load)).model
    assert whole == pytest.approx(np.dot(load, work.each(config)))
    assert min(work.each(config)) > 0
    llm = config.model.llm
    layer = llm.model_dim * (2 * 16 + 2 * 8 + 3 * llm.mlp_dim)
    assert work.parts(config, load)["und expert"].model == 6 * 50 * layer
    frozen = edit(config, optimizer__frozen=("llm/layers/und/*",))
    assert work.parts(frozen, load)["und expert"].model == 4 * 50 * layer


def told(data, steps=4, host="a", load=(400, 200, 100, 40, 9000, 640), memory=()):
    seconds = {"data": data, "step": 1.5, "bad": 0.5 - data / 4, "save": 0.7}
    last = [x / 4 for x in load]
    return {
        "load": list(load), "last": last, "steps": steps, "room": [160, 80, 60],
        "seconds": seconds, "memory": list(memory), "host": host,
    }  # fmt: skip


@pytest.fixture
def speed(config):
    config = edit(config, data__packs=2)
    return throughput.Throughput(config, Stopwatch(), True)


def test_rates_are_those_of_all_processes_in_the_time_of_steps(speed, config):
    values = speed.figures([told(0.0), told(0.0)])
    assert values["steps_per_second"] == 2.0  # the save slows no rate
    assert values["time/save"] == 0.7 and values["time/step"] == 1.5 / 4
    assert values["tokens_per_second"] == 1200 / 2.0
    assert [values[f"tokens_per_second/{s}"] for s in ("und", "gen", "vit")] == [400, 200, 100]
    assert values["fill/und"] == 200 / 320 and values["fill/vit"] == 50 / 120
    work_done = work.total(work.parts(config, work.Load(*told(0)["load"]))).model * 2
    assert values["tflops_per_chip"] == pytest.approx(work_done / 2.0 / 1e12)
    assert "mfu" not in values and "hbm/gib" not in values  # CPUs have neither


def test_mfu_is_a_share_of_the_chips_published_rate(speed):
    speed._chip = chips.of_kind("TPU7x")
    values = speed.figures([told(0.0, memory=(3.0, 5.0)), told(0.0, memory=(4.0, 4.5))])
    assert values["mfu"] == pytest.approx(values["tflops_per_chip"] * 1e12 / 2307e12)
    assert (values["hbm/gib"], values["hbm/peak_gib"]) == (4.0, 5.0)
    assert chips.of_kind("TPU v6 lite").flops == 918e12 and chips.of_kind("cpu") is None


def test_host_that_the_others_wait_for_is_named(speed):
    hosts = [told(0.1, host="a"), told(0.12, host="b"), told(2.0, host="c")]
    values = speed.figures(hosts)
    assert values["hosts/slowest"] == 2
    assert values["hosts/skew"] == pytest.approx((2.0 - 0.12) / 4)
    assert "process 2 (c) needs 0.47 s a step more" in throughput.slow_host(hosts, values)
    even = speed.figures([told(0.1), told(0.11)])
    assert throughput.slow_host(hosts, even) == ""
    assert throughput.slow_host([told(0.1)], speed.figures([told(0.1)])) == ""


def test_counts_begin_anew_after_a_line_and_shared_packs_count_once(config, make_pack):
    watch = Stopwatch()
    speed, other = (throughput.Throughput(config, watch, counts) for counts in (True, False))
    for one in (speed, other):
        one.add([make_pack(0), make_pack(1)])
    watch.lap("step")
    own, none = speed.own(), other.own()
    both = np.add(work.held(make_pack(0)), work.held(make_pack(1)))
    assert own["load"] == own["last"] == both.tolist() and own["steps"] == 1
    assert not any(none["load"]) and not any(none["last"])
    assert json.loads(json.dumps(own)) == own
    pack = make_pack(0)
    assert own["room"] == [2 * x.size for x in (pack.und_example, pack.gen_example, pack.vit_place)]
    assert none["room"] == [0, 0, 0]
    again = speed.own()
    assert not any(again["load"]) and again["steps"] == 0 and again["seconds"] == {}
    assert "steps_per_second" not in speed.figures([again])


def test_goodput_counts_good_steps_alone_over_all_restarts(tmp_path, monkeypatch):
    first = goodput.started(tmp_path)
    assert goodput.started(tmp_path) == first and len(first.id) == 8
    monkeypatch.setattr(time, "time", lambda: first.began + 200)
    watch = SimpleNamespace(seconds={"step": 30.0, "bad": 5.0, "compile": 40.0})
    account = goodput.Goodput(watch, first.began, 50.0)
    assert account.useful() == 80.0 and account.share() == 0.4
    (tmp_path / goodput.FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"run.json: damaged .*remove it"):
        goodput.started(tmp_path)
