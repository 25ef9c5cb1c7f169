"""What a source of records is, and what all sources share.

A source divides itself into parts that can be read alone (a range of lines, a row group, a tar
file); `data.build` makes one shard of one or a few of them, in any process and any order. Reading a
part gives rows. A row becomes examples when it is called upon, and says by a ValueError why it
cannot: that costs this row and no other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from inset_jax.data import image
from inset_jax.data.record import Example, Segment, check
from inset_jax.data.sentence import PLACE

NamedExample = tuple[str, Example]  # the split that it belongs to, and it


class Part(NamedTuple):
    """A piece of a source that can be read alone; travels to other processes."""

    name: str  # for people: file and range
    place: tuple  # for the source, to find it again
    fingerprint: str  # another one when the piece has changed
    rows: int  # how many, or a guess


class Row(NamedTuple):
    """What becomes one example, or several, or a reject."""

    where: str  # for people: file and line, or the like
    make: Callable[[], Sequence[NamedExample]]  # raises ValueError
    text: str = ""  # the row as it was read, where that is text


class Source(Protocol):
    """A data set of another format. Instances are pickled."""

    def parts(self, most: int) -> list[Part]:
        """Returns all parts in order, of about `most` rows at most where the format allows.

        Raises:
          ValueError: the source is not there or is not of this format.
        """
        ...

    def rows(self, part: Part) -> Iterator[Row]:
        """Reads a part.

        Raises:
          ValueError: the rest of the part cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """What the person who imports says; each source uses what it needs."""

    keep: image.Keep = image.KEEP
    split: str = "train"  # where the source names none
    name: str = ""  # the `source` of the records
    licence: str = ""
    wordings: str = "all"  # of several texts for one lesson: "all" make records, or "one" drawn one
    text: str = ""  # field with the text; "" is found by itself
    image: str = ""  # field with the picture; "" is found by itself
    images: str = ""  # folder that paths are relative to; "" is the usual place


DEFAULT = Options()


def read_file(path: Path) -> bytes:
    """Reads a picture's file.

    Raises:
      ValueError: names it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"picture {path} cannot be read: {error.strerror}") from error


def picture(data: bytes, kind: str, role: str, name: str, options: Options) -> Segment:
    """Makes a segment of an encoded picture, which is decoded on the way.

    Raises:
      ValueError: it is damaged; `name`, a path or "", is in the message.
    """
    kept, width, height = image.store(data, f"picture {name}".strip(), options.keep)
    return Segment(kind, image=kept, width=width, height=height, role=role)


def edit_source(data: bytes, name: str, options: Options) -> list[Segment]:
    """A picture that is changed or went before: clean latents, then ViT patches (BAGEL's order)."""
    latents = picture(data, "vae", "source", name, options)
    return [latents, dataclasses.replace(latents, kind="vit")]


def captioned(
    name: str, captions: Sequence[str], data: bytes, options: Options, path: str = ""
) -> list[NamedExample]:
    """Makes text-to-image examples of one picture: one a caption.

    Raises:
      ValueError: no caption, an empty one, or a damaged picture.
    """
    captions = [caption.strip() for caption in captions]
    if not captions or not all(captions):
        raise ValueError("no caption" if not captions else "an empty caption")
    target = picture(data, "target", "target", path, options)
    texts = dict.fromkeys(captions)  # the same one twice is one
    return worded(
        name,
        "t2i",
        [(Segment("text", text=text, role="prompt"), target) for text in texts],
        options,
    )


def worded(
    name: str, kind: str, wordings: Sequence[Sequence[Segment]], options: Options
) -> list[NamedExample]:
    """Makes examples of several wordings of one lesson, or of one of them, drawn by its name.

    Raises:
      ValueError: a text names a picture as a JSONL's sentences do, which these formats do not.
    """
    for segment in itertools.chain.from_iterable(wordings):
        if place := PLACE.search(segment.text):
            raise ValueError(f"{place.group()!r} in a text: only a JSONL's sentences hold pictures")
    numbers = range(len(wordings))
    if options.wordings == "one":
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        numbers = [int.from_bytes(digest) % len(wordings)]
    names = [name if len(wordings) == 1 else f"{name}-{n}" for n in numbers]
    facts = {"kind": kind, "source": options.name, "licence": options.licence}
    made = [
        Example(own, tuple(wordings[n]), **facts) for own, n in zip(names, numbers, strict=True)
    ]
    for example in made:
        check(example)
    return [(options.split, example) for example in made]


def stem(path: str | Path, source: str | Path) -> str:
    """A file's path below its source without its last suffix: the beginning of its records' ids."""
    path, source = Path(path), Path(source)
    below = Path(path.name) if path == source else path.relative_to(source)
    return below.with_suffix("").as_posix()


def files(path: Path, suffixes: Iterable[str], what: str) -> list[Path]:
    """Returns a file itself, or all files of these suffixes below a folder, sorted.

    Raises:
      ValueError: there are none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in tuple(suffixes))
    if not found:
        raise ValueError(f"{path}: {'no' if path.is_dir() else 'no such folder, so no'} {what}")
    return found


def fingerprint(*facts) -> str:
    """A short digest of what a part depends on."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def file_facts(path: Path) -> tuple:
    """What changes when a file does: name, size, time of its last change."""
    status = path.stat()
    return (str(path), status.st_size, status.st_mtime_ns)
