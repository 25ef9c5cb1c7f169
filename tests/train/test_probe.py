"""Which chip is slow: all make the same products, between two steps."""

import os
import subprocess
import sys

import pytest

from inset_jax.core.config import RunConfig, edit
from inset_jax.core.mesh import Share
from inset_jax.core.simulated import several
from inset_jax.train import metrics, probe
from inset_jax.train.journal import Journal
from inset_jax.train.stopwatch import Stopwatch

EVEN = [
    {"host": "a", "seconds": {"0": 1.0, "1": 1.02}},
    {"host": "b", "seconds": {"2": 0.99, "3": 1.01}},
]


def test_every_device_of_the_process_is_timed():
    found = probe.Probe().own()
    assert list(found["seconds"]) == ["0"] and found["seconds"]["0"] > 0


def test_devices_are_timed_inside_the_mesh_of_a_run():
    code = (
        "import jax\n"
        "from inset_jax.core import mesh\n"
        "from inset_jax.core.config import MeshConfig\n"
        "from inset_jax.train import probe\n"
        "with jax.set_mesh(mesh.build(MeshConfig(fsdp=2))):\n"
        "    print(sorted(probe.Probe().own()['seconds']))\n"
    )
    environment = os.environ | several(2)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['0', '1']", done.stderr


def test_slow_device_is_named_with_its_process_and_host():
    values, told = probe.figures(EVEN)
    assert (values["chips/slowest"], told) == (1, "")
    assert values["chips/skew"] == pytest.approx(1.02 / 1.005 - 1)
    slow = [EVEN[0], {"host": "b", "seconds": {"2": 1.5, "3": 1.01}}]
    values, told = probe.figures(slow)
    assert values["chips/slowest"] == 2 and values["chips/skew"] > 0.4
    assert "device 2 (process 1, b) takes 1.48 times as long" in told


def test_run_writes_what_the_chips_took(tmp_path, config, monkeypatch, capsys):
    config = edit(config, run=RunConfig(steps=2))
    journal = Journal(config, tmp_path, Share(0, 1, (0,), True), Stopwatch(), 0)
    journal.chips(1)  # devices of a CPU are not compared
    slow = {"host": "a", "seconds": {"0": 1.0, "1": 1.0, "2": 2.0}}
    monkeypatch.setattr(probe.Probe, "own", lambda self: slow)
    monkeypatch.setattr("jax.device_count", lambda: 3)
    journal.probe = probe.Probe()
    journal.chips(2)
    journal.close()
    assert metrics.read(tmp_path) == [
        {"step": 2, "phase": "chips", "chips/skew": 1.0, "chips/slowest": 2.0}
    ]
    assert "device 2 (process 0, a) takes 2.00 times as long" in capsys.readouterr().out
