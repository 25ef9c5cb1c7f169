import json

import numpy as np

from inset_jax.core import host
from inset_jax.train import cpu_step
from tools import benchmark


def test_the_batch_is_the_one_that_the_reference_was_timed_on():
    config = cpu_step.configuration()
    pack = cpu_step.batch(config)
    assert pack.und_token.shape == pack.gen_place.shape == (1, 1024)
    assert np.sum(pack.und_token == config.model.tokens.image_end) == 2
    assert pack.ce_weight.sum() == 2 * 509 and pack.gen_weight.sum() == 2 * 512
    assert (pack.und_example >= 0).all() and (pack.gen_example >= 0).all()


def test_visible_work_of_that_batch_is_193_6_gflop():
    config = cpu_step.configuration()
    work = cpu_step.visible_work(config.model, cpu_step.batch(config))
    assert round(work / 1e9, 1) == 193.6


def test_work_grows_with_visible_pairs_only():
    config = cpu_step.configuration()
    pack = cpu_step.batch(config)
    unseen = {name: seen._replace(high=seen.low) for name, seen in pack.visibility.items()}
    with_attention = cpu_step.visible_work(config.model, pack)
    without = cpu_step.visible_work(config.model, pack._replace(visibility=unseen))
    pairs = 2 * (510 * 511 // 2 + 514 * 1024)
    assert with_attention - without == 4 * 12 * 512 * pairs


def test_ratio_compares_best_with_best_and_median_with_median():
    multiply = 2 * cpu_step.SIDE**3
    timing = cpu_step.Timing(step=[4.0, 2.0, 8.0], multiply=[1.0, 3.0, 2.0], work=multiply)
    figures = cpu_step.report(timing)
    assert figures["ratio"] == 0.5 and figures["ratio_median"] == 0.5
    assert figures["step_s"] == 2.0 and figures["multiply_gflops"] == multiply / 1e9
    assert figures["peak_memory_mb"] > 50


def test_check_fails_below_the_bar_and_only_then(monkeypatch, tmp_path, capsys):
    multiply = 2 * cpu_step.SIDE**3
    monkeypatch.setattr(host, "keep_freed_memory", lambda: True)
    for seconds, status in ((1.6, 0), (1.7, 1)):
        timing = cpu_step.Timing([seconds], [1.0], float(multiply))
        monkeypatch.setattr(cpu_step, "measure", lambda rounds, timing=timing: timing)
        file = tmp_path / "figures.json"
        assert benchmark.main(["cpu-step", "--check", "--json", str(file)]) == status
        assert json.loads(file.read_text())["step_s"] == seconds
        assert benchmark.main(["cpu-step"]) == 0
    assert "below the bar: 0.59, expected 0.60" in capsys.readouterr().err
