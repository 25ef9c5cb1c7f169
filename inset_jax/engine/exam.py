"""The sentences that a model is examined with: held-out objects, a row a number of references."""

from __future__ import annotations

from inset_jax.engine.artwork import Artwork
from inset_jax.engine.layouts import MOST
from inset_jax.engine.stage import WorldConfig
from inset_jax.engine.world import KINDS, Scene, draw_scene

SEED = 1  # not that of the records: their held-out scenes choose checkpoints
REFERENCES = {f"{count} reference{'s' * (count > 1)}": count for count in range(1, MOST + 1)}
ROWS = (*REFERENCES, "counts", "editing", "frames")


def scenes(artwork: Artwork, row: str, count: int) -> list[Scene]:
    """Draws the scenes of a row of ROWS, from objects that no training scene shows.

    Raises:
      ValueError: there is no such row.
    """
    if row not in ROWS:
        raise ValueError(f"row {row!r}: there are {', '.join(ROWS)}")
    kind = {"editing": "editing", "frames": "video-interleaved"}.get(row, "image-interleaved")
    kinds = tuple(float(name == kind) for name in KINDS)
    if row in REFERENCES:
        weights = tuple(float(n == REFERENCES[row]) for n in range(1, MOST + 1))
        config = WorldConfig(objects=weights, kinds=kinds, counts=0.0)
    elif row == "counts":
        config = WorldConfig(objects=(0.0, *[1.0] * (MOST - 1)), kinds=kinds, counts=1.0)
    else:
        config = WorldConfig(kinds=kinds)
    return [draw_scene(artwork, "validation", SEED, number, config) for number in range(count)]
