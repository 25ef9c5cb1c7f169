"""The sentences that a model is examined with: held-out objects, a row a number of references."""

from __future__ import annotations

import dataclasses

from inset_jax.engine.artwork import Artwork
from inset_jax.engine.layouts import MOST
from inset_jax.engine.stage import WorldConfig
from inset_jax.engine.world import KINDS, Scene, draw_scene

SEED = 1  # not that of the records: their held-out scenes choose checkpoints
REFERENCES = {f"{count} reference{'s' * (count > 1)}": count for count in range(1, MOST + 1)}
ROWS = (*REFERENCES, "counts", "editing", "frames")
APART = 1_000_000  # scenes between the first ones of two rows: no row shares its draws with another


def scenes(artwork: Artwork, row: str, count: int, world: WorldConfig | None = None) -> list[Scene]:
    """Draws the scenes of a row of ROWS, from objects that no training scene shows.

    Args:
      world: the usual one by default; how many objects and of which kind, the row says.

    Raises:
      ValueError: there is no such row.
    """
    if row not in ROWS:
        raise ValueError(f"row {row!r}: there are {', '.join(ROWS)}")
    kind = {"editing": "editing", "frames": "video-interleaved"}.get(row, "image-interleaved")
    kinds = tuple(float(name == kind) for name in KINDS)
    if row in REFERENCES:
        weights = tuple(float(n == REFERENCES[row]) for n in range(1, MOST + 1))
        changes = {"objects": weights, "counts": 0.0}
    elif row == "counts":
        changes = {"objects": (0.0, *[1.0] * (MOST - 1)), "counts": 1.0}
    else:
        changes = {}
    config = dataclasses.replace(world or WorldConfig(), kinds=kinds, **changes)
    first = ROWS.index(row) * APART
    numbers = range(first, first + count)
    return [draw_scene(artwork, "validation", SEED, number, config) for number in numbers]
