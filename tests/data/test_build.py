"""Shards in parallel, interrupted, damaged: what is good is kept, what is not is made again."""

import dataclasses
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from inset_jax.data import build
from inset_jax.data.build import build_records
from inset_jax.data.record import Example, Segment, open_records
from inset_jax.data.sources.base import Part, Row
from inset_jax.data.sources.jsonl import Jsonl


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A source of texts; some rows kill their process, some parts break off."""

    count: int
    deadly: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    log: str = ""  # a file that gets a line a row

    def parts(self, most):
        starts = range(0, self.count, most)
        return [Part(f"from {n}", (n, min(n + most, self.count)), str(n), most) for n in starts]

    def rows(self, part):
        for number in range(*part.place):
            if number in self.broken:
                raise ValueError("breaks off")
            yield Row(f"row {number}", partial(self.make, number), str(number))

    def make(self, number):
        if number in self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{number}\n")
        segments = (Segment("text", text=str(number), loss=True),)
        return [("train" if number % 4 else "test", Example(f"n{number}", segments))]


def ids(folder, split="train"):
    return [example.id for example in open_records(folder, split)]


def expected(count, without=(), split="train"):
    numbers = (n for n in range(count) if n not in without)
    return [f"n{n}" for n in numbers if (n % 4 != 0) == (split == "train")]


def test_processes_give_the_same_as_one_and_a_crash_costs_its_row(tmp_path):
    source = Numbers(24, deadly=(6, 13))
    built = build_records(source, tmp_path / "many", 5, workers=2)
    assert ids(tmp_path / "many") == expected(24, (6, 13))
    assert ids(tmp_path / "many", "test") == expected(24, split="test")
    assert [r.where for r in built.rejects] == ["row 6", "row 13"]
    assert "the process died on this row" in built.rejects[0].reason
    assert not list(tmp_path.glob("many/build/*.diary"))
    build_records(dataclasses.replace(source, deadly=()), tmp_path / "one", 5)
    assert ids(tmp_path / "one") == expected(24)


def test_machines_that_share_a_build_make_one_folder(tmp_path):
    source = Numbers(24, broken=(9,))
    for number in (1, 0, 2):
        built = build_records(source, tmp_path / "set", 5, share=(number, 3))
        assert built.made == (2 if number < 2 else 1) and not (tmp_path / "set").exists()
    built = build_records(source, tmp_path / "set", 5)
    assert (built.made, built.kept, len(built.rejects)) == (0, 5, 1)
    assert ids(tmp_path / "set") == expected(24, (9,))
    with pytest.raises(ValueError, match="machines share what is not there yet"):
        build_records(source, tmp_path / "set", 5, share=(0, 3))


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links")

    build_records(Numbers(12), tmp_path / "set", 4)
    (tmp_path / "set" / "records-train.array_record-00000-of-00003").unlink()
    monkeypatch.setattr(os, "link", refuse)
    built = build_records(Numbers(12), tmp_path / "set", 4)
    assert (built.made, built.kept) == (1, 2) and ids(tmp_path / "set") == expected(12)


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2"])
def test_a_share_is_written_with_its_number_first(text):
    assert build.share("1/3") == (1, 3)
    with pytest.raises(ValueError):
        build.share(text)


def test_a_part_that_breaks_off_costs_its_rest_alone(tmp_path):
    built = build_records(Numbers(12, broken=(5,)), tmp_path / "set", 4)
    assert ids(tmp_path / "set") == expected(12, (5, 6, 7))
    assert [str(r) for r in built.rejects] == ["from 4: breaks off"]


def test_an_interrupted_build_goes_on_where_it_was(tmp_path):
    source = Numbers(20, log=str(tmp_path / "log"))

    def stop(done, total, note):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_records(source, tmp_path / "set", 5, progress=stop)
    assert not (tmp_path / "set").exists()
    built = build_records(source, tmp_path / "set", 5)
    assert (built.made, built.kept) == (1, 3)
    assert ids(tmp_path / "set") == expected(20)
    assert Path(source.log).read_text().split() == [str(n) for n in range(20)]
    assert not list(tmp_path.glob("*.incomplete"))


def test_a_build_that_dies_while_it_finishes_goes_on(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("inset_jax.data.shards.write_info", die)
        build_records(Numbers(12), tmp_path / "set", 4)
    built = build_records(Numbers(12), tmp_path / "set", 4)
    assert (built.made, built.kept) == (0, 3) and ids(tmp_path / "set") == expected(12)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_only_the_damaged_shard_of_a_finished_folder_is_made_again(tmp_path, damage):
    source = Numbers(20, log=str(tmp_path / "log"))
    build_records(source, tmp_path / "set", 5)
    shard = tmp_path / "set" / "records-train.array_record-00001-of-00004"
    data = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    else:
        data[len(data) // 2] ^= 255
        shard.write_bytes(data if damage == "flip" else data[:-100])
    Path(source.log).unlink()
    built = build_records(source, tmp_path / "set", 5)
    assert (built.made, built.kept) == (1, 3)
    assert ids(tmp_path / "set") == expected(20)
    assert Path(source.log).read_text().split() == [str(n) for n in range(5, 10)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "set"]


def test_a_finished_folder_is_left_alone_when_all_is_good(tmp_path):
    build_records(Numbers(20), tmp_path / "set", 5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    built = build_records(Numbers(20), tmp_path / "set", 5)
    assert (built.made, built.kept, built.examples) == (0, 4, {"train": 15, "test": 5})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    with pytest.raises(ValueError, match=r"set: exists; remove it or name another folder"):
        build_records(Numbers(21), tmp_path / "set", 5)


def test_lines_that_changed_are_made_again_and_others_kept(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"text": f"number {n}", "target": "a.png"} for n in range(9)]
    file = tmp_path / "d.jsonl"
    write = lambda: file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write()
    build_records(Jsonl(str(file)), tmp_path / "set", 3)
    rows[4]["text"] = "another"
    del rows[6:]
    write()
    built = build_records(Jsonl(str(file)), tmp_path / "set", 3)
    assert (built.made, built.kept) == (1, 1)
    texts = [e.segments[0].text for e in open_records(tmp_path / "set")]
    assert texts == ["number 0", "number 1", "number 2", "number 3", "another", "number 5"]


def test_small_parts_share_a_shard():
    parts = [Part(str(n), (), "", rows) for n, rows in enumerate([3, 3, 3, 20, 1, 1])]
    groups = build._grouped(parts, 8)
    assert [[part.name for part in group] for group in groups] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5"],
    ]


def test_the_first_of_two_with_one_id_stays(tmp_path):
    rows = [{"id": f"x{n % 5}", "text": str(n), "answer": "y"} for n in range(8)]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    built = build_records(Jsonl(str(file)), tmp_path / "set", 2)
    assert [e.segments[0].text for e in open_records(tmp_path / "set")] == list("01234")
    assert [r.where.rpartition(":")[2] for r in built.rejects] == ["6", "7", "8"]
    assert built.rejects[2].reason == f"id 'x2' is taken by {file}:3"


def test_what_was_rejected_is_tried_again_in_a_finished_folder(tmp_path):
    rows = [{"text": str(n), "target": f"{n // 2}.png"} for n in range(6)]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for name in "02":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    run = lambda: build_records(Jsonl(str(file)), tmp_path / "set", 2)
    assert run().examples == {"train": 4}
    files = lambda: {path.name: path.stat().st_ino for path in (tmp_path / "set").iterdir()}
    before = files()
    built = run()
    assert (built.made, built.kept, len(built.rejects)) == (0, 3, 2)
    assert files() == before  # in vain: the folder is left alone
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    built = run()
    assert (built.made, built.kept, built.rejects) == (1, 2, [])
    assert ids(tmp_path / "set") == [f"d-{n}" for n in range(1, 7)]
    assert not built.rejects_file.exists()


def test_an_id_is_free_again_when_its_first_row_is_gone(tmp_path):
    rows = [{"id": name, "text": str(n), "answer": "y"} for n, name in enumerate("abca")]
    file = tmp_path / "d.jsonl"
    write = lambda: file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    write()
    assert len(build_records(Jsonl(str(file)), tmp_path / "set", 2).rejects) == 1
    rows[0]["id"] = "d"
    write()
    assert not build_records(Jsonl(str(file)), tmp_path / "set", 2).rejects
    assert ids(tmp_path / "set") == list("dbca")


@pytest.mark.parametrize("killed", ["", "os.replace", "shutil.rmtree"])
def test_files_of_others_outlive_a_new_folder_and_a_kill_while_it_is_made(
    tmp_path, monkeypatch, killed
):
    """`killed`: the call at which the first update dies, of those that put the folder in place."""
    folder = tmp_path / "set"
    run = lambda: build_records(Numbers(8), folder, 4)
    run()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "plans").mkdir()
    (folder / "plans" / "a").write_text("of a run")
    (folder / "records-train.array_record-00001-of-00002").unlink()
    told = {"os.replace": os.replace, "shutil.rmtree": shutil.rmtree}

    def die(*paths, **more):
        if paths in ((tmp_path / "set.incomplete", folder), (tmp_path / "set.replaced",)):
            raise KeyboardInterrupt
        return told[killed](*paths, **more)

    if killed:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(killed, die)
            run()
        assert (tmp_path / "set.replaced").exists()
    run()
    assert ids(folder) == expected(8)
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert (folder / "plans" / "a").read_text() == "of a run"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
