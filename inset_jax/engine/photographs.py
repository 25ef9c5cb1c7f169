"""Photographs as a person has them: one object of the artwork, small and off the middle.

What a person's own picture does to the model has two halves: whether the object is found in it
(`cutting`), and whether its crop is as good a reference as the world's own. These photographs say
where the object is, so that both can be measured (`python -m tools.own_pictures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.data.keyed import keyed
from inset_jax.engine import cutting, sprites, world
from inset_jax.engine.artwork import Artwork, Thing
from inset_jax.engine.draws import Draws
from inset_jax.engine.stage import TURN_STEP
from inset_jax.engine.world import Scene

SIDE = (192, 320)  # pixels of a photograph's width, and of its height
FILLED = (1 / 3, 1 / 2)  # of the shorter one, by the object's side
EDGE = 0.05  # of it: how near to the border the object comes
OFF = 0.15  # of each side: how far the object's middle is off the photograph's, at least
MOST_TURN = 20  # degrees
LIGHT = 0.2  # how much brighter, darker, tinted; as references of the world
FALL = 0.3  # how much darker one side is than the other, at most
NOISE = 3.0  # levels, standard deviation
FOUND = 0.5  # overlap with the true box from which on an object counts as found
PLAIN = "plain"  # the name of grounds of one colour


class Photograph(NamedTuple):
    """A photograph, and what is known of it."""

    picture: Image.Image  # RGB
    shown: np.ndarray  # bool [height, width]: where the object is to be seen
    ground: str  # name of the photograph behind the object, or PLAIN


def draw(artwork: Artwork, thing: Thing, seed: int, number: int) -> Photograph:
    """Draws photograph `number` of a seed: half of them on a plain ground."""
    draws = Draws("photograph", seed, number, thing.name)
    width, height = (draws.whole(*SIDE) for _ in range(2))
    name = draws.pick(sorted(artwork.grounds)) if draws.chance(0.5) else PLAIN
    canvas = _ground(artwork, name, (width, height), draws)
    shorter = min(width, height)
    side = round(shorter * draws.between(*FILLED))
    x, y = (
        _off_middle(length, side // 2 + round(EDGE * shorter), draws)
        for length in canvas.shape[1::-1]
    )
    most = MOST_TURN // TURN_STEP
    pixels = sprites.render(thing.sprite, thing.look, side, TURN_STEP * draws.whole(-most, most))
    sprites.put(canvas, pixels, x, y)
    shown = np.zeros_like(canvas)
    sprites.put(shown, pixels._replace(colour=255 - pixels.through), x, y)
    lit = world.lit(canvas, LIGHT, draws) * _fall(width, height, draws)
    noise = keyed("photograph", seed, thing.name, number).normal(0, NOISE, lit.shape)
    picture = Image.fromarray(np.clip(lit + noise, 0, 255).astype(np.uint8))
    return Photograph(picture, shown[..., 0] > 127, name)


def _ground(artwork: Artwork, name: str, size: tuple[int, int], draws: Draws) -> np.ndarray:
    """A colour, or a cut from a photograph that is enlarged to the longest side."""
    width, height = size
    if name == PLAIN:
        return np.full((height, width, 3), [draws.whole(60, 255) for _ in range(3)], np.uint8)
    large = Image.fromarray(artwork.grounds[name]).resize((SIDE[1],) * 2, Image.Resampling.BICUBIC)
    left, top = (draws.whole(0, SIDE[1] - length) for length in size)
    return np.array(large.crop((left, top, left + width, top + height)))


def _off_middle(length: int, room: int, draws: Draws) -> int:
    """A coordinate away from the middle, at least `room` from both ends."""
    least, most = round(OFF * length), length // 2 - room
    return length // 2 + draws.sign() * draws.whole(min(least, most), most)


def _fall(width: int, height: int, draws: Draws) -> np.ndarray:
    """Light that falls off along one direction: float [height, width, 1]."""
    darker, angle = draws.between(0, FALL), draws.between(0, 2 * np.pi)
    across = np.cos(angle) * np.linspace(-0.5, 0.5, width)
    down = np.sin(angle) * np.linspace(-0.5, 0.5, height)
    return 1 - darker * (0.5 + (down[:, None] + across) / np.sqrt(2))[..., None]


def overlap(one: tuple, two: tuple) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width, height = (min(one[n + 2], two[n + 2]) - max(one[n], two[n]) for n in range(2))
    both = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return both / (area(one) + area(two) - both)


def by_hand(photograph: Photograph) -> cutting.Cut:
    """The cut of a person who names the object's box."""
    return cutting.Cut(cutting.square(cutting.bounds(photograph.shown)), None)


class Kinds(NamedTuple):
    """Scenes with references from photographs in place of their own."""

    scenes: dict[str, list[Scene]]  # the kind of references, one of KINDS -> scenes
    cuts: list[tuple[str, float]]  # of each photograph: its ground, and what `find_in` says of it


KINDS = ("cut out", "cut out by hand", "whole photographs")


def find_in(photograph: Photograph) -> tuple[cutting.Cut | None, float]:
    """What `cutting.find` finds, None for nothing, and the overlap of its box with the true one."""
    try:
        cut = cutting.find(photograph.picture)
    except ValueError:
        return None, 0.0
    return cut, overlap(cut.box, by_hand(photograph).box)


def in_scenes(artwork: Artwork, scenes: Sequence[Scene], seed: int) -> Kinds:
    """Puts each scene's objects into photographs, and these or cuts of them into its sentence.

    An object that is not found is shown by its whole photograph.
    """
    found = Kinds({kind: [] for kind in KINDS}, [])
    for number, scene in enumerate(scenes):
        references = []
        for thing in scene.things[: len(scene.references)]:
            photograph = draw(artwork, thing, seed, number)
            cut, share = find_in(photograph)
            found.cuts.append((photograph.ground, share))
            whole = photograph.picture
            hand = cutting.crop(whole, by_hand(photograph))
            pictures = whole if cut is None else cutting.crop(whole, cut), hand, whole
            references.append([np.asarray(picture) for picture in pictures])
        for at, kind in enumerate(KINDS):
            own = tuple(pictures[at] for pictures in references)
            found.scenes[kind].append(scene._replace(references=own))
    return found


def quality(cuts: Sequence[tuple[str, float]]) -> list[dict]:
    """The mean overlap and the share of objects found, by ground and of all."""
    grounds = {name: [share for own, share in cuts if own == name] for name, _ in sorted(cuts)}
    return [
        {
            "ground": name,
            "photographs": len(own),
            "found": float(np.mean(np.array(own) >= FOUND)),
            "overlap": float(np.mean(own)),
        }
        for name, own in (grounds | {"all": [share for _, share in cuts]}).items()
    ]
