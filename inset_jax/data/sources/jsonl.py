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
Blank lines are skipped.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from inset_jax.data.record import Example, Segment, check
from inset_jax.data.sentence import PicturePath, parse_sentence
from inset_jax.data.sources.base import (
    DEFAULT,
    NamedExample,
    Options,
    Part,
    Row,
    edit_source,
    picture,
    read_file,
)

TEXT_FIELDS = ("text", "target", "edit", "answer", "id", "kind", "split", "licence", "source")
FIELDS = (*TEXT_FIELDS, "images")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Jsonl:
    """A file of the format above."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        return line_parts(Path(self.path), most)

    def rows(self, part: Part) -> Iterator[Row]:
        for number, line in lines(part):
            where = f"{self.path}:{number}"
            yield Row(where, partial(self._make, number, line), line.decode(errors="replace"))

    def _make(self, number: int, line: bytes) -> list[NamedExample]:
        row = parse_row(line)
        row.setdefault("id", f"{Path(self.path).stem}-{number}")
        row.setdefault("source", self.options.name)
        row.setdefault("licence", self.options.licence)
        split = row.get("split", self.options.split)
        return [(split, to_example(row, Path(self.path).parent, self.options))]


def line_parts(path: Path, most: int) -> list[Part]:
    """Divides a file into ranges of at most `most` lines that are not blank.

    Raises:
      ValueError: it cannot be read, or has no such lines.
    """
    found: list[Part] = []
    start = count = 0
    first = number = 1
    digest = hashlib.blake2b(digest_size=8)

    def cut(end: int) -> None:
        name = f"{path}:{first}-{number}"
        place = (str(path), start, end - start, first)
        found.append(Part(name, place, digest.hexdigest(), count))

    try:
        with open(path, "rb") as file:
            at = 0
            for number, line in enumerate(file, 1):
                at += len(line)
                count += bool(line.strip())
                digest.update(line)
                if count == most:
                    cut(at)
                    start, count, first = at, 0, number + 1
                    digest = hashlib.blake2b(digest_size=8)
            if count:
                cut(at)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if not found:
        raise ValueError(f"{path}: no lines")
    return found


def lines(part: Part) -> Iterator[tuple[int, bytes]]:
    """Reads what `line_parts` found: numbers from 1 and lines that are not blank."""
    path, start, size, first = part.place
    with open(path, "rb") as file:
        file.seek(start)
        # not splitlines(): a sentence may hold other line separators
        for number, line in enumerate(file.read(size).split(b"\n"), first):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line.strip()


def parse_object(line: bytes | str) -> dict:
    """Parses a line.

    Raises:
      ValueError: the reason.
    """
    try:
        row = json.loads(line.decode() if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object {{...}}, found {type(row).__name__}")
    return row


def parse_row(line: bytes | str) -> dict:
    """Parses a line; unknown fields and wrong types are refused, nulls dropped.

    Raises:
      ValueError: the reason.
    """
    row = {name: value for name, value in parse_object(line).items() if value is not None}
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


def to_example(row: dict, folder: Path, options: Options = DEFAULT) -> Example:
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
        path = folder / row["edit"]
        segments += edit_source(read_file(path), str(path), options)
    for piece in pieces:
        if isinstance(piece, PicturePath):
            path = folder / paths.get(piece.path, piece.path)
            segments.append(picture(read_file(path), "vit", "reference", str(path), options))
        else:
            segments.append(Segment("text", text=piece, role="prompt"))
    if not segments:
        raise ValueError("neither text nor pictures to go by")
    if not row.get("answer") and "target" not in row:
        raise ValueError("nothing to learn: a line needs 'target' or 'answer'")
    if row.get("answer"):
        answer = Segment("text", text=row["answer"], role="answer", loss=True)
        segments.append(replace(answer, draws="target" in row))
    if "target" in row:
        path = folder / row["target"]
        segments.append(picture(read_file(path), "target", "target", str(path), options))
    facts = {name: row.get(name, "") for name in ("source", "licence")}
    example = Example(row["id"], tuple(segments), row.get("kind") or _kind(row, named), **facts)
    check(example)
    return example


def _kind(row: dict, named: set[str]) -> str:
    if "target" not in row:
        return "understanding"
    return "editing" if "edit" in row else "image-interleaved" if named else "t2i"
