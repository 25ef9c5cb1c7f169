import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from inset_jax import generate
from inset_jax.checkpoint import (
    bagel,
    convert,
    describe,
    finish,
    load,
    names,
    place,
    provenance,
    store,
    streaming,
    to_bagel,
    unfinished,
)
from inset_jax.checkpoint.errors import Unwritable
from inset_jax.checkpoint.place import Place
from tests.checkpoint.folders import FOLDER, contents, inward, outward, same

ROOT = pathlib.Path(__file__).parents[2]
SLOWLY = """
import sys, time
from inset_jax.checkpoint import place, streaming, to_bagel, unfinished
from tests.checkpoint.folders import inward, outward
unfinished.FLUSH_SECONDS = 0.02
slow = lambda function: lambda *args: (time.sleep(0.004), function(*args))[1]
streaming._write = slow(streaming._write)
to_bagel._write_all = slow(to_bagel._write_all)
{"in": inward, "out": outward}[sys.argv[1]](sys.argv[2], sys.argv[3])
print("ended", flush=True)
"""


def killed(way, source, target, enough):
    """Runs a conversion in a process of its own and kills it when `enough` says so."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, way, str(source), str(target)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while not enough():
        assert child.poll() is None, "the child ended before it was killed"
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and "ended" not in child.stdout.read()


def journal(target):
    """Returns the tensors that the journal of an unfinished folder lists."""
    found = {}
    for path in sorted((target / "unfinished").glob("*.json")):
        found |= json.loads(path.read_text())
    return {name: entry for name, entry in found.items() if not name.startswith("file ")}


def refused_by_every_reader(target):
    readers = [
        load.load_any,
        load.read_config,
        load.locate,
        store.steps,
        store.read_meta,
        store.Store,
        bagel.is_bagel,
        bagel.config_from_bagel,
        convert.load_bagel,
        provenance.ancestry,
        lambda path: outward(path, path / "no"),
        lambda path: store.restore(path, {}),
    ]
    for read in readers:
        with pytest.raises(ValueError, match="is unfinished: a conversion was interrupted"):
            read(target)
    return True


def test_a_killed_conversion_is_refused_and_goes_on_where_it_was(tmp_path, tiny, capsys):
    target = tmp_path / "orbax"
    killed("in", FOLDER, target, lambda: len(list(target.glob("unfinished/0*.json"))) > 3)
    assert refused_by_every_reader(target)
    flags = ["--checkpoint", str(target), "--prompt", "A cat", "--out", str(tmp_path / "x.png")]
    assert generate.main(flags) == 1 and "is unfinished" in capsys.readouterr().err
    done = journal(target)
    assert 3 < len(done) < 287
    assert describe.describe(target)["tensors_done"] == len(done)
    item = target / finish.TEMPORARY / "params"
    files = {key: (item / key).stat().st_mtime_ns for files in done.values() for key, *_ in files}
    report = inward(FOLDER, target)
    assert report["resumed"] >= len(done)
    item = target / "0" / "params"
    assert all((item / key).stat().st_mtime_ns == when for key, when in files.items())
    assert same(names.flatten(load.load_any(target).params), names.flatten(tiny[1]))
    assert {path.name for path in target.iterdir()} == {"0", "bagel"}


def test_a_killed_way_back_is_refused_and_goes_on_where_it_was(tmp_path, converted, monkeypatch):
    target = tmp_path / "back"
    killed("out", converted, target, lambda: len(list(target.glob("unfinished/0*.json"))) > 3)
    assert refused_by_every_reader(target)
    assert not list(target.glob("*.safetensors"))  # for BAGEL's own reader: under another name
    done = journal(target)
    assert 3 < len(done) < 287
    written = []
    real = to_bagel._write_all
    monkeypatch.setattr(
        to_bagel, "_write_all", lambda *args: (written.append(args[2]), real(*args))
    )
    report = outward(converted, target)
    assert report["resumed"] >= len(done)
    assert len(written) == 287 - len([name for name in done if name in report_names(converted)])
    assert contents(target).items() >= contents(FOLDER).items()


def report_names(converted):
    from inset_jax.checkpoint.stored import Checkpoint

    return set(Checkpoint(converted))


class Interrupted(Exception):
    pass


def interrupting(monkeypatch, owner, name, call=1):
    """Makes the n-th call of a function end the work at once."""
    calls, real = [], getattr(owner, name)

    def broken(*args, **more):
        calls.append(args)
        if len(calls) == call:
            raise Interrupted
        return real(*args, **more)

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize(
    "owner, name, call",
    [
        (unfinished.Journal, "_take_lock", 1),  # the marker alone
        (streaming, "_write", 1),
        (streaming, "_write", 200),
        (finish, "_describe_items", 1),  # all parameters, nothing around them
        (os, "rename", 1),  # everything but the name
        (unfinished.Journal, "close", 1),  # everything but the marker
        (place.Place, "remove", 2),  # the marker without its journal
    ],
)
def test_no_moment_is_a_bad_one(tmp_path, tiny, monkeypatch, owner, name, call):
    target = tmp_path / "orbax"
    with monkeypatch.context() as patch:
        interrupting(patch, owner, name, call)
        with pytest.raises(Interrupted):
            inward(FOLDER, target, jobs=1)
    assert refused_by_every_reader(target)
    inward(FOLDER, target)
    assert {path.name for path in target.iterdir()} == {"0", "bagel"}
    assert same(names.flatten(load.load_any(target).params), names.flatten(tiny[1]))


@pytest.mark.parametrize(
    "owner, name, call",
    [
        (to_bagel, "_reserve", 1),
        (to_bagel, "_write_all", 100),
        (os, "rename", 1),
        (os, "rename", 2),  # one file has its name, the other not
        (unfinished.Journal, "close", 1),
        (place.Place, "remove", 2),
    ],
)
def test_no_moment_of_the_way_back_is_a_bad_one(
    tmp_path, converted, monkeypatch, owner, name, call
):
    target = tmp_path / "back"
    with monkeypatch.context() as patch:
        interrupting(patch, owner, name, call)
        with pytest.raises(Interrupted):
            outward(converted, target, jobs=1)
    assert refused_by_every_reader(target)
    outward(converted, target)
    found = contents(target)
    assert set(found) == {*contents(FOLDER), provenance.KEPT}
    assert found.items() >= contents(FOLDER).items()


def test_other_work_does_not_go_on_with_what_is_there(tmp_path, monkeypatch, folder):
    target = tmp_path / "orbax"
    with monkeypatch.context() as patch:
        interrupting(patch, streaming, "_write", 5)
        with pytest.raises(Interrupted):
            inward(folder, target, jobs=1)
    with pytest.raises(Unwritable, match=r"unfinished result of other work \(different: options"):
        inward(folder, target, dtype="bfloat16")
    inward(folder, target, jobs=3)  # workers make no difference


def test_two_processes_do_not_write_the_same_place(tmp_path):
    first = unfinished.Journal(Place(tmp_path / "x"), {"a": 1})
    with pytest.raises(Unwritable, match="another process writes here"):
        unfinished.Journal(Place(tmp_path / "x"), {"a": 1})
    first.release()
    unfinished.Journal(Place(tmp_path / "x"), {"a": 1}).close()
    assert not list((tmp_path / "x").iterdir())


def test_what_is_in_the_journal_was_synced_before(tmp_path):
    order = []
    target = Place(tmp_path / "x")
    work = unfinished.Journal(target, {}, lambda: order.append(len(target.keys("unfinished/0"))))
    work.add("one", [1])
    work.flush()
    assert order == [0] and len(target.keys("unfinished/0")) == 1
    work.release()
    again = unfinished.Journal(target, {})
    assert again.done == {"one": [1]} and again.found == 1
    again.release()


def test_a_url_that_is_unfinished_is_refused(tmp_path, monkeypatch):
    target = f"memory://{tmp_path.name}/x"
    with monkeypatch.context() as patch:
        interrupting(patch, finish, "_describe_items")
        with pytest.raises(Interrupted):
            inward(FOLDER, target)
    with pytest.raises(ValueError, match="is unfinished"):
        outward(target, tmp_path / "no")
    inward(FOLDER, target)
    outward(target, tmp_path / "back")
    assert contents(tmp_path / "back").items() >= contents(FOLDER).items()


def test_training_refuses_an_unfinished_start(tmp_path, monkeypatch):
    from inset_jax.train import start

    target = tmp_path / "orbax"
    with monkeypatch.context() as patch:
        interrupting(patch, streaming, "_write", 5)
        with pytest.raises(Interrupted):
            inward(FOLDER, target, jobs=1)
    with pytest.raises(ValueError, match="is unfinished"):
        start.begin(None, None, pathlib.Path(target))
