"""Whole runs of the command on a tiny model: what they leave, how they end, how they go on.

The runs are real processes, so that SIGKILL is one; a compilation cache keeps them short.
"""

import json
import pathlib
import signal

import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint import store
from inset_jax.core import overrides
from inset_jax.train import guard, metrics
from tests.train.runs import STEPS, TIMED, finish, interrupt, prepare, start


@pytest.fixture(scope="module")
def place(tmp_path_factory, config) -> pathlib.Path:
    """A folder with records, tokenizer, config file and preview."""
    return prepare(tmp_path_factory.mktemp("runs"), config)


@pytest.fixture(scope="module")
def straight(place) -> tuple[pathlib.Path, str]:
    """The folder and the output of a run from beginning to end."""
    status, out, err = finish(start(place, "straight"))
    assert status == 0, err
    return place / "straight", out


def test_run_leaves_config_checkpoints_curves_and_pictures(straight, place):
    folder, out = straight
    saved = overrides.from_dict(json.loads((folder / "config.json").read_text()))
    assert saved == overrides.load(str(place / "experiment.py"))
    assert store.steps(folder / "checkpoints") == [STEPS - 5, STEPS]
    assert (folder / "checkpoints" / "tokenizer.json").exists()
    assert (folder / "previews" / f"{STEPS}.png").exists()
    assert any((folder / "tensorboard").iterdir())
    with Image.open(folder / "curves.png") as curves:
        assert curves.width > 500
    assert f"step {STEPS}/{STEPS}  loss " in out
    assert "left " in out


def test_missing_held_out_records_are_refused_before_the_first_step(place):
    nowhere = place / "nowhere"
    status, out, err = finish(start(place, "blind", f"--config.data.validation={nowhere}"))
    assert status == 1
    assert f"error: {nowhere}: no records there" in err
    assert "parameters train" not in out and not store.steps(place / "blind" / "checkpoints")


def test_loss_falls_and_held_out_loss_is_reported_by_kind(straight):
    rows = metrics.read(straight[0])
    train = [r["loss"] for r in rows if r["phase"] == "train"]
    assert np.mean(train[-8:]) < 0.8 * np.mean(train[:8])
    held_out = [r for r in rows if r["phase"] == "validation"]
    assert [r["step"] for r in held_out] == [10, 20, 30, 40]
    assert {"flow/drawing", "cross_entropy/understanding", "flow", "cross_entropy"} <= set(
        held_out[0]
    )
    assert held_out[-1]["cross_entropy"] < held_out[0]["cross_entropy"]


def test_killed_and_stopped_run_equals_a_straight_one_bit_for_bit(straight, place):
    status, out, err = interrupt(place, "broken", 7, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, err
    assert "the same command goes on from there" in out
    stopped = store.steps(place / "broken" / "checkpoints")[-1]
    assert 7 <= stopped < STEPS

    status, _, _ = interrupt(place, "broken", stopped + 8, signal.SIGKILL)
    assert status == -signal.SIGKILL
    saved = store.steps(place / "broken" / "checkpoints")[-1]
    assert stopped < saved < STEPS

    status, out, err = finish(start(place, "broken"))
    assert status == 0, err
    assert f"step {saved} of" in out
    without_speed = lambda rows: [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in rows
        if row["phase"] != "start"
    ]
    expected = without_speed(metrics.read(straight[0]))
    # the step on which the run was stopped may have been followed by no validation: it is not due
    assert without_speed(metrics.read(place / "broken")) == expected


def test_finished_run_has_nothing_to_do(straight, place):
    status, out, _ = finish(start(place, "straight"))
    assert status == 0
    assert f"nothing to do: step {STEPS} is there" in out


def test_full_disk_while_saving_is_said_and_loses_nothing(straight, place):
    # files may not grow beyond 64 blocks: what a full disk does to a write, without filling one
    before = ("bash", "-c", 'ulimit -f 64; exec "$0" "$@"')
    flags = (f"--config.run.steps={STEPS + 10}", "--config.run.sample_every=0")
    status, _, err = finish(start(place, "straight", *flags, before=before))
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "could not be saved" in lines[0]
    assert f"step {STEPS} is intact" in lines[0]
    assert "Traceback" not in err
    assert store.steps(straight[0] / "checkpoints") == [STEPS - 5, STEPS]


def test_loss_that_is_not_finite_stops_with_step_and_records(straight, place):
    flags = (
        "--config.optimizer.peak_lr=1e30",
        "--config.optimizer.warmup_steps=7",
        "--config.optimizer.first_step_zero=True",
        "--config.run.save_every=1",
    )
    status, _, err = finish(start(place, "exploding", *flags))
    assert status == 1
    assert "not finite (flow" in err
    assert "train-" in err
    (line,) = (place / "exploding" / guard.FILE).read_text().splitlines()
    told = json.loads(line)
    saved = store.steps(place / "exploding" / "checkpoints")
    assert saved[-1] == told["step"] - 1
    assert all(name.startswith("train-") for name in told["records"])
    assert f"step {saved[-1]} is the last checkpoint" in err
