"""Bad steps: what is one, what it changes, what is written down, and what is remembered."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core.config import RunConfig, edit
from inset_jax.model import inset
from inset_jax.train import guard, step

RUN = RunConfig(on_bad_step="skip", spike=3.0, spike_window=4, max_bad_steps=2)


def judged(run, norms, memory=None):
    """Verdicts (good, limit, in a row) over a sequence of gradient norms, and the last memory."""
    memory = guard.initial(run) if memory is None else memory
    told = []
    for norm in norms:
        norm = jnp.float32(norm)
        verdict, memory = guard.judge(memory, jnp.isfinite(norm), norm, run)
        told.append((bool(verdict.good), float(verdict.limit), int(verdict.in_a_row)))
    return told, memory


def test_spikes_are_measured_by_the_median_of_good_steps():
    # the upper median of four; unseen steps count as infinite, bad ones are not remembered
    told, _ = judged(RUN, [1, 50, 2, 3, 9])
    assert [limit for _, limit, _ in told] == [np.inf, np.inf, np.inf, 150, 9]
    assert all(good for good, *_ in told)
    told, memory = judged(RUN, [1, 1, 2, 2, 7, 6.1, 2, 7])
    assert [good for good, *_ in told] == [True, True, True, True, False, False, True, False]
    assert [limit for _, limit, _ in told[4:]] == [6, 6, 6, 6]
    assert [row for *_, row in told] == [0, 0, 0, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(memory["norms"], [1, 2, 2, 2])


def test_without_a_limit_only_what_is_not_finite_is_bad():
    told, _ = judged(edit(RUN, spike=0.0), [1] * 6 + [1e9, np.nan, np.inf, 1])
    assert [good for good, *_ in told] == [True] * 7 + [False, False, True]
    assert {limit for _, limit, _ in told} == {np.inf}


def test_memory_comes_back_from_json_to_the_bit():
    norms = np.float32(np.random.default_rng(0).random(3) + 0.1)
    _, memory = judged(RUN, [*norms, np.nan])
    back = guard.from_json(json.loads(json.dumps(guard.to_json(memory))), RUN)
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(memory))
    assert back["in_a_row"] == 1
    jax.tree.map(np.testing.assert_array_equal, guard.from_json({}, RUN), guard.initial(RUN))
    shorter = guard.from_json(guard.to_json(memory), edit(RUN, spike_window=2))
    np.testing.assert_array_equal(shorter["norms"], norms[-2:])


@pytest.fixture(scope="module")
def skipping(config):
    return edit(config, run=RUN)


@pytest.fixture(scope="module")
def advance(skipping):
    definition, _ = inset.abstract(skipping.model)
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(step.train_step(definition, skipping), compiler_options=quick)


def test_skipped_step_moves_on_and_changes_nothing_else(advance, skipping, make_pack, batch):
    state = step.initial_state(inset.create(skipping.model, 0)[1], skipping)
    good, report = advance(state, batch(make_pack(0), make_pack(1)))
    assert report.verdict.good
    np.testing.assert_allclose(
        np.sqrt(sum(float(n) ** 2 for n in report.grad_norms.values())), report.grad_norm, 1e-5
    )
    assert set(report.grad_norms) == {"und", "gen", "vit", "rest"}
    poisoned = make_pack(1)
    poisoned.gen_latent[0, 0] = np.nan
    after, report = advance(good, batch(make_pack(0), poisoned))
    assert (bool(report.verdict.good), bool(report.finite)) == (False, False)
    for part in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, after[part], good[part])
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after[part]))
    assert (int(good["step"]), int(after["step"])) == (1, 2)
    assert int(after["guard"]["in_a_row"]) == 1
    # a finite step of a guard that knows smaller norms is a spike
    calm = {**good, "guard": guard.from_json({"norms": [1e-6] * 4}, RUN)}
    after, report = advance(calm, batch(make_pack(0), make_pack(1)))
    assert (bool(report.verdict.good), bool(report.finite)) == (False, True)
    jax.tree.map(np.testing.assert_array_equal, after["ema"], good["ema"])
    again, report = advance({**after, "guard": good["guard"]}, batch(make_pack(0), make_pack(1)))
    assert report.verdict.good
    assert not np.array_equal(
        again["ema"]["latent_out"]["kernel"], good["ema"]["latent_out"]["kernel"]
    )


def report(norm, finite, limit, in_a_row):
    losses = step.Losses(1.0, 2.0, 3.0)
    verdict = guard.Verdict(False, limit, in_a_row)
    return SimpleNamespace(losses=losses, grad_norm=norm, finite=finite, verdict=verdict)


def test_bad_steps_are_written_down_with_all_records(tmp_path, capsys):
    bad = guard.BadSteps(tmp_path, RUN, 0)
    records = [f"r{n}" for n in range(25)]
    assert bad.add(7, report(9.0, True, 6.0, 1), records) is None
    assert "gradient norm above 6, 3 times its median" in capsys.readouterr().out
    why = bad.add(8, report(np.nan, False, 6.0, 2), records)
    assert "step 8: not finite (flow 3, cross entropy 2, gradient norm nan)" in why
    assert "r19 and 5 more" in why and why.endswith("2 bad steps in a row (run.max_bad_steps)")
    assert bad.take() == 2 and bad.take() == 0
    told = [json.loads(line) for line in (tmp_path / guard.FILE).read_text().splitlines()]
    assert [(t["step"], t["records"]) for t in told] == [(7, records), (8, records)]
    guard.BadSteps(tmp_path, RUN, 7)
    assert len((tmp_path / guard.FILE).read_text().splitlines()) == 1
    stop = guard.BadSteps(tmp_path, edit(RUN, on_bad_step="stop"), 7)
    assert "step 8" in stop.add(8, report(9.0, True, 6.0, 1), records)
