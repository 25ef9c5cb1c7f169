"""The table that shows a step to be the same on any layout."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from inset_jax.train import equality
from inset_jax.train.equality import Layout, Row
from tools import equality as tool


def test_table_says_how_far_each_layout_is_from_one_device():
    one = Row(Layout("one", 1, 1, {}), 1.0, 0.0, 0.0, "a", 3, 1.0)
    two = Row(Layout("two", 2, 4, {"dcn": 2, "fsdp": 4}), 0.25, 2e-7, 2e-5, "b/kernel", 3, 1.0)
    assert equality.table([one, two])[2:] == [
        "| 1 x 1 | one device | 1/1 | 0.0e+00 | 0 |",
        "| 2 x 4 | dcn 2 x fsdp 4 | 1/4 | 2.0e-07 | 2.0e-05 (`b/kernel`) |",
    ]
    assert one.equal and not two.equal


def test_arrays_are_compared_by_their_largest_number(monkeypatch, tmp_path):
    losses = dict.fromkeys(equality.LOSSES, np.float32(2))
    key, query = (f"vit/layers/attention/{name}/bias" for name in ("key", "query"))
    arrays = {
        "one": {"a": np.array([4.0, 0.001]), key: np.array([1e-12]), query: np.array([1e-6])},
        "fsdp": {"a": np.array([4.0, 0.003]), key: np.array([3e-12]), query: np.array([1e-6])},
        "axes": {"a": np.array([4.0, np.nan]), key: np.array([1e-12]), query: np.array([1e-6])},
    }
    run = lambda layout, folder: np.savez(
        folder / f"{layout.name}.npz", **arrays[layout.name], **losses, share=1.0
    )
    monkeypatch.setattr(equality, "_run", run)
    config = equality.Config()
    one, other, broken = equality.compare(config, tmp_path, equality.LAYOUTS[:3])
    assert one.equal and one.gradient == 0 and one.arrays == 3
    assert (other.worst, other.gradient) == ("a", pytest.approx(0.002 / 4))
    assert broken.gradient == np.inf and not broken.equal
    losses["flow"] = np.float32(0)
    with pytest.raises(ValueError, match="nothing to learn in the packs: flow is 0"):
        next(equality.compare(config, tmp_path))


def test_layout_that_is_not_known_is_refused(tmp_path, capsys):
    assert tool.main(["--out", str(tmp_path), "--layouts", "one", "two"]) == 1
    assert "--layouts: no two; there are one, fsdp, axes" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_that_is_ended_ends_its_processes(number, tmp_path):
    work = (
        "import pathlib, sys; from inset_jax.train import equality as e; from tools import outcome;"
        "sys.exit(outcome.status(lambda: e._run(e.LAYOUTS[3], pathlib.Path(sys.argv[1]))))"
    )
    root, here = pathlib.Path(__file__).parents[2], str(tmp_path)
    command = subprocess.Popen([sys.executable, "-c", work, here], cwd=root, text=True)
    of_it = lambda: [
        path.parent.name
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.name != str(command.pid) and here in _words(path)
    ]
    until = time.monotonic() + 60
    while len(of_it()) < equality.LAYOUTS[3].processes:
        assert command.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    command.send_signal(number)
    assert command.wait(30) == 128 + number
    assert of_it() == []


def _words(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:  # ended this very moment
        return ""


@pytest.mark.slow  # eighteen processes
def test_losses_and_gradients_are_the_same_on_any_layout(tmp_path, capsys):
    assert tool.main(["--out", str(tmp_path)]) == 0, capsys.readouterr().out
    lines = (tmp_path / "equality.md").read_text().splitlines()
    assert len(lines) == 2 + len(equality.LAYOUTS)
