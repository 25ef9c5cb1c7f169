"""Records made of records: the same examples, changed or left out, shard by shard.

`build.build_records` makes a new folder of such a source as of any other: in parallel, restartable,
what cannot be read named and left out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from inset_jax.core.config import Config
from inset_jax.data import image, prepare, shards
from inset_jax.data.record import Example, Segment
from inset_jax.data.sources.base import NamedExample, Part, Row, file_facts, fingerprint

ONE_TO_ONE = 1  # rows a shard: each shard of the source becomes one


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A folder of records (`FOLDER` or `FOLDER#SPLIT`) as a source; a shard is a part."""

    folder: str

    def parts(self, most: int) -> list[Part]:
        found = []
        for shard in shards.list_shards(self.folder):
            place = (str(shard.path), shard.split, shard.first, shard.count)
            # one that is gone is a reject when it is read, not the end of the work
            facts = file_facts(shard.path) if shard.path.exists() else ()
            found.append(Part(str(shard.path), place, fingerprint(facts), shard.count))
        return found

    def rows(self, part: Part) -> Iterator[Row]:
        for number, example in self.examples(part):
            where = f"{part.name}: record {number}"
            yield Row(where, partial(self.make, part, number, example))

    def examples(self, part: Part) -> Iterator[tuple[int, Example | ValueError]]:
        """Reads a shard; numbers are those in the shard."""
        return shards.examples_of(shards.Shard(Path(part.place[0]), *part.place[1:]))

    def make(self, part: Part, number: int, example: Example | ValueError) -> list[NamedExample]:
        """Changes one example.

        Raises:
          ValueError: it cannot be read, or the reason why it is left out.
        """
        if isinstance(example, ValueError):
            raise example
        return [(part.place[1], self.change(example))]

    def change(self, example: Example) -> Example:
        return example


@dataclasses.dataclass(frozen=True)
class WithoutRejects(Rewrite):
    """Records without those that `validate` rejected."""

    rejects: str  # its file

    def parts(self, most: int) -> list[Part]:
        return [
            part._replace(fingerprint=fingerprint(part.fingerprint, sorted(self._out(part))))
            for part in super().parts(most)
        ]

    def _out(self, part: Part) -> set[int]:
        """Numbers in the shard of the records that go."""
        _, split, first, count = part.place
        time = Path(self.rejects).stat().st_mtime_ns if Path(self.rejects).exists() else 0
        numbers = _rejected(self.rejects, time).get(split, ())
        return {number - first for number in numbers if first <= number < first + count}

    def rows(self, part: Part) -> Iterator[Row]:
        out = self._out(part)
        for number, example in self.examples(part):
            if number not in out:
                where = f"{part.name}: record {number}"
                yield Row(where, partial(self.make, part, number, example))


@functools.cache
def _rejected(file: str, time: int) -> dict[str, list[int]]:
    """Numbers of the records that a file of rejects names, by split; `time` is that of the file."""
    numbers: dict[str, list[int]] = {}
    # not splitlines(): a reason may quote other line separators
    lines = Path(file).read_text(encoding="utf-8").split("\n") if time else []
    for row in map(json.loads, filter(None, lines)):
        if row["record"] is not None:
            numbers.setdefault(row["split"], []).append(row["record"])
    return numbers


@dataclasses.dataclass(frozen=True)
class Rendered(Rewrite):
    """Records whose images have their exact training sizes, as PNG: reading them resizes nothing.

    An image that is read as ViT patches and as latents is then stored twice. One whose size the
    resizing rule would not leave alone when it meets it again stays as it is. The pixels that a
    pack gets are the same as before, to the bit.
    """

    config: Config

    def change(self, example: Example) -> Example:
        images = prepare.sharing(example)
        decoded: dict[int, object] = {}
        rendered: dict[tuple[int, int, int], bytes] = {}
        segments = []
        for number, segment in enumerate(example.segments):
            if segment.kind != "text":
                key = id(segment.image)
                if key not in decoded:
                    name = f"{example.id}: image of segment {number}"
                    decoded[key] = image.load(segment.image, name)
                segment = self._render(segment, decoded[key], images, rendered)
            segments.append(segment)
        return dataclasses.replace(example, segments=tuple(segments))

    def _render(self, segment: Segment, decoded, images: int, rendered: dict) -> Segment:
        width, height = prepare.training_size(segment, self.config, images)
        exact = dataclasses.replace(segment, width=width, height=height)
        again = prepare.training_size(exact, self.config, images)
        if (width, height) == decoded.size or again != (width, height):
            return segment
        key = (id(segment.image), width, height)
        if key not in rendered:
            pixels = image.resize_to(decoded, width, height)
            rendered[key] = image.encode(image.Image.fromarray(pixels), "png")
        return dataclasses.replace(exact, image=rendered[key])
