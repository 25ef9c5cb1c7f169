"""Records from tar files as WebDataset has them: members of one name and several suffixes.

    0001.jpg  0001.txt          a picture and its caption
    0002.png  0002.json         or a JSON object with `text` or `caption` (or `Options.text`)

The name goes up to the first dot of the last part of the path; members of one name stand together.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
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
    file_facts,
    files,
    fingerprint,
    stem,
)
from inset_jax.data.sources.folder import find_text

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
TEXTS = ("txt", "text", "caption")
ROWS_PER_BYTE = 1 / 100_000  # a guess: how many rows a tar file has is known after reading it


@dataclass(frozen=True)
class WebDataset:
    """A tar file or a folder of them, a file a part: a tar file can only be read from its start."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        found = []
        for file in files(Path(self.path), [".tar"], "tar files"):
            facts = file_facts(file)
            rows = max(1, int(facts[1] * ROWS_PER_BYTE))
            found.append(Part(str(file), (str(file),), fingerprint(facts), rows))
        return found

    def rows(self, part: Part) -> Iterator[Row]:
        begin = stem(part.place[0], self.path)
        for key, members in _samples(Path(part.place[0])):
            yield Row(f"{part.name}: {key}", partial(self._make, f"{begin}/{key}", members))

    def _make(self, name: str, members: dict[str, bytes]) -> list[NamedExample]:
        wanted = [self.options.image] if self.options.image else PICTURES
        data = next((members[suffix] for suffix in wanted if suffix in members), None)
        if data is None:
            raise ValueError(f"no picture; its suffixes are {', '.join(members)}")
        text = next((members[suffix] for suffix in TEXTS if suffix in members), None)
        if "json" in members and (text is None or self.options.text):
            captions = find_text(jsonl.parse_object(members["json"]), self.options)
        elif text is not None:
            captions = [text.decode()]  # UnicodeDecodeError is a ValueError
        else:
            raise ValueError(f"no caption; its suffixes are {', '.join(members)}")
        return captioned(name, captions, data, self.options)


def _samples(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields names and {suffix: bytes}; what stands before a damaged place is not lost.

    Raises:
      ValueError: the file ends early or is damaged.
    """
    name, members = "", {}
    try:
        with tarfile.open(file, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, last = member.name.removeprefix("./").rpartition("/")
                short, _, suffix = last.partition(".")
                key = f"{folder}/{short}".lstrip("/")
                if key != name and members:
                    yield name, members
                    members = {}
                name = key
                members[suffix.lower()] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"damaged after sample {name!r}: {error}") from error
    if members:
        yield name, members
