"""Runs of several processes with faults at bad moments: in the middle of a save, while drawing."""

import re
import time

import pytest

from inset_jax.checkpoint import store
from inset_jax.train import health, metrics
from tests.train.runs import fill_weights, finish, prepare
from tests.train.test_processes import together

pytestmark = pytest.mark.slow  # whole runs, four processes at a time
LOST, COUNT = 2, 4
LOST_AFTER = 4  # seconds

# a module for --preview, which every process of a run imports before it begins: in one of them the
# files of one checkpoint are never all written
HANGING = """
import pathlib, sys, time
import orbax.checkpoint as ocp

class Never:
    def result(self, timeout=None):
        pathlib.Path(__file__).with_name("writing").touch()
        time.sleep(1000)

original = ocp.PyTreeCheckpointHandler.async_save

async def async_save(self, directory, *args, **options):
    futures = await original(self, directory, *args, **options)
    return [*(futures or ()), Never()] if "/8." in f"/{directory}" else futures

if "--process=2" in sys.argv:
    ocp.PyTreeCheckpointHandler.async_save = async_save

def draw(config, params, step, folder):
    return []
"""

# the disk of one process is full when it writes the checkpoint of step 8
FULL = """
import pathlib, sys, time
import orbax.checkpoint as ocp

class Full:
    def result(self, timeout=None):
        pathlib.Path(__file__).with_name("full_at").write_text(str(time.time()))
        raise OSError(28, "No space left on device")

original = ocp.PyTreeCheckpointHandler.async_save

async def async_save(self, directory, *args, **options):
    futures = await original(self, directory, *args, **options)
    return [*(futures or ()), Full()] if "/8." in f"/{directory}" else futures

if "--process=%d" in sys.argv:
    ocp.PyTreeCheckpointHandler.async_save = async_save

def draw(config, params, step, folder):
    return []
"""

FAILING = """
import jax

def draw(config, params, step, folder):
    if step == 1:
        raise ValueError("nothing to draw")
    if step == 2 and jax.process_index() == 1:
        raise OSError("no such file")
    return []
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, config):
    folder = prepare(tmp_path_factory.mktemp("lost"), config)
    fill_weights(folder)
    (folder / "hanging.py").write_text(HANGING)
    (folder / "failing.py").write_text(FAILING)
    for number in (0, 1):
        (folder / f"full_{number}.py").write_text(FULL % number)
    return folder


def run(place, name, *flags, count=COUNT):
    quick = ("--config.run.save_every=4", f"--lost_after={LOST_AFTER}")
    return together(place, name, *quick, *flags, count=count, devices=1)


def test_kill_in_the_middle_of_a_save_is_named_and_the_restart_goes_on(place, capsys):
    folder, flags = place / "killed", ("--config.run.sample_every=100000",)
    processes = run(place, "killed", *flags, "--config.run.steps=100000", "--preview=hanging:draw")
    until = time.monotonic() + 300
    while not (place / "writing").exists():
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    assert list((folder / "checkpoints").glob("8.*tmp*"))
    processes[LOST].kill()
    began = time.monotonic()
    ended = [finish(process) for process in processes]
    lasted = time.monotonic() - began
    for number, (status, _, err) in enumerate(ended):
        if number != LOST:
            assert status == 75, err
            assert f"process {LOST} of {COUNT} (host" in err
    assert lasted < 60
    assert store.steps(folder / "checkpoints") == [4]

    began = time.monotonic()
    ended = [
        finish(one) for one in run(place, "killed", *flags, "--config.run.steps=9", count=COUNT)
    ]
    assert [status for status, *_ in ended] == [0] * COUNT, ended
    out = ended[0][1]
    assert "step 4 of" in out
    assert [row["step"] for row in metrics.read(folder) if row["phase"] == "train"] == [
        *range(1, 10)
    ]
    assert store.steps(folder / "checkpoints")[-1] == 9
    first = re.search(r"first step after (.*)", out)[1]
    with capsys.disabled():
        print(f"\nthe others ended {lasted:.1f} s after the kill; first step again after {first}")


@pytest.mark.parametrize("full", [1, 0])
def test_full_disk_of_one_process_is_said_and_ends_all_soon(place, full, capsys):
    # Orbax lets all of them wait for one another for ten minutes
    flags = (f"--preview=full_{full}:draw", "--config.run.sample_every=100000")
    processes = run(place, f"full_{full}", *flags, "--config.run.steps=100000", count=2)
    ended = [finish(process) for process in processes]
    lasted = time.time() - float((place / "full_at").read_text())
    assert [status for status, *_ in ended] == [1, 1], ended
    said = "step 8 could not be saved (No space left on device); step 4 is intact"
    own, other = ended[full][2], ended[1 - full][2]
    assert re.search(f"^error: process {full}: .*{re.escape(said)}$", own, re.MULTILINE)
    assert re.search(
        rf"^error: process {full} of 2 \(host .*{re.escape(said)}$", other, re.MULTILINE
    )
    assert lasted < 60
    assert store.steps(place / f"full_{full}" / "checkpoints") == [4]
    with capsys.disabled():
        print(f"\nboth had ended {lasted:.1f} s after the disk of process {full} was full")


def test_pictures_that_fail_leave_the_run_and_its_processes_in_step(place):
    flags = ("--config.run.steps=3", "--config.run.sample_every=1", "--preview=failing:draw")
    ended = [finish(process) for process in run(place, "failing", *flags, count=2)]
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "step 1: no picture: nothing to draw" in ended[0][1]
    assert "step 2: no picture: no such file" in ended[1][2]
    assert "step 2: drew" in ended[0][1] and "step 3: drew" in ended[0][1]
    assert [row["step"] for row in metrics.read(place / "failing") if row["phase"] == "train"] == [
        1,
        2,
        3,
    ]


def test_fewer_processes_leave_no_sign_of_life_of_those_that_are_gone(place):
    # one goes on with what two have trained
    folder = place / "failing"
    assert {path.name for path in (folder / health.FOLDER).glob("*.json")} == {"0.json", "1.json"}
    flags = ("--config.run.steps=4", "--config.run.sample_every=0")
    (status, out, err) = finish(run(place, "failing", *flags, count=1)[0])
    assert status == 0, err
    assert "step 3 of" in out
    assert {path.name for path in (folder / health.FOLDER).glob("*.json")} == {"0.json"}
