"""Who a process is; what all know of one another; and how the others end when one is lost.

The processes are real ones: this file as a script.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from inset_jax.core import host, processes
from inset_jax.core.processes import Place
from inset_jax.core.simulated import several

FLAGS = {"coordinator": "host:80", "processes": "4", "process": "2"}


def test_process_without_flags_is_by_itself():
    assert processes.place({}, {"JAX_PLATFORMS": "cpu"}) is None
    assert processes.join(None) is None


def test_flags_and_environment_say_who_it_is():
    assert processes.place(FLAGS, {}) == Place("host:80", 4, 2)
    environment = {
        "JAX_COORDINATOR_ADDRESS": "host:80",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "0",
    }
    assert processes.place({"process": "2"}, environment) == Place("host:80", 4, 2)
    assert processes.place({"coordinator": "auto"}, {}).coordinator == processes.AUTO


def test_one_of_one_needs_nobody():
    assert processes.place({**FLAGS, "processes": "1", "process": "0"}, {}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"process": None}, r"--process is missing \(or JAX_PROCESS_ID\)"),
        ({"process": "4"}, "--process=4: expected 0 to 3 of --processes=4"),
        ({"process": "two"}, "whole numbers"),
        ({"coordinator": "host"}, "--coordinator=host: expected HOST:PORT of process 0"),
    ],
)
def test_half_an_answer_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        processes.place({**FLAGS, **changed}, {})


LOST_AFTER = 3  # seconds


def member(index: int, port: str, ending: str) -> None:
    """One of two processes: exchanges what there is to exchange, then ends in some way."""
    with processes.joined(Place(f"127.0.0.1:{port}", 2, index), LOST_AFTER):
        agreed = exchange(index)
        if ending == f"killed {index}":
            time.sleep(LOST_AFTER / 2)  # until the other knows this one
            os.kill(os.getpid(), signal.SIGKILL)
        if ending == f"failed {index}":
            raise ValueError("its own fault")
        if ending == f"terminated {index}":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LOST_AFTER)
            raise ValueError("the signal never came")
        while ending:
            agreed()
            time.sleep(0.05)


def exchange(index: int):
    """Tells what one of two processes sees of the other; returns what they go on to do together."""
    import jax
    import numpy as np

    from inset_jax.core import mesh as meshes
    from inset_jax.core.config import MeshConfig
    from inset_jax.train.signals import Agreement, Asked

    mesh = meshes.build(MeshConfig())
    with jax.set_mesh(mesh):
        agreed = Agreement(mesh)
        asks = lambda step: Asked(signal=15 * (index == 1 and step == 1), save=index == step == 0)
        wishes = [agreed(asks(step)) for step in range(4)]
        processes.settle("both failed", f"bad {index}")
        processes.settle("one failed", "bad" * index)
        stuck = ""
        if index:  # the other never comes to the end of it
            try:
                processes.settle("stuck", "bad", 0.5)
            except ValueError as error:
                stuck = str(error)
        split = meshes.put(np.arange(8.0), meshes.sharding(mesh, ("pack",), (8,)))
        told = {
            "share": meshes.share(mesh, 8),
            "wishes": wishes,
            "stuck": stuck,
            "gathered": processes.gather(["a", "long one"][index]),
            "split": [shard.data.tolist() for shard in split.addressable_shards],
            "whole": np.asarray(meshes.on_this_host(split, mesh)[1]).tolist(),
        }
        print("TOLD", json.dumps(told), flush=True)
    return lambda: agreed(asks(9))


def pair(ending: str = "") -> list[tuple[int, dict, str, float]]:
    """Runs two processes of two devices; returns status, what it told, errors, seconds, of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = pathlib.Path(__file__).parents[2]
    began, started = time.monotonic(), []
    for index in (0, 1):
        started.append(
            subprocess.Popen(
                [sys.executable, __file__, str(index), port, ending],
                env=os.environ | several(2) | {"PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = []
    for process in started:
        out, err = process.communicate(timeout=120)
        told = [line for line in out.splitlines() if line.startswith("TOLD ")]
        seconds = time.monotonic() - began
        ended.append((process.returncode, json.loads(told[0][5:]) if told else {}, err, seconds))
    return ended


def test_processes_exchange_shares_wishes_and_values():
    for index, (status, told, err, _) in enumerate(pair()):
        assert status == 0, err
        assert told["share"] == [index, 2, [4 * index + n for n in range(4)], True]
        # one step later, in both: a save that process 0 wants, a signal that process 1 got
        assert told["wishes"] == [[0, 0, 0], [0, 1, 0], [15, 0, 0], [0, 0, 0]]
        assert told["gathered"] == ["a", "long one"]
        waits = "bad (process 0 is still waiting for this one)"
        assert told["stuck"] == (waits if index else "")
        assert sorted(n for part in told["split"] for n in part) == [
            4 * index + n for n in range(4)
        ]
        assert told["whole"] == list(range(8))


@pytest.mark.slow  # bounds in seconds, on a machine that others may use
@pytest.mark.parametrize("gone", [0, 1])
def test_killed_process_is_named_by_the_other_which_ends(gone):
    ended = pair(f"killed {gone}")
    assert ended[gone][0] == -signal.SIGKILL
    status, told, err, seconds = ended[1 - gone]
    assert told, err
    assert status == processes.LOST, err
    assert f"process {gone} of 2 (host {socket.gethostname()}, pid " in err
    assert seconds < 60


@pytest.mark.slow
def test_error_of_one_process_ends_the_other_with_its_message():
    ended = pair("failed 1")
    assert [status for status, *_ in ended] == [1, 1]
    assert "process 1 of 2" in ended[0][2]
    assert "failed: ValueError: its own fault" in ended[0][2]
    assert "error: process 1: its own fault" in ended[1][2]


@pytest.mark.slow
def test_sigterm_reaches_a_process_among_others_and_ends_them_all():
    ended = pair("terminated 1")
    assert [status for status, *_ in ended] == [1, 128 + signal.SIGTERM]
    assert "process 1 of 2" in ended[0][2] and "failed: Terminated" in ended[0][2]
    assert "process 1: interrupted" in ended[1][2]


if __name__ == "__main__":
    with host.raising_sigterm():  # before it joins, as commands do
        member(int(sys.argv[1]), sys.argv[2], sys.argv[3])
