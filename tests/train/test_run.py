"""Whole runs of the command on a tiny model: what they leave, how they end, how they go on.

The runs are real processes, so that SIGKILL is one; a compilation cache keeps them short.
"""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint import store
from inset_jax.core import overrides
from inset_jax.core.config import RunConfig, SizeLimits, edit
from inset_jax.data import record, text
from inset_jax.data.record import Example, Segment
from inset_jax.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40
SPEED = ("steps_per_second", "tokens_per_second", "seconds_left")

PREVIEW = """
from PIL import Image

def draw(config, params, step, folder):
    assert set(params) == {"model", "vae"}
    assert "connector_position" in params["model"]
    path = folder / f"{step}.png"
    Image.new("RGB", (8, 8), (step, 0, 0)).save(path)
    return [path]
"""


def picture(random) -> bytes:
    buffer = io.BytesIO()
    pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, split: str) -> Example:
    """Every third one answers a question about a picture, the others draw one."""
    random = np.random.default_rng(number)
    image = lambda kind: Segment(kind, image=picture(random), width=8, height=8)
    if number % 3 == 0:
        segments = (image("vit"), Segment("text", "what"), Segment("text", "it is", loss=True))
        kind = "understanding"
    else:
        segments = (Segment("text", "a"), image("vit"), Segment("text", "b"), image("target"))
        kind = "drawing"
    return Example(f"{split}-{number}", segments, kind)


@pytest.fixture(scope="module")
def place(tmp_path_factory, config) -> pathlib.Path:
    """A folder with records, tokenizer, config file and preview."""
    folder = tmp_path_factory.mktemp("runs")
    splits = {
        "train": [example(n, "train") for n in range(12)],
        "validation": [example(n, "held-out") for n in range(3, 9)],
    }
    record.write_records(folder / "records", splits)
    tokens = config.model.tokens.__class__(260, 261, 262, 263)
    text.make_small_tokenizer(["a b it is what"], 264, tokens).save(folder / "tokenizer.json")
    side = dict(max_side=8, min_side=8)
    whole = edit(
        config,
        model__tokens=tokens,
        model__llm__vocab_size=264,
        data__train=(str(folder / "records"),),
        data__validation=(str(folder / "records"),),
        data__tokenizer=str(folder / "tokenizer.json"),
        data__vit_size=SizeLimits(stride=2, **side),
        data__vae_size=SizeLimits(stride=4, **side),
        data__max_example_tokens=64,
        run=RunConfig(
            steps=STEPS, log_every=1, save_every=5, validate_every=10, sample_every=STEPS, keep=2
        ),
    )
    values = json.dumps(overrides.to_dict(whole))
    (folder / "experiment.py").write_text(
        "import json\n"
        "from inset_jax.core.overrides import from_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_dict(json.loads({values!r})))\n"
    )
    (folder / "drawing.py").write_text(PREVIEW)
    return folder


def start(place: pathlib.Path, name: str, *flags: str, before: tuple[str, ...] = ()):
    command = [
        *before,
        sys.executable,
        "-m",
        "inset_jax.train",
        f"--config={place / 'experiment.py'}",
        f"--workdir={place / name}",
        "--preview=drawing:draw",
        *flags,
    ]
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{place}",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **settings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def interrupt(place: pathlib.Path, name: str, at: int, number: int) -> tuple[int, str, str]:
    """Starts a run and sends it a signal once it has reached a step."""
    process = start(place, name)
    reached = 0
    while reached < at and process.poll() is None:
        time.sleep(0.01)
        try:
            reached = max((r["step"] for r in metrics.read(place / name)), default=0)
        except (OSError, json.JSONDecodeError):
            continue  # being rewritten this very moment
    process.send_signal(number)
    return finish(process)


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
        {name: value for name, value in row.items() if name not in SPEED} for row in rows
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
    found = list((place / "exploding").glob("not_finite_*.json"))
    assert len(found) == 1
    told = json.loads(found[0].read_text())
    saved = store.steps(place / "exploding" / "checkpoints")
    assert saved[-1] == told["step"] - 1
    assert all(name.startswith("train-") for name in told["records"])
    assert f"step {saved[-1]} is the last checkpoint" in err
