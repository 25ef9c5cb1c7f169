"""Worker processes that are killed for real: nothing hangs, nothing is lost, nothing lives on."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import connection
from pathlib import Path

import pytest

from inset_jax.data import pool
from inset_jax.data.build import build_records
from inset_jax.data.record import Example, Segment, open_records
from inset_jax.data.sources.base import Part, Row
from tests.data.test_watch import is_alive

LIMIT = 60  # seconds until a test takes something to hang


@dataclasses.dataclass(frozen=True)
class Texts:
    """A source of 12 texts. Row 7 waits while there is a file "wait"; a process that begins rows 4
    to 7 while there is one named "die" dies before the first."""

    folder: str

    def parts(self, most):
        return [Part(f"from {n}", (n, n + most), str(n), most) for n in range(0, 12, most)]

    def rows(self, part):
        if part.place[0] == 4 and Path(self.folder, "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        for number in range(*part.place):
            yield Row(f"row {number}", functools.partial(self.make, number), str(number))

    def make(self, number):
        if number == 7:
            Path(self.folder, "begun").write_text(str(os.getpid()))
            until(lambda: not Path(self.folder, "wait").exists())
        return [("train", Example(f"n{number}", (Segment("text", text="so", loss=True),)))]


def until(happens):
    ends = time.monotonic() + LIMIT
    while not happens():
        assert time.monotonic() < ends, "hangs"
        time.sleep(0.02)


def process_at_row_7(folder) -> int:
    begun = folder / "begun"
    until(lambda: begun.exists() and begun.read_text())
    return int(begun.read_text())


def ids(folder):
    return [example.id for example in open_records(folder, "train")]


def length_or_death(folder, word):
    if word == "die" or (word == "die once" and not (folder / "dead").exists()):
        (folder / "dead").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "fail":
        raise ValueError(f"{word}: no such word")
    return len(word)


def made(folder, words):
    work = functools.partial(length_or_death, folder)
    return list(pool.each(work, words, 2, "measuring {!r}".format))


def test_results_come_in_order_and_one_death_costs_nothing(tmp_path):
    words = ["a", "die once", "bc", "def"]
    assert made(tmp_path, words) == [1, 8, 2, 3]
    assert (tmp_path / "dead").exists()


def test_a_second_death_ends_the_work_and_says_what_was_done(tmp_path):
    with pytest.raises(ChildProcessError, match=r"measuring 'die': process \d+ died .*SIGKILL"):
        made(tmp_path, ["a", "die", "bc"])


def test_errors_of_the_function_are_raised_here(tmp_path):
    with pytest.raises(ValueError, match="no such word"):
        made(tmp_path, ["a", "fail"])


def test_what_cannot_be_sent_back_is_an_error_and_no_hang():
    with pytest.raises(RuntimeError, match="pickle"):
        list(pool.each(_make_lock, [1], 1, str))


def _make_lock(_):
    return threading.Lock()


class Odd(Exception):
    """Is written by pickle, and cannot be read."""

    def __init__(self, a, b):
        super().__init__(a)


def _raise_odd(_):
    raise Odd("what was wrong", 2)


def test_errors_that_cannot_be_sent_back_are_told():
    with pytest.raises(RuntimeError, match="what was wrong"):
        list(pool.each(_raise_odd, [1], 1, str))


def _long_answer(folder):
    (folder / "begun").write_text(str(os.getpid()))
    return bytes(50_000_000)  # more than a pipe holds: it is sent while somebody reads


def test_a_worker_that_dies_half_way_through_its_answer_has_died(tmp_path):
    with pool.Pool(_long_answer, 1) as one:
        one.start("long", tmp_path)
        worker = tmp_path / "begun"
        until(lambda: worker.exists() and worker.read_text())
        until(lambda: connection.wait(list(one._busy), 0))  # the answer has begun to come
        os.kill(int(worker.read_text()), signal.SIGKILL)
        key, result = one.wait()
    assert key == "long" and isinstance(result, pool.Died) and result.status == -signal.SIGKILL


def test_a_killed_worker_of_a_build_is_replaced(tmp_path, caplog):
    (tmp_path / "wait").touch()
    built = []
    build = functools.partial(build_records, Texts(str(tmp_path)), tmp_path / "set", 4, workers=2)
    thread = threading.Thread(target=lambda: built.append(build()))
    thread.start()
    os.kill(process_at_row_7(tmp_path), signal.SIGKILL)
    (tmp_path / "wait").unlink()
    thread.join(LIMIT)
    assert built and not built[0].rejects
    assert ids(tmp_path / "set") == [f"n{n}" for n in range(12)]
    assert "making shard 1 (from 4 ...): process" in caplog.text
    assert "killed by SIGKILL) at row 3; tried again" in caplog.text


def test_workers_that_keep_dying_end_a_build_which_can_go_on(tmp_path):
    (tmp_path / "die").touch()
    words = (
        r"set: making shard 1 \(from 4 ...\): process \d+ died .* before its first row, the seco"
    )
    with pytest.raises(ChildProcessError, match=words):
        build_records(Texts(str(tmp_path)), tmp_path / "set", 4, workers=2)
    (tmp_path / "die").unlink()
    built = build_records(Texts(str(tmp_path)), tmp_path / "set", 4, workers=2)
    assert (built.made, built.kept) == (1, 2)
    assert ids(tmp_path / "set") == [f"n{n}" for n in range(12)]


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.data.test_pool import Texts, build_records
build_records(Texts(sys.argv[2]), sys.argv[2] + "/set", 4, workers=2)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_end_when_the_build_is_killed_and_the_next_one_goes_on(tmp_path):
    (tmp_path / "wait").touch()
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[2]), str(tmp_path)]
    with subprocess.Popen(command) as process:
        worker = process_at_row_7(tmp_path)
        notes = tmp_path / "set.incomplete" / "build"
        until(lambda: len(list(notes.glob("0*.json"))) == 2)
        process.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(worker))
    (tmp_path / "wait").unlink()
    built = build_records(Texts(str(tmp_path)), tmp_path / "set", 4)
    assert (built.made, built.kept) == (1, 2)
    assert ids(tmp_path / "set") == [f"n{n}" for n in range(12)]
