"""The artwork of the small world: cut-out objects and photographs to put them on.

A folder of artwork holds `objects.webp` (an atlas of square sprites with alpha, row by row),
`objects.json` (one row a sprite: name, noun, look-alike group, split) and `grounds/*.jpg`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.engine.layouts import LARGEST
from inset_jax.engine.sprites import Look, Sprite

SPRITE = 64  # pixels a side of a sprite in the atlas
SPLITS = ("train", "validation")
COLOURS = {  # plain grounds, and paints
    "white": (246, 246, 246),
    "black": (28, 28, 30),
    "red": (206, 60, 56),
    "orange": (240, 150, 50),
    "yellow": (246, 216, 90),
    "green": (84, 168, 88),
    "blue": (66, 120, 208),
    "purple": (140, 90, 180),
    "pink": (244, 176, 196),
    "grey": (150, 152, 156),
}


class Thing(NamedTuple):
    """An object that scenes are made of."""

    name: str  # unique
    noun: str  # how a sentence calls it
    group: str  # objects of one group look alike and stand in one split
    sprite: Sprite  # SPRITE x SPRITE
    look: Look = Look()


class Artwork:
    """What a world is drawn with."""

    def __init__(self, things: dict[str, list[Thing]], grounds: dict[str, np.ndarray]):
        """Args:
        things: split -> objects.
        grounds: name -> photograph, uint8 [height, width, 3].
        """
        self.things, self.grounds = things, grounds
        self.halves = {
            name: np.asarray(Image.fromarray(photograph).reduce(2))
            for name, photograph in grounds.items()
        }
        self._colours: dict[str, Sequence[float]] = dict(COLOURS)
        self._colours |= {name: np.mean(p, (0, 1)).tolist() for name, p in grounds.items()}

    def ground_colour(self, name: str) -> Sequence[float]:
        """Mean red, green and blue of a photograph or a plain ground."""
        return self._colours[name]


def load(folder) -> Artwork:
    """Reads a folder of artwork.

    Raises:
      ValueError: a file is missing, a ground is too small, or the table of objects does not fit the
        atlas or the rules (unique names, known splits, no look-alike group in two splits).
    """
    folder = pathlib.Path(folder)
    for name in ("objects.webp", "objects.json", "grounds"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: no {name} there; it is no folder of artwork")
    atlas = Image.open(folder / "objects.webp").convert("RGBA")
    rows = json.loads((folder / "objects.json").read_text())
    columns, lines = atlas.width // SPRITE, atlas.height // SPRITE
    if len(rows) > columns * lines:
        raise ValueError(
            f"{folder}/objects.json: {len(rows)} objects, but the atlas of "
            f"{atlas.width}x{atlas.height} pixels has {columns * lines} sprites"
        )
    _check(rows, folder / "objects.json")
    things: dict[str, list[Thing]] = {split: [] for split in SPLITS}
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        left, top = column * SPRITE, line * SPRITE
        sprite = atlas.crop((left, top, left + SPRITE, top + SPRITE))
        things[row["split"]].append(Thing(row["name"], row["noun"], row["group"], Sprite(sprite)))
    files = sorted((folder / "grounds").glob("*.jpg"))
    grounds = {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in files}
    for file in files:
        height, width = grounds[file.stem].shape[:2]
        if min(height, width) < LARGEST:
            raise ValueError(
                f"{file}: {width}x{height} pixels, expected {LARGEST} a side at least, as the "
                "largest pictures of the world have"
            )
    return Artwork(things, grounds)


def _check(rows: list[dict], file: pathlib.Path) -> None:
    names, split_of_group = set(), {}
    for row in rows:
        if row["name"] in names:
            raise ValueError(f"{file}: two objects are called {row['name']!r}")
        if row["split"] not in SPLITS:
            raise ValueError(f"{file}: {row['name']!r} has split {row['split']!r}, not {SPLITS}")
        if split_of_group.setdefault(row["group"], row["split"]) != row["split"]:
            raise ValueError(
                f"{file}: look-alike group {row['group']!r} lies in both splits; what is held out "
                "must be held out by group"
            )
        names.add(row["name"])
