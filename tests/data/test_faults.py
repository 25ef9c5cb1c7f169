"""Everything that can go wrong with records while a run reads them, tried."""

import dataclasses
import io
import os
import re
import shutil
import signal
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import edit
from inset_jax.data.loader import Loader
from inset_jax.data.record import open_records, write_records


def ids(loader: Loader, count: int) -> list[list[list[str]]]:
    """The ids of the next batches, by pack."""
    return [
        [[name for name, _ in pack] for pack in batch.examples]
        for batch in (next(loader) for _ in range(count))
    ]


def planned(loader: Loader, count: int) -> list[list[list[str]]]:
    """The ids that the plan has for batches 0, 1, ... of two packs."""
    name = lambda draw: loader.plan.indexes[0].ids[draw.example]
    return [[[name(d) for d in loader.plan.pack(2 * n + k)] for k in (0, 1)] for n in range(count)]


def rewrite(world, folder, change) -> str:
    records = open_records(world / "records")
    write_records(folder, {"train": (change(records[n]) for n in range(len(records)))})
    return str(folder)


def with_image(example, data: bytes):
    """Puts other bytes into every picture; sizes stay as they were recorded."""
    segments = (dataclasses.replace(s, image=data) if s.image else s for s in example.segments)
    return dataclasses.replace(example, segments=tuple(segments))


def check_replaced(loader: Loader, bad: set[str], count: int = 8) -> None:
    """Bad records are replaced or leave a gap, as their faults say; nothing else changes."""
    expected = planned(loader, count)
    found = ids(loader, count)
    faults = iter(loader.faults)
    assert loader.faults
    for wants, gets in zip(expected, found, strict=True):
        for pack, own in zip(wants, gets, strict=True):
            rest = iter(own)
            for name in pack:
                if name not in bad:
                    assert next(rest) == name
                    continue
                fault = next(faults)
                assert fault.example == name and fault.replacement not in bad
                assert not fault.replacement or next(rest) == fault.replacement
            assert not list(rest)
    assert not list(faults)


def bomb() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_an_image_bomb_is_a_bad_record(world, config, tmp_path):
    spoil = lambda e: with_image(e, bomb()) if e.id == "x4" else e
    config = edit(config, data__train=(rewrite(world, tmp_path / "r", spoil),))
    with pytest.raises(ValueError, match=r"x4: image of segment .*too many pixels"):
        ids(Loader(config), 10)
    check_replaced(Loader(edit(config, data__on_bad_record="replace")), {"x4"})


@pytest.fixture
def damaged(world, config, tmp_path):
    """A copy of the records that is measured, then damaged by `spoil(shard bytes)`; its config."""

    def make(spoil, **change):
        folder = shutil.copytree(world / "records", tmp_path / "damaged")
        config_ = edit(config, data__train=(str(folder),), **change)
        loader = Loader(config_)
        (shard,) = folder.glob("*train*")
        spoil(shard)
        return loader, config_

    return make


def test_a_corrupted_record_costs_itself_alone(damaged):
    def spoil(shard):
        data = bytearray(shard.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 20] = bytes(20)
        shard.write_bytes(data)

    loader, config = damaged(spoil, data__on_bad_record="replace")
    records = open_records(config.data.train[0])
    bad = {f"x{n}" for n in range(len(records)) if not _reads(records, n)}
    assert 1 <= len(bad) <= 2
    check_replaced(loader, bad)
    stopping = edit(config, data__on_bad_record="stop")
    with pytest.raises(ValueError, match=r"record .* cannot be read"):
        ids(Loader(stopping), 10)


def _reads(records, number: int) -> bool:
    try:
        return bool(records[number])
    except ValueError:
        return False


@pytest.mark.parametrize("action", ["stop", "replace"])
def test_a_truncated_shard_is_named(damaged, action):
    cut = lambda shard: os.truncate(shard, shard.stat().st_size // 2)
    loader, config = damaged(cut, data__on_bad_record=action)
    (shard,) = open_records(config.data.train[0]).files
    if action == "stop":
        with pytest.raises(ValueError, match=f"{shard.name}: record"):
            ids(loader, 6)
    else:
        ids(loader, 6)  # the part that is left is read
        assert loader.faults and all(shard.name in fault.reason for fault in loader.faults)
    # opened anew, it has no record at all
    with pytest.raises(ValueError, match=f"{shard.name}: record 0 .* cannot be read"):
        Loader(config)


def test_a_file_that_vanishes_in_the_middle_of_an_epoch(damaged, world, tmp_path):
    loader, config = damaged(lambda shard: None, data__prefetch=0)
    expected = ids(loader, 2)
    (shard,) = open_records(config.data.train[0]).files
    shard.unlink()
    assert len(ids(loader, 2)) == 2  # a file that is open can still be read
    with pytest.raises(ValueError, match=f"{shard.name}: shard cannot be read"):
        Loader(config, step=4)
    shutil.copy(open_records(world / "records").files[0], shard)
    assert ids(Loader(config), 2) == expected


def test_a_record_that_is_not_the_planned_one_is_a_bad_record(world, config, tmp_path):
    folder = tmp_path / "r"
    rewrite(world, folder, lambda e: e)
    config = edit(config, data__train=(str(folder),), data__on_bad_record="replace")
    loader = Loader(config)
    loader.plan.pack(40)  # the plan's files go with the folder
    shutil.rmtree(folder)
    swap = lambda e: dataclasses.replace(e, id="other") if e.id == "x6" else e
    rewrite(world, folder, swap)
    loader._records[:] = [open_records(folder)]  # as a reader on another host would see them
    check_replaced(loader, {"x6"})
    assert "changed since it was measured" in loader.faults[0].reason


def test_changed_records_are_measured_and_planned_anew(world, config, tmp_path):
    folder = rewrite(world, tmp_path / "r", lambda e: e)
    config = edit(config, data__train=(folder,))
    before = Loader(config)
    shutil.rmtree(folder)
    rewrite(world, folder, lambda e: dataclasses.replace(e, source="elsewhere"))
    after = Loader(config)
    assert after.hash != before.hash and after.records_hash != before.records_hash
    assert ids(after, 3) == ids(before, 3) == planned(after, 3)


def _kill_workers() -> int:
    """Kills the worker processes of this one; returns their number."""
    killed = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[1]
            command = open(f"/proc/{process}/cmdline").read()
        except OSError:
            continue
        if int(parent) == os.getpid() and "spawn_main" in command:
            os.kill(int(process), signal.SIGKILL)
            killed += 1
    return killed


def test_a_worker_that_dies_is_started_again_and_no_pack_changes(config, caplog):
    loader = Loader(edit(config, data__workers=1))
    expected = planned(loader, 12)
    found = ids(loader, 2)
    assert _kill_workers() == 1
    found += ids(loader, 10)
    loader.close()
    assert found == expected and loader.restarts == 1 and not loader.faults
    assert "a worker process died" in caplog.text


def test_workers_that_keep_dying_end_the_run(config, monkeypatch):
    monkeypatch.setattr("inset_jax.data.loader.DEATHS", 2)
    loader = Loader(edit(config, data__workers=1))
    next(loader)
    pipeline = loader._pipeline
    monkeypatch.setattr(loader, "_pipeline", lambda: _Dying(iter(pipeline())))
    loader.close()
    with pytest.raises(
        ChildProcessError, match=r"batch 1: worker processes died or hung 2 times; .* no record"
    ):
        next(loader)
    loader.close()


class _Dying:
    """A pipeline whose workers die before their first batch."""

    def __init__(self, inner):
        self._inner = inner

    def __iter__(self):
        return self

    def __next__(self):
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9")

    def close(self):
        self._inner.close()


DEADLY = "inset-test: undoes the process that decodes it"


@pytest.fixture
def undoing(world, config, tmp_path, monkeypatch):
    """Makes records of which one undoes whoever decodes it, in worker processes too.

    Returns a function of what then happens, a statement; it returns the config.
    """
    picture = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    marked = PngInfo()
    marked.add_text("Comment", DEADLY)
    Image.new("RGB", (40, 40)).save(picture, "PNG", pnginfo=marked)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.getcwd()}")
    resized = lambda s: dataclasses.replace(s, image=picture.getvalue(), width=40, height=40)
    spoil = lambda e: dataclasses.replace(
        e, segments=tuple(resized(s) if s.image else s for s in e.segments)
    )
    folder = rewrite(world, tmp_path / "r", lambda e: spoil(e) if e.id == "x8" else e)

    def make(happens: str):
        # workers import this at their start; it stands for a decoder with a bug
        (site / "sitecustomize.py").write_text(
            "import PIL.Image, os, time\n"
            "load = PIL.Image.open\n"
            "def undo(*a, **k):\n"
            "    image = load(*a, **k)\n"
            f"    if image.info.get('Comment') == {DEADLY!r}:\n"
            f"        {happens}\n"
            "    return image\n"
            "PIL.Image.open = undo\n"
        )
        return edit(config, data__train=(folder,), data__workers=1)

    return make


def test_a_record_that_kills_workers_is_a_bad_record(undoing):
    loader = Loader(edit(undoing("os.abort()"), data__on_bad_record="replace"))
    check_replaced(loader, {"x8"})
    loader.close()
    assert loader.restarts == 2
    assert "ended the worker process" in loader.faults[0].reason


def test_a_record_that_kills_workers_stops_the_run_and_is_named(undoing):
    loader = Loader(undoing("os.abort()"))
    with pytest.raises(ValueError, match="x8: ended the worker process that decoded it"):
        ids(loader, 10)
    loader.close()


def test_a_worker_that_hangs_is_started_again_and_its_record_is_a_bad_one(undoing, caplog):
    config = edit(undoing("time.sleep(600)"), data__on_bad_record="replace")
    loader = Loader(edit(config, data__worker_timeout=5.0), process_index=0)
    check_replaced(loader, {"x8"})
    loader.close()
    assert loader.restarts >= 2  # a slow start on a busy machine counts, too
    limit = r"5 s \(data.worker_timeout\)"
    assert re.search(
        f"held up the worker process that decoded it for {limit}", loader.faults[0].reason
    )
    told = rf"hung for {limit} on host 0 \(.+\), at work on .+: record \d+ 'x8' \(process \d+\)"
    assert len(re.findall(told, caplog.text)) == 2


def test_faults_in_worker_processes_are_those_of_this_process(world, config, tmp_path):
    spoil = lambda e: with_image(e, b"none") if e.id in ("x3", "x5") else e
    folder = rewrite(world, tmp_path / "r", spoil)
    config = edit(config, data__train=(folder,), data__on_bad_record="replace")
    here, there = Loader(config), Loader(edit(config, data__workers=2))
    assert ids(here, 8) == ids(there, 8)
    there.close()
    assert here.faults == there.faults and np.all([f.replacement for f in here.faults])
