"""Runs of several processes: the numbers of one process, and an end when one is lost."""

import json
import pathlib
import shutil
import signal
import socket
import time
import types
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint import damaged, store
from inset_jax.core.simulated import several
from inset_jax.train import health, metrics
from tests.checkpoint.test_damaged import harm
from tests.train.runs import fill_weights, finish, prepare, start

pytestmark = pytest.mark.slow  # whole runs, in pairs

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
COMMON = ("--config.data.packs=4", "--config.run.sample_every=0", "--config.run.validate_every=4")


@pytest.fixture(scope="module")
def place(tmp_path_factory, config) -> pathlib.Path:
    folder = prepare(tmp_path_factory.mktemp("processes"), config)
    fill_weights(folder)
    return folder


def flags(place: pathlib.Path, *more: str) -> list[str]:
    return [*COMMON, f"--config.run.init_from={place / 'weights'}", *more]


def together(
    place: pathlib.Path,
    name: str,
    *more: str,
    count: int = 2,
    devices: int = 2,
    before: Mapping[int, tuple[str, ...]] = types.MappingProxyType({}),
):
    """Starts the processes of one run; `before` has the words that start some of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = several(devices, QUICK)
    named = lambda n: (f"--coordinator={address}", f"--processes={count}", f"--process={n}")
    return [
        start(
            *(place, name, *flags(place, *more), *named(n)),
            before=before.get(n, ()),
            environment=environment,
        )
        for n in range(count)
    ]


def losses(folder: pathlib.Path, phase: str = "train") -> np.ndarray:
    rows = [row for row in metrics.read(folder) if row["phase"] == phase]
    names = ("loss", "flow", "cross_entropy", "grad_norm", "flow/drawing")
    names = names if phase == "train" else ("flow/drawing", "cross_entropy/understanding")
    return np.array([[row.get(name, 0.0) for name in names] for row in rows])


@pytest.fixture(scope="module")
def one(place) -> pathlib.Path:
    given = flags(place, "--config.run.steps=12", "--config.run.save_every=6")
    status, _, err = finish(start(place, "one", *given, environment=several(4, QUICK)))
    assert status == 0, err
    return place / "one"


@pytest.fixture(scope="module")
def two(place) -> tuple[pathlib.Path, list]:
    """Two processes that stop together after six of twelve steps."""
    more = ("--config.run.steps=6", "--config.run.save_every=6")
    ended = [finish(process) for process in together(place, "two", *more)]
    return place / "two", ended


def test_two_processes_have_the_losses_of_one(one, two):
    folder, ended = two
    for status, _, err in ended:
        assert status == 0, err
    assert len(losses(folder)) == 6
    np.testing.assert_allclose(losses(folder), losses(one)[:6], rtol=1e-5)
    held_out = losses(folder, "validation")
    np.testing.assert_allclose(held_out[0], losses(one, "validation")[0], rtol=1e-5)


def test_process_0_speaks_for_all(two):
    (_, first, _), (_, second, _) = two[1]
    assert "step 6/6" in first
    assert "4 cpu devices" in first
    assert "step" not in second


def test_checkpoint_of_two_processes_goes_on_in_one(one, two, place):
    folder, _ = two
    assert store.steps(folder / "checkpoints") == [6]
    given = flags(place, "--config.run.steps=12", "--config.run.save_every=6")
    status, out, err = finish(start(place, "two", *given, environment=several(4, QUICK)))
    assert status == 0, err
    assert "step 6 of" in out
    np.testing.assert_allclose(losses(folder), losses(one), rtol=1e-5)


def test_two_processes_draw_on_the_way_what_one_draws(place):
    more = (
        *("--config.run.steps=2", "--config.run.save_every=2", "--config.run.sample_every=2"),
        *("--config.sample.num_timesteps=3", "--preview=inset_jax.sample.preview:during_training"),
    )
    ended = [finish(process) for process in together(place, "drawing_two", *more)]
    alone = start(place, "drawing_one", *flags(place, *more), environment=several(4, QUICK))
    for status, _, err in [*ended, finish(alone)]:
        assert status == 0, err
    assert "step 2: drew" in ended[0][1]
    name = pathlib.Path("previews", "00000002.png")
    one, two = (np.asarray(Image.open(place / f"drawing_{n}" / name), int) for n in ("one", "two"))
    assert one.shape == two.shape and np.ptp(one)
    assert np.abs(one - two).max() <= 1  # grey levels are cut off, not rounded


def test_damage_that_one_process_sees_is_known_to_all(one, place):
    # each process compares its share of the files
    shutil.copytree(one, place / "harmed")
    harm(place / "harmed" / "checkpoints" / "12")
    more = ("--config.run.steps=12", "--config.run.save_every=6")
    ended = [
        finish(process)
        for process in together(
            place, "harmed", *more, "--config.run.on_damaged_checkpoint=previous"
        )
    ]
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "step 12 is damaged" in ended[0][1]
    assert (place / "harmed" / damaged.ASIDE / "12").is_dir()
    np.testing.assert_allclose(losses(place / "harmed"), losses(one), rtol=1e-5)


def wait_for(folder: pathlib.Path, step: int) -> None:
    until = time.monotonic() + 120
    while max((row["step"] for row in metrics.read(folder)), default=0) < step:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_signal_to_any_process_saves_and_stops_all_at_one_step(place):
    more = ("--config.run.steps=100000", "--config.run.save_every=100000")
    by_clock = ("--config.run.save_minutes=0.02", "--config.run.profile_steps=(2, 3)")
    processes = together(place, "stopped", *more, *by_clock)
    saved = place / "stopped" / "checkpoints"
    until = time.monotonic() + 120
    while not (saved.is_dir() and store.steps(saved)):  # overdue by the clock, for both
        assert time.monotonic() < until
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    ended = [finish(process) for process in processes]
    assert [status for status, *_ in ended] == [143, 143], ended
    for number in (0, 1):
        beat = json.loads((place / "stopped" / health.FOLDER / f"{number}.json").read_text())
        assert beat["step"] == store.latest(saved)
        assert any((place / "stopped" / "profile" / "2" / str(number)).rglob("*.xplane.pb"))
    last = [row for row in metrics.read(place / "stopped") if "steps_per_second" in row][-1]
    assert last["hosts/skew"] >= 0 and last["hosts/slowest"] in (0, 1)
    (saved,) = store.steps(place / "stopped" / "checkpoints")[-1:]
    assert f"stopped by SIGTERM at step {saved}, saved" in ended[0][1]


@pytest.mark.parametrize("gone", [1, 0])
def test_killed_process_is_named_and_the_others_end(place, gone):
    name = f"killed_{gone}"
    processes = together(place, name, "--config.run.steps=100000", "--lost_after=4")
    wait_for(place / name, 3)
    processes[gone].kill()
    began = time.monotonic()
    status, _, err = finish(processes[1 - gone])
    assert time.monotonic() - began < 30
    finish(processes[gone])
    assert status == 75, err
    assert f"process {gone} of 2 (host" in err
