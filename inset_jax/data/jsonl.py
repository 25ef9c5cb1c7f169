r"""Records from a JSONL file, the format that a person writes by hand. One object a line:

    {"id": "cat-1", "text": "A [img:cat.png] sits on a [img:bench.png]", "target": "cat-1.jpg"}

    text     a sentence; `[img:NAME]` stands where a picture is meant (`\[img:` for the characters)
    images   {NAME: path} for names that are not paths themselves
    target   path of the picture to be drawn
    edit     path of the picture to be changed; it comes before the sentence, as ViT patches and as
             clean latents
    answer   text to be learned; with a target too, it comes before the drawing (thinking aloud)
    id       unique; default: the file's name and the line's number
    kind     default by content: "editing", "image-interleaved", "t2i" or "understanding"
    split    default "train"; data.validation reads "validation"
    licence, source   where the example is from, kept in the record

Paths are relative to the JSONL. A line needs a target or an answer, and text or pictures to go by.
Blank lines are skipped. Pictures are stored as the files are, after they decoded without error.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inset_jax.data import image
from inset_jax.data.record import Example, Segment, check, write_records
from inset_jax.data.sentence import PicturePath, parse_sentence

TEXT_FIELDS = ("text", "target", "edit", "answer", "id", "kind", "split", "licence", "source")
FIELDS = (*TEXT_FIELDS, "images")


class Reject(NamedTuple):
    """A line that became no record."""

    file: str
    line: int  # from 1
    reason: str
    text: str  # the line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Built(NamedTuple):
    """What `build_records` did."""

    examples: dict[str, int]  # split -> how many
    rejects: list[Reject]
    rejects_file: Path  # exists if there are rejects


def build_records(source, folder) -> Built:
    """Makes a folder of records of a JSONL file. Bad lines are left out and reported.

    The rejects go to FOLDER.rejects.jsonl, with their reasons; a stale one is removed. A split
    without any good line is left out; if that is all of them, no folder is written.

    Raises:
      ValueError: the source cannot be read or is empty, or the folder exists.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists():
        raise ValueError(f"{folder}: exists; remove it or name another folder")
    lines = _lines(source)
    rejects: list[Reject] = []
    splits: dict[str, list[tuple[int, dict]]] = {}
    for number, text in lines.items():
        try:
            row = parse_row(text)
            splits.setdefault(row.get("split", "train"), []).append((number, row))
        except ValueError as error:
            rejects.append(Reject(str(source), number, str(error), text))
    if not lines:
        raise ValueError(f"{source}: no lines")
    counts = dict.fromkeys(splits, 0)
    seen: dict[str, int] = {}

    def examples(split: str) -> Iterator[Example]:
        for number, row in splits[split]:
            name = row.setdefault("id", f"{source.stem}-{number}")
            try:
                if name in seen:
                    raise ValueError(f"id {name!r} is taken by line {seen[name]}")
                example = to_example(row, source.parent)
            except ValueError as error:
                rejects.append(Reject(str(source), number, str(error), lines[number]))
                continue
            seen[name] = number
            counts[split] += 1
            yield example

    rejects_file = folder.with_name(folder.name + ".rejects.jsonl")
    streams = {split: examples(split) for split in splits}
    first = {split: next(stream, None) for split, stream in streams.items()}
    whole = {
        split: itertools.chain([first[split]], stream)
        for split, stream in streams.items()
        if first[split] is not None
    }
    if whole:
        write_records(folder, whole)
    rejects.sort(key=lambda reject: reject.line)
    _write_rejects(rejects, rejects_file)
    return Built({split: counts[split] for split in whole}, rejects, rejects_file)


def _lines(source: Path) -> dict[int, str]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: cannot be read: {error}") from error
    # not splitlines(): a sentence may hold other line separators
    return {n: line for n, line in enumerate(text.split("\n"), 1) if line.strip()}


def _write_rejects(rejects: list[Reject], file: Path) -> None:
    file.unlink(missing_ok=True)
    if rejects:
        rows = [json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects]
        file.write_text("".join(rows), encoding="utf-8")


def parse_row(text: str) -> dict:
    """Parses a line; unknown fields and wrong types are refused, nulls dropped.

    Raises:
      ValueError: the reason.
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object {{...}}, found {type(row).__name__}")
    row = {name: value for name, value in row.items() if value is not None}
    for name, value in row.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(FIELDS)}"
            raise ValueError(f"unknown field {name!r}{hint}")
        if name in TEXT_FIELDS and not isinstance(value, str):
            raise ValueError(f"field {name!r}: expected text, found {value!r}")
    images = row.get("images", {})
    pairs = images.items() if isinstance(images, dict) else [("", None)]
    if not all(isinstance(path, str) for _, path in pairs):
        raise ValueError(f"field 'images': expected {{name: path}}, found {images!r}")
    if not row.get("split", "train").isidentifier():
        raise ValueError(f"field 'split': expected a name such as train, found {row['split']!r}")
    return row


def to_example(row: dict, folder: Path) -> Example:
    """Makes an example of a parsed line; its pictures are read and decoded.

    Raises:
      ValueError: the reason.
    """
    paths = row.get("images", {})
    pieces = parse_sentence(row.get("text", ""))
    named = {piece.path for piece in pieces if isinstance(piece, PicturePath)}
    if unused := set(paths) - named:
        raise ValueError(f"field 'images': {', '.join(sorted(unused))} not in the sentence")
    segments = []
    if "edit" in row:
        source = _picture(folder / row["edit"], "vae", "source")
        segments += [source, Segment(**{**vars(source), "kind": "vit"})]
    for piece in pieces:
        if isinstance(piece, PicturePath):
            path = folder / paths.get(piece.path, piece.path)
            segments.append(_picture(path, "vit", "reference"))
        else:
            segments.append(Segment("text", text=piece, role="prompt"))
    if not segments:
        raise ValueError("neither text nor pictures to go by")
    if not row.get("answer") and "target" not in row:
        raise ValueError("nothing to learn: a line needs 'target' or 'answer'")
    if row.get("answer"):
        answer = Segment("text", text=row["answer"], role="answer", loss=True)
        segments.append(Segment(**{**vars(answer), "draws": "target" in row}))
    if "target" in row:
        segments.append(_picture(folder / row["target"], "target", "target"))
    facts = {name: row.get(name, "") for name in ("source", "licence")}
    example = Example(row["id"], tuple(segments), row.get("kind") or _kind(row, named), **facts)
    check(example)
    return example


def _kind(row: dict, named: set[str]) -> str:
    if "target" not in row:
        return "understanding"
    return "editing" if "edit" in row else "image-interleaved" if named else "t2i"


def _picture(path: Path, kind: str, role: str) -> Segment:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"picture {path} cannot be read: {error.strerror}") from error
    width, height = image.load(data, f"picture {path}").size
    return Segment(kind, image=data, width=width, height=height, role=role)
