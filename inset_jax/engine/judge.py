"""Which object stands at each place of a drawing: a plain comparison of pixels.

Every candidate is put on the true ground at the true place; the one whose pixels are nearest wins.
It forgives blur that leaves colours and outlines where they were, and nothing else: an object a few
pixels off, or of another size, is judged as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.engine.artwork import Thing
from inset_jax.engine.stage import Place
from inset_jax.engine.world import Scene, put

MARGIN = 2  # pixels around an object that count


class Verdict(NamedTuple):
    """What was found at one place."""

    rank: int  # of the right object among the candidates; 0 is first
    in_order: bool  # nearer to its own object than to the other one of the scene


def judge(scene: Scene, drawing: np.ndarray, candidates: Sequence[Thing]) -> list[Verdict]:
    """Judges the places of a scene; scenes of one object are in order by definition.

    Args:
      drawing: uint8 [canvas, canvas, 3], drawn for the sentence of `scene`.
      candidates: objects that might stand there, those of the scene among them.
    """
    names = [thing.name for thing in candidates]
    verdicts = []
    for at, place in enumerate(scene.places):
        thing = scene.things[place.thing]
        distance = _distances(scene, drawing, place, candidates)
        own = distance[names.index(thing.name)]
        others = [
            distance[names.index(scene.things[other.thing].name)]
            for n, other in enumerate(scene.places)
            if n != at and other.thing != place.thing
        ]
        rank = int(np.sum(distance < own))
        verdicts.append(Verdict(rank, all(own < other for other in others)))
    return verdicts


def _distances(
    scene: Scene, drawing: np.ndarray, place: Place, candidates: Sequence[Thing]
) -> np.ndarray:
    """Mean squared difference to each candidate around a place: float [candidate]."""
    reach = place.side // 2 + MARGIN
    rows = slice(max(place.y - reach, 0), place.y + reach)
    columns = slice(max(place.x - reach, 0), place.x + reach)
    ours = drawing[rows, columns].astype(np.float32)
    distance = []
    for thing in candidates:
        canvas = scene.backdrop.copy()
        put(canvas, thing, place)
        theirs = canvas[rows, columns].astype(np.float32)
        distance.append(np.mean((ours - theirs) ** 2))
    return np.array(distance)
