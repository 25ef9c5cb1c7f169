"""Makes a folder of records of a source: sharded, in parallel, restartable.

    FOLDER.incomplete/build/plan.json            what is built of what
                            00000.json           a shard's notes: sizes, digests, rejects
                            00000.ids            ids of its examples, with their rows
                            00000-train...       its records, by split
    FOLDER                                       the same when all is there, shards named as
                                                 TensorFlow Datasets wants them
    FOLDER.replaced                              what FOLDER was, while the new one takes its place
    FOLDER.rejects.jsonl                         rows that became no record, with the reason

Every shard is a function of its part of the source. One that is there, whole, and made of a part
that has not changed is kept: after an interruption, and when the same command runs again on a
finished folder, of which only what is missing, damaged or changed is then made anew. So are its
shards with rejects, whose reasons may be gone without a change of the part: a picture that was
missing, an id that was taken. Files of others in the folder, such as a tokenizer, stay there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from inset_jax.data import jobs, record, shards, taken
from inset_jax.data.sources.base import Part, Row, Source

PER_SHARD = 2000  # rows of a shard, about
NOTES = "build"
OURS = (NOTES, "dataset_info.json", "features.json")  # of a finished folder, beside its shards


class Reject(NamedTuple):
    """A row that became no record."""

    where: str  # file and line, or the like
    reason: str
    text: str  # the row, where it is text

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Built(NamedTuple):
    """What `build_records` did."""

    examples: dict[str, int]  # split -> how many
    rejects: list[Reject]
    rejects_file: Path  # exists if there are rejects
    made: int  # shards made now
    kept: int  # shards that were there


class _Job(NamedTuple):
    """One shard to be made."""

    folder: Path  # of the notes
    number: int
    source: Source
    parts: Sequence[Part]
    skip: dict[int, str]  # rows to leave out, and why
    retry: bool = False  # whether rows that were rejected are tried again


# shards done, shards in all, notes of the one that has just been finished
Progress = Callable[[int, int, dict], None]


def build_records(
    source: Source,
    folder,
    per_shard: int = PER_SHARD,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    progress: Progress = lambda *_: None,
) -> Built:
    """Makes records of a source. Rows that cannot be used are left out and reported.

    The rejects go to FOLDER.rejects.jsonl; a stale one is removed. A split without any good row is
    left out; if that is all of them, no folder is written.

    Args:
      workers: processes; 0 works in this one.
      share: (i, n) makes every n-th shard beginning with the i-th and does not finish, so that n
        machines can make one folder; a call without it then keeps all and finishes.

    Raises:
      ValueError: the source cannot be read or is empty; the folder exists and is not of this build.
      ChildProcessError: worker processes keep dying at one shard; the others are kept.
    """
    folder = Path(folder)
    if per_shard < 1 or workers < 0:
        raise ValueError(f"{per_shard} rows a shard and {workers} processes: expected 1 or more")
    groups = _grouped(source.parts(per_shard), per_shard)
    if share[1] > 1 and folder.exists():
        raise ValueError(f"{folder}: exists; machines share what is not there yet")
    notes = _begin(folder, {"source": repr(source), "per_shard": per_shard})
    retry = folder.exists()  # an interrupted build goes on, and tries them when it runs again
    pending = {
        number: _Job(notes, number, source, parts, {}, retry)
        for number, parts in enumerate(groups)
        if number % share[1] == share[0]
    }
    found: dict[int, dict] = {}
    made: set[int] = set()
    name = lambda number: f"{folder}: making shard {number} ({groups[number][0].name} ...)"
    while pending:
        for number, (note, is_new) in jobs.run(_make, pending, workers, notes, name):
            found[number] = note
            made |= {number} if is_new else set()
            progress(len(found), len(groups) // share[1] or 1, note)
        if share[1] > 1:
            return _built(folder, found, made)
        again = taken.rows(notes, len(groups))
        pending = {
            number: _Job(notes, number, source, groups[number], skip)
            for number, skip in again.items()
        }
    return _finish(folder, found, made)


def _grouped(parts: Sequence[Part], per_shard: int) -> list[list[Part]]:
    """Joins small parts in a row to shards."""
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        if room < part.rows or not groups:
            groups.append([])
            room = max(per_shard, part.rows)
        groups[-1].append(part)
        room -= part.rows
    return groups


def _begin(folder: Path, plan: dict) -> Path:
    """Returns the folder of notes, with what an earlier run has left of the same build."""
    work = _incomplete(folder)
    notes = work / NOTES
    text = json.dumps(plan, indent=1)
    if folder.exists():
        if _read(folder / NOTES / "plan.json") != text:
            raise ValueError(f"{folder}: exists; remove it or name another folder")
        _clear(_replaced(folder), folder)  # of a finish that was interrupted
        shutil.rmtree(work, ignore_errors=True)
        notes.mkdir(parents=True)
        for (number, split), name in _names(_saved(folder / NOTES)).items():
            if (folder / name).exists():
                _link(folder / name, notes / _file(number, split))
        for file in (folder / NOTES).iterdir():
            _link(file, notes / file.name)
    elif work.exists() and _read(notes / "plan.json") != text:
        raise ValueError(f"{work}: begun with other options or of another source; remove it")
    notes.mkdir(parents=True, exist_ok=True)
    for (number, split), name in _names(_saved(notes)).items():  # a finish that was interrupted
        if (work / name).exists():
            os.replace(work / name, notes / _file(number, split))
    if _read(notes / "plan.json") != text:
        beside = notes / f"plan.{os.getpid()}.part"  # machines that share begin at the same time
        beside.write_text(text)
        os.replace(beside, notes / "plan.json")
    return notes


def _link(file: Path, to: Path) -> None:
    """A second name for a file; a copy where the file system has no such names."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)


def _make(job: _Job, skip: jobs.Skip, diary: Path | None) -> tuple[dict, bool]:
    """Makes one shard, or keeps it; returns its notes and whether it is new."""
    path = job.folder / f"{job.number:05d}.json"
    made_of = [part.fingerprint for part in job.parts]
    skip = {**job.skip, **skip}
    before = json.loads(_read(path) or "{}")
    is_there = before.get("made_of") == made_of
    is_whole = is_there and _is_whole(job.folder, job.number, before)
    is_open = job.retry and is_there and bool(before["rejects"] or before.get("skip"))
    if is_whole and not skip and not is_open:
        return before, False
    if is_there and not job.retry:  # rows that once crashed or had a taken id
        skip = {**{int(row): reason for row, reason in before.get("skip", {}).items()}, **skip}
    path.unlink(missing_ok=True)
    with jobs.diary(diary) as at:
        note = {"made_of": made_of, "skip": skip, **_write(job, skip, at)}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(note))
    os.replace(beside, path)
    note = json.loads(json.dumps(note))
    return note, not (is_whole and note == before)  # tried again in vain, nothing is new


def _write(job: _Job, skip: jobs.Skip, at: Callable[[int], None]) -> dict:
    """Writes the records of a shard, a file a split."""
    writers: dict[str, shards.ShardWriter] = {}
    rejects: list[Reject] = []
    ids: list[taken.Id] = []
    for number, row in enumerate(_rows(job, rejects)):
        at(number)
        try:
            if number in skip:
                raise ValueError(skip[number])
            made = [(_split(name), one, shards.serialize(one)) for name, one in row.make()]
        except ValueError as error:
            rejects.append(Reject(row.where, str(error), row.text))
            continue
        for split, example, data in made:
            if split not in writers:
                writers[split] = shards.ShardWriter(job.folder / _file(job.number, split))
            writers[split].write(data)
            ids.append(taken.Id(split, example.id, number, row.where))
    splits = {}
    for split, writer in writers.items():
        writer.close()
        splits[split] = [writer.count, writer.path.stat().st_size, _digest(writer.path)]
    taken.write(job.folder, job.number, ids)
    return {"splits": splits, "rejects": rejects}


def _split(name: str) -> str:
    """Returns the name of a split, which becomes a part of files' names."""
    if not name.isidentifier():
        raise ValueError(f"split {name!r}: expected a name such as train, of letters and digits")
    return name


def _rows(job: _Job, rejects: list[Reject]) -> Iterator[Row]:
    """The rows of all parts; a part that breaks off is a reject, and the next one goes on."""
    for part in job.parts:
        try:
            yield from job.source.rows(part)
        except ValueError as error:
            rejects.append(Reject(part.name, str(error), ""))


def _is_whole(folder: Path, number: int, note: dict) -> bool:
    for split, (_, size, digest) in note["splits"].items():
        file = folder / _file(number, split)
        if not file.exists() or file.stat().st_size != size or _digest(file) != digest:
            return False
    return True


def _built(folder: Path, found: dict[int, dict], made: set[int]) -> Built:
    counts: dict[str, int] = {}
    for note in found.values():
        for split, (count, *_) in note["splits"].items():
            counts[split] = counts.get(split, 0) + count
    rejects = [Reject(*reject) for n in sorted(found) for reject in found[n]["rejects"]]
    rejects_file = folder.with_name(folder.name + ".rejects.jsonl")
    return Built(counts, rejects, rejects_file, len(made), len(found) - len(made))


def _finish(folder: Path, found: dict[int, dict], made: set[int]) -> Built:
    """Names the shards, describes them, and gives the folder its name."""
    work = _incomplete(folder)
    built = _built(folder, found, made)
    write_rejects(built.rejects, built.rejects_file)
    splits: dict[str, list[tuple[int, int]]] = {}
    for number in sorted(found):
        for split, (count, size, _) in found[number]["splits"].items():
            splits.setdefault(split, []).append((count, size))
    if not splits or (folder.exists() and not made and _is_same(folder, len(found))):
        shutil.rmtree(work)
        return built
    for file in (work / NOTES).iterdir():
        if file.stem.isdigit() and int(file.stem) >= len(found):  # of a source that was longer
            file.unlink()
    for (number, split), name in _names(found).items():
        os.replace(work / NOTES / _file(number, split), work / name)
    for left in ("*.array_record*", "*.diary"):  # of splits that are no more, of killed processes
        for file in (work / NOTES).glob(left):
            file.unlink()
    shards.write_info(work, splits)
    if folder.exists():
        os.replace(folder, _replaced(folder))
    os.replace(work, folder)
    _clear(_replaced(folder), folder)
    return built


def _clear(old: Path, folder: Path) -> None:
    """Removes a folder that another one has replaced; what no build wrote there moves to that."""
    if not old.exists():
        return
    for entry in old.iterdir():
        ours = entry.name in OURS or entry.match(f"{shards.NAME}-*.array_record-*")
        if not ours and not (folder / entry.name).exists():
            os.replace(entry, folder / entry.name)
    shutil.rmtree(old)


def _is_same(folder: Path, count: int) -> bool:
    return len(_saved(folder / NOTES)) == count and record.is_records(folder)


def write_rejects(rejects: Sequence[NamedTuple], file: Path) -> None:
    """Writes one JSON object a reject; no rejects leave no file."""
    file.unlink(missing_ok=True)
    if rejects:
        rows = [json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects]
        file.write_text("".join(rows), encoding="utf-8")


def _names(found: dict[int, dict]) -> dict[tuple[int, str], str]:
    """Returns the file of each shard's split in the finished folder."""
    own: dict[str, list[int]] = {}
    for number in sorted(found):
        for split in found[number]["splits"]:
            own.setdefault(split, []).append(number)
    return {
        (number, split): shards.shard_name(split, at, len(numbers))
        for split, numbers in own.items()
        for at, number in enumerate(numbers)
    }


def _saved(notes: Path) -> dict[int, dict]:
    files = sorted(file for file in notes.glob("*.json") if file.stem.isdigit())
    return {int(file.stem): json.loads(file.read_text()) for file in files}


def _incomplete(folder: Path) -> Path:
    return folder.with_name(folder.name + ".incomplete")


def _replaced(folder: Path) -> Path:
    return folder.with_name(folder.name + ".replaced")


def _file(number: int, split: str) -> str:
    return f"{number:05d}-{split}.array_record"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --per-shard, --workers and --share."""
    flag = parser.add_argument
    flag("--per-shard", type=int, default=PER_SHARD, metavar="ROWS", help="(%(default)s)")
    flag("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    parts = "make every N-th shard from the I-th; once all are made, run without it"
    flag("--share", type=share, default=(0, 1), metavar="I/N", help=parts)


def share(text: str) -> tuple[int, int]:
    """Parses I/N, the share of one machine of several: an argparse type."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ValueError(text)
    return int(first), int(count)


def say_progress(done: int, shards: int, note: dict) -> None:
    """Prints one line a finished shard, where there are several."""
    if shards > 1:
        examples = sum(count for count, *_ in note["splits"].values())
        print(f"shard {done} of {shards}: {examples} examples, {len(note['rejects'])} rejects")


def say_outcome(built: Built, folder, allow_rejects: bool, most: int) -> int:
    """Prints what was built; returns the exit status of a command."""
    for reject in built.rejects[:most]:
        print(reject, file=sys.stderr)
    for split, count in built.examples.items():
        print(f"{folder}: {count} examples in split {split!r}")
    if built.kept:
        print(f"{built.kept} of {built.kept + built.made} shards were there and are kept")
    if built.rejects:
        print(f"{len(built.rejects)} rows rejected, see {built.rejects_file}", file=sys.stderr)
    if not built.examples:
        return 2
    return 1 if built.rejects and not allow_rejects else 0
