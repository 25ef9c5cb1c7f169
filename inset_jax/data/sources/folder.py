"""Records from an image folder as Hugging Face data sets have it.

    pictures/metadata.jsonl     {"file_name": "cat.jpg", "text": "a cat"}
    pictures/cat.jpg

or with a folder a split: pictures/train/metadata.jsonl, pictures/validation/metadata.jsonl. The
field of the text is `text` or `caption`, or what `Options.text` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from inset_jax.data.sources import jsonl
from inset_jax.data.sources.base import (
    DEFAULT,
    NamedExample,
    Options,
    Part,
    Row,
    captioned,
    read_file,
)

METADATA = "metadata.jsonl"
TEXTS = ("text", "caption", "captions", "prompt")
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class ImageFolder:
    """A folder of the format above."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        found = []
        for file in metadata_files(Path(self.path)):
            found += jsonl.line_parts(file, most)
        return found

    def rows(self, part: Part) -> Iterator[Row]:
        file = Path(part.place[0])
        options = self.options
        if file.parent != Path(self.path):
            named = file.parent.name
            options = replace(options, split=SPLITS.get(named, named))
        for number, line in jsonl.lines(part):
            make = partial(self._make, file, number, line, options)
            yield Row(f"{file}:{number}", make, line.decode(errors="replace"))

    def _make(self, file: Path, number: int, line: bytes, options: Options) -> list[NamedExample]:
        row = jsonl.parse_object(line)
        name = row.get(options.image or "file_name")
        if not isinstance(name, str):
            raise ValueError(f"no field {options.image or 'file_name'!r} with a path")
        captions = find_text(row, options)
        path = file.parent / name
        identity = path.relative_to(Path(self.path).parent).as_posix()
        return captioned(identity, captions, read_file(path), options, str(path))


def find_text(row: dict, options: Options) -> list[str]:
    """Returns the text or texts of a row.

    Raises:
      ValueError: there is no such field, or it is no text.
    """
    names = [options.text] if options.text else TEXTS
    value = next((row[name] for name in names if row.get(name)), None)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        found = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"no text in {' or '.join(names)}; the row has {found}")
    return texts


def metadata_files(folder: Path) -> list[Path]:
    """Returns the metadata files of a folder or of its splits; [] if there are none."""
    if (folder / METADATA).is_file():
        return [folder / METADATA]
    return sorted(folder.glob(f"*/{METADATA}"))
