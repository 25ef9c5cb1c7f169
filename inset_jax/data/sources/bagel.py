"""Records from the three formats of BAGEL's published example data (its TRAIN.md).

    T2I      parquet files; a row has `image` (bytes) and `captions`, a JSON text {name: caption}
    editing  parquet files; a row has `image_list` (bytes of a chain of pictures) and
             `instruction_list` (for each step of the chain, several wordings)
    VLM      JSONL in LLaVA's way: `image` (a path or several) and `conversations`, turns of "human"
             and "gpt" with `<image>` where a picture stands; pictures lie in another folder

BAGEL draws anew at each visit of a row: a caption, a part of the chain, a wording. Records are
fixed, so a row becomes several of them, one a choice (or one drawn choice of each,
`Options.wordings="one"`). Of a chain of pictures: each step by itself, and each two steps in a row,
the picture in the middle drawn and then shown again clean. BAGEL also joins the instructions of two
steps into one text; that is not made, because a joined text names a picture that nobody sees.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inset_jax.data.record import Segment
from inset_jax.data.sources import jsonl
from inset_jax.data.sources.base import (
    DEFAULT,
    NamedExample,
    Options,
    Part,
    Row,
    captioned,
    edit_source,
    file_facts,
    files,
    fingerprint,
    picture,
    read_file,
    stem,
    worded,
)

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class _Parquet:
    """Parquet files, a row group a part."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        found = []
        for file in files(Path(self.path), [".parquet"], "parquet files"):
            facts = file_facts(file)
            groups = _open(file).metadata
            for group in range(groups.num_row_groups):
                rows = groups.row_group(group).num_rows
                name = f"{file}: row group {group}"
                found.append(Part(name, (str(file), group), fingerprint(facts, group), rows))
        return found

    def rows(self, part: Part) -> Iterator[Row]:
        path, group = part.place
        try:
            table = _open(Path(path)).read_row_group(group, columns=list(self.columns))
        except Exception as error:  # pyarrow's own kinds and OSError
            raise ValueError(f"cannot be read: {error}") from error
        for number in range(table.num_rows):
            row = {name: table.column(name)[number] for name in self.columns}
            name = f"{stem(path, self.path)}-{group}-{number}"
            where = f"{part.name}, row {number}"
            yield Row(where, partial(self._row, name, row))

    def _row(self, name: str, row: dict) -> list[NamedExample]:
        values = {column: value.as_py() for column, value in row.items()}
        if missing := [column for column, value in values.items() if not value]:
            raise ValueError(f"no {missing[0]}")
        return self._make(name, values)


class TextToImage(_Parquet):
    """BAGEL's T2I parquet."""

    columns = ("image", "captions")

    def _make(self, name: str, row: dict) -> list[NamedExample]:
        captions = row["captions"]
        if isinstance(captions, str):
            captions = jsonl.parse_object(captions)
        captions = list(captions.values()) if isinstance(captions, dict) else captions
        texts = _list("captions", captions)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("captions: expected {name: text}")
        return captioned(name, texts, _bytes(row["image"]), self.options)


class Editing(_Parquet):
    """BAGEL's editing parquet."""

    columns = ("image_list", "instruction_list")

    def _make(self, name: str, row: dict) -> list[NamedExample]:
        images = [_bytes(image) for image in _list("image_list", row["image_list"])]
        steps = [_wordings(step) for step in _list("instruction_list", row["instruction_list"])]
        if len(images) < 2 or len(steps) != len(images) - 1:
            raise ValueError(
                f"{len(images)} pictures and instructions for {len(steps)} steps: expected two "
                "pictures or more and a step less than pictures"
            )
        made = []
        for start, end in _spans(len(images)):
            # the n-th record of a span takes the n-th wording of every step
            most = max(len(step) for step in steps[start:end])
            chosen = [[step[n % len(step)] for step in steps[start:end]] for n in range(most)]
            pictures = images[start : end + 1]
            lessons = [_lesson(pictures, texts, self.options) for texts in chosen]
            made += worded(f"{name}-{start}-{end}", "editing", lessons, self.options)
        return made


def _spans(images: int) -> list[tuple[int, int]]:
    """First and last picture of one step and of two steps in a row."""
    pairs = itertools.combinations(range(images), 2)
    return [(start, end) for start, end in pairs if end - start <= 2]


def _lesson(images: Sequence[bytes], texts: Sequence[str], options: Options) -> list[Segment]:
    """Picture, instruction, picture to draw; a drawn picture in the middle is shown again clean."""
    segments = edit_source(images[0], "", options)
    for number, text in enumerate(texts, 1):
        segments.append(Segment("text", text=text, role="prompt"))
        segments.append(picture(images[number], "target", "target", "", options))
        if number < len(texts):
            segments += edit_source(images[number], "", options)
    return segments


def _wordings(step) -> list[str]:
    texts = [step] if isinstance(step, str) else _list("instruction_list: a step", step or [])
    texts = [text.strip() for text in texts if isinstance(text, str)]
    if not texts or not all(texts):
        raise ValueError("instruction_list: a step without a text, or an empty one")
    return list(dict.fromkeys(texts))


def _list(what: str, value) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{what}: expected a list, found {type(value).__name__}")
    return value


def _bytes(value) -> bytes:
    """Bytes, or the Hugging Face form {"bytes", "path"}."""
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"a picture: expected its bytes, found {type(value).__name__}")
    return value


def _open(file: Path):
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except Exception as error:  # pyarrow's own kinds and OSError
        raise ValueError(f"{file}: cannot be opened as parquet: {error}") from error


def parquet_columns(file: Path) -> set[str]:
    """Returns the names of the columns of a file.

    Raises:
      ValueError: not a parquet file.
    """
    return set(_open(file).schema_arrow.names)


@dataclass(frozen=True)
class Conversations:
    """BAGEL's VLM JSONL; `Options.images` is the folder of the pictures."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        return jsonl.line_parts(Path(self.path), most)

    def rows(self, part: Part) -> Iterator[Row]:
        beside = Path(self.path).parent
        usual = beside / "images" if (beside / "images").is_dir() else beside
        folder = Path(self.options.images or usual)
        for number, line in jsonl.lines(part):
            make = partial(self._make, number, line, folder)
            yield Row(f"{self.path}:{number}", make, line.decode(errors="replace"))

    def _make(self, number: int, line: bytes, folder: Path) -> list[NamedExample]:
        row = jsonl.parse_object(line)
        if "video" in row:
            raise ValueError("a video: extract its frames and name them in 'image'")
        paths = row.get("image") or []
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"field 'image': expected a path or a list of them, found {paths!r}")
        turns = row.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError("field 'conversations': expected a list of turns")
        found = sum(str(turn.get("value")).count(PLACEHOLDER) for turn in _asked(turns))
        if found != len(paths):
            raise ValueError(f"{found} {PLACEHOLDER} in the conversation for {len(paths)} pictures")
        images = iter([folder / path for path in paths])
        segments = [segment for turn in turns for segment in self._turn(turn, images)]
        if not any(segment.loss for segment in segments):
            raise ValueError("nothing to learn: no turn from 'gpt'")
        # an id of the file's own need not be unique: several data sets in one
        name = f"{Path(self.path).stem}-{number}"
        return worded(name, "understanding", [segments], self.options)

    def _turn(self, turn: dict, images: Iterator[Path]) -> Iterator[Segment]:
        speaker, text = turn.get("from"), turn.get("value")
        if speaker not in ("human", "gpt") or not isinstance(text, str):
            raise ValueError(f"a turn: expected 'from' human or gpt with a text, found {turn}")
        if not text.strip():
            raise ValueError(f"an empty turn of {speaker!r}")
        if speaker == "gpt":
            yield Segment("text", text=text, role="answer", loss=True)
            return
        if PLACEHOLDER not in text:
            yield Segment("text", text=text, role="prompt")
            return
        for number, piece in enumerate(text.split(PLACEHOLDER)):
            if number:
                path = next(images)
                yield picture(read_file(path), "vit", "source", str(path), self.options)
            if piece.strip():
                yield Segment("text", text=piece.strip(), role="prompt")


def _asked(turns: Sequence[dict]) -> Iterator[dict]:
    return (turn for turn in turns if turn.get("from") == "human")


def is_conversations(line: bytes) -> bool:
    """Says whether the first line of a JSONL file is of the VLM format."""
    try:
        return "conversations" in json.loads(line)
    except (ValueError, TypeError):
        return False
