"""The life of a run in one process: bad steps, interruptions, damage, checkpoints, traces.

Batches are poisoned on their way to the device: a batch that is not finite, and one whose gradients
are a spike. The real thing, records and all, is in test_run.py.
"""

import contextlib
import json
import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from inset_jax.checkpoint import damaged, store
from inset_jax.core import overrides
from inset_jax.core.config import edit
from inset_jax.data.loader import Loader
from inset_jax.train import guard, health, loop, metrics, profiling, start
from tests.checkpoint.test_damaged import harm
from tests.train.runs import TIMED, fill_weights, prepare

STEPS, NAN, SPIKE = 16, 4, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory, config):
    """A folder with records, and every compiled program kept for the next run."""
    folder = prepare(tmp_path_factory.mktemp("life"), config)
    fill_weights(folder)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(folder / "compiled"), 0.1), strict=True):
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield folder
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", False)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def skipping(place):
    whole = overrides.load(str(place / "experiment.py"))
    run = dict(steps=STEPS, save_every=5, validate_every=5, sample_every=0, keep=1)
    run["keep_every"] = 10
    run["init_from"] = str(place / "weights")
    guarded = dict(on_bad_step="skip", spike=20.0, spike_window=6, keep_best=True)
    return edit(whole, **{f"run__{name}": value for name, value in (run | guarded).items()})


@contextlib.contextmanager
def poisoned(stop_at=0, meanwhile=lambda number: None, last=STEPS):
    """Batches as they should not be, all after step `last`; a SIGTERM while a batch is made."""
    original = loop._Run._packs

    def packs(self, batches):
        made = original(self, batches)
        if batches[0].examples[0][0][0].startswith("held-out"):
            return made
        number = batches[0].step + 1
        meanwhile(number)
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        factor = {NAN: np.nan, SPIKE: 1e4}.get(number, 1.0) if number <= last else np.nan
        return made._replace(gen_latent=made.gen_latent * np.float32(factor))

    loop._Run._packs = packs
    try:
        yield
    finally:
        loop._Run._packs = original


@pytest.fixture(scope="module")
def straight(place, skipping):
    folder = place / "straight"
    planned = edit(skipping, run__profile_steps=(2, 3), run__keep=100)
    with poisoned():
        assert loop.run(planned, folder) == loop.Outcome(STEPS, None)
    return folder


def rows(folder, phases=("train", "validation")):
    """Metrics but for what the clock says."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in metrics.read(folder)
        if row["phase"] in phases
    ]


def arrays(folder, config, step):
    """All arrays of a checkpoint, and the guard's memory."""
    shapes, coder = start.wanted(config, start.meshes.build(config.mesh))
    meta = store.read_meta(folder / "checkpoints", step)
    return store.restore(folder / "checkpoints", start.to_items(shapes, coder), step), meta["guard"]


def test_bad_steps_are_skipped_named_and_never_in_a_checkpoint(straight, skipping):
    told = [json.loads(line) for line in (straight / guard.FILE).read_text().splitlines()]
    assert [one["step"] for one in told] == [NAN, SPIKE]
    assert told[0]["why"] == "not finite" and "20 times its median" in told[1]["why"]
    assert all(name.startswith("train-") for one in told for name in one["records"])
    by_step = {row["step"]: row for row in metrics.read(straight) if row["phase"] == "train"}
    assert {n for n, row in by_step.items() if row["bad_steps"]} == {NAN, SPIKE}
    assert "loss" not in by_step[NAN] and by_step[SPIKE]["grad_norm"] > 1e3
    counts = {}
    for step in store.steps(straight / "checkpoints"):
        items, memory = arrays(straight, skipping, step)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(items))
        assert max(memory["norms"]) < by_step[SPIKE]["grad_norm"] / 20
        counts[step] = int(items["opt_state"]["count"])
    assert counts == {5: 4, 10: 9, 15: 13, 16: 14}  # updates, of so many steps


def test_config_stays_the_one_of_the_last_start_that_took_a_step(straight, skipping, monkeypatch):
    kept = (straight / overrides.FILE).read_text()
    planned = edit(skipping, run__profile_steps=(2, 3), run__keep=100)
    assert overrides.from_dict(json.loads(kept)) == planned
    other = edit(skipping, run__steps=STEPS + 1, model__llm__mlp_dim=28)
    with pytest.raises(ValueError, match="mlp_dim is 24 there and 28 here"):
        loop.run(other, straight)

    def packs(self, batches):
        raise ValueError("no such batch")

    monkeypatch.setattr(loop._Run, "_packs", packs)
    with pytest.raises(ValueError, match="no such batch"):
        loop.run(edit(skipping, run__steps=STEPS + 1), straight)
    loop.run(edit(skipping, run__log_every=3), straight)  # nothing to do
    assert (straight / overrides.FILE).read_text() == kept


def test_interrupted_run_equals_a_straight_one_to_the_bit(straight, place, skipping, capsys):
    folder = place / "interrupted"
    often = edit(skipping, run__save_minutes=1e-6, run__keep=100)
    ask = folder / profiling.ASK
    # stopped while the guard knows of norms and of a bad step, with a trace asked for by hand
    with poisoned(NAN + 2, lambda number: number == 1 and ask.touch()):
        assert loop.run(often, folder) == loop.Outcome(NAN + 2, signal.SIGTERM)
    told = capsys.readouterr().out
    assert "the same command goes on from there" in told
    assert not ask.exists() and any((folder / profiling.FOLDER).rglob("*.xplane.pb"))
    assert store.steps(folder / "checkpoints")[-1] == NAN + 2
    assert NAN in store.steps(folder / "checkpoints")  # by the clock, not by steps
    with poisoned():
        loop.run(skipping, folder)
    assert rows(folder) == rows(straight)
    ours, theirs = (arrays(one, skipping, STEPS) for one in (folder, straight))
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]
    # the best by held-out loss is still there beside the newest
    losses = {row["step"]: row["loss"] for row in rows(folder, ("validation",))}
    assert set(store.steps(folder / "checkpoints")) == {10, STEPS, min(losses, key=losses.get)}


def test_data_goes_on_where_it_was_with_other_packs_an_update(place, skipping, capsys):
    """Updates of one pack, of two, and of one again: no pack is repeated or left out."""
    seen, original = [], loop._Run._packs

    def packs(self, batches):
        seen.extend(pack for batch in batches for pack in batch.examples)
        return original(self, batches)

    folder, loop._Run._packs = place / "other_packs", packs
    skipping = edit(skipping, run__validate_every=0, run__keep_best=False)
    try:
        for last, each in ((2, 1), (4, 2), (5, 1)):
            changed = edit(skipping, run__steps=last, optimizer__accumulation=each)
            loop.run(changed, folder)
            told = capsys.readouterr().out
            assert ("has changed in this run: its data goes on with pack" in told) == (last > 2)
    finally:
        loop._Run._packs = original
    loader = Loader(skipping)
    assert seen == [pack for _ in range(7) for pack in next(loader).examples]
    assert store.read_meta(folder / "checkpoints", 5)["data"]["pack"] == 7


def test_run_of_a_damaged_checkpoint_goes_on_from_the_one_before(straight, skipping, capsys):
    before = rows(straight)
    harm(straight / "checkpoints" / str(STEPS))
    with pytest.raises(ValueError, match=f"step {STEPS} is damaged .* go back to step 15"):
        loop.run(edit(skipping, run__steps=STEPS + 1), straight)
    with poisoned():
        loop.run(edit(skipping, run__on_damaged_checkpoint="previous", run__keep=100), straight)
    assert f"step {STEPS} is damaged" in capsys.readouterr().out
    assert (straight / damaged.ASIDE / str(STEPS)).is_dir()
    assert rows(straight) == before


def test_run_tells_where_its_time_goes(straight):
    first = next(row for row in metrics.read(straight) if row["phase"] == "start")
    phases = ("hosts", "mesh", "restore", "batch", "compile", "first")
    assert first["start/all"] == pytest.approx(sum(first[f"start/{name}"] for name in phases))
    assert first["start/compile"] > 0
    (last,) = [r for r in metrics.read(straight) if (r["step"], r["phase"]) == (STEPS - 2, "train")]
    assert {"time/data", "time/step", "tflops_per_chip", "tokens_per_second/vit"} <= set(last)
    assert 0 < last["fill/und"] <= 1 and 0 < last["goodput"] < 1
    norms = [last[f"grad_norm/{part}"] for part in ("und", "gen", "vit", "rest")]
    assert np.linalg.norm(norms) == pytest.approx(last["grad_norm"], rel=1e-5)
    beat = json.loads((straight / health.FOLDER / "0.json").read_text())
    assert beat["step"] == STEPS
    assert any((straight / profiling.FOLDER / "2").rglob("*.xplane.pb"))


def test_too_many_bad_steps_in_a_row_stop_the_run(place, skipping):
    folder = place / "hopeless"
    few = edit(skipping, run__max_bad_steps=3, run__save_every=1)
    with poisoned(last=2), pytest.raises(ValueError) as caught:
        loop.run(few, folder)
    why = str(caught.value)
    assert "3 bad steps in a row (run.max_bad_steps); nothing was updated, and step 4 is the" in why
    told = [json.loads(line) for line in (folder / guard.FILE).read_text().splitlines()]
    assert [one["step"] for one in told] == [3, 4, 5]
    items, _ = arrays(folder, skipping, store.latest(folder / "checkpoints"))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(items["ema"]))
