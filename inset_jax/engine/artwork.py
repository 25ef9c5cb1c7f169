"""The artwork of the small world: cut-out objects and photographs to put them on.

A folder of artwork holds `objects.webp` (an atlas of square sprites with alpha, row by row),
`objects.json` (one row a sprite: name, noun, look-alike group, split) and `grounds/*.jpg`.
"""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

SPRITE = 64  # pixels a side of a sprite in the atlas
SPLITS = ("train", "validation")


class Thing(NamedTuple):
    """An object that scenes are made of."""

    name: str  # unique
    noun: str  # how a sentence calls it
    group: str  # objects of one group look alike and stand in one split
    sprite: Image.Image  # RGBA, SPRITE x SPRITE


class Artwork(NamedTuple):
    """What a world is drawn with."""

    things: dict[str, list[Thing]]  # split -> objects
    grounds: dict[str, np.ndarray]  # name -> photograph, uint8 [height, width, 3]


def load(folder) -> Artwork:
    """Reads a folder of artwork.

    Raises:
      ValueError: a file is missing, or the table of objects does not fit the atlas or the rules
        (unique names, known splits, no look-alike group in two splits).
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
        things[row["split"]].append(Thing(row["name"], row["noun"], row["group"], sprite))
    files = sorted((folder / "grounds").glob("*.jpg"))
    grounds = {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in files}
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
