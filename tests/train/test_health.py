"""Signs of life: the heartbeat file, and the stacks of a process whose steps do not end."""

import json
import threading
import time

from inset_jax.train import journal
from inset_jax.train.health import FOLDER, Health

SOON = 0.02  # seconds between two looks


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(SOON)


def stuck_here(condition):
    until(condition)


def test_heartbeat_names_step_time_and_host(tmp_path):
    path = tmp_path / FOLDER / "3.json"
    began = time.time()
    with Health(tmp_path, 3, minutes=0, every=SOON) as health:
        health.beat(7)
        until(path.exists)
        told = json.loads(path.read_text())
        assert told["step"] == 7 and began <= told["time"] <= time.time()
        assert {"host", "pid"} <= set(told)
        health.beat(8)
    assert json.loads(path.read_text())["step"] == 8  # the last is written on the way out
    assert (tmp_path / FOLDER / "3.stacks").read_text() == ""
    assert not [t for t in threading.enumerate() if t.name == "health"]


def test_stacks_of_all_threads_are_written_when_no_step_ends(tmp_path, capfd):
    stacks = tmp_path / FOLDER / "0.stacks"
    with Health(tmp_path, 0, minutes=0.2 / 60, every=SOON) as health:
        health.beat(5)
        stuck_here(lambda: stacks.read_text().count("no step has come to its end") == 2)
    told = stacks.read_text()
    assert "after step 5, process 0" in told
    assert told.count("in stuck_here") == 2 and "Thread 0x" in told
    assert "in stuck_here" in capfd.readouterr().err


def test_watchdog_is_quiet_while_anything_comes_to_its_end(tmp_path):
    with Health(tmp_path, 0, minutes=0.5 / 60, every=SOON) as health:
        for _ in range(10):
            time.sleep(0.1)
            health.beat()
    assert (tmp_path / FOLDER / "0.stacks").read_text() == ""


def test_what_processes_have_left_that_are_no_more_is_trimmed(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name in ("0.json", "1.json", "3.json", "3.stacks"):
        (tmp_path / FOLDER / name).write_text("{}")
    lines = "".join(json.dumps({"step": step}) + "\n" for step in (2, 5))
    for name in (
        "bad_steps.jsonl",
        "bad_steps.1.jsonl",
        "bad_steps.3.jsonl",
        "bad_records.2.jsonl",
    ):
        (tmp_path / name).write_text(lines)
    journal.forget_gone(tmp_path, first=4, count=2)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"0.json", "1.json", "3.stacks"}
    steps = lambda name: [json.loads(x)["step"] for x in (tmp_path / name).read_text().splitlines()]
    assert steps("bad_steps.3.jsonl") == steps("bad_records.2.jsonl") == [2]
    assert steps("bad_steps.jsonl") == steps("bad_steps.1.jsonl") == [2, 5]  # their own affair
