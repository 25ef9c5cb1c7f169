"""A small world: scenes of one or two objects, and sentences with pictures of the objects in them.

A scene is a target picture, a sentence, and for each place of the sentence a reference picture of
the object that stands there: rendered apart, on another ground, at another size, turned a little,
so that copying pixels is not enough. Every scene is a function of (seed, split, number) alone.

    "A " [axe] " sits to the left of a " [crown] " on grass."      -> 64 x 64 pixels
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.engine.artwork import SPRITE, Artwork, Thing

COLOURS = {
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

# {0} and {1} are the objects: the first stands at the relation to the second
PHRASES = {
    "left": (
        "A {0} sits to the left of a {1} on {ground}.",
        "A {0} left of a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} on its left.",
        "To the right of a {0} is a {1}, on {ground}.",
    ),
    "right": (
        "A {0} sits to the right of a {1} on {ground}.",
        "A {0} right of a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} on its right.",
        "To the left of a {0} is a {1}, on {ground}.",
    ),
    "above": (
        "A {0} floats above a {1} on {ground}.",
        "A {0} above a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} over it.",
        "Below a {0} is a {1}, on {ground}.",
    ),
    "below": (
        "A {0} lies below a {1} on {ground}.",
        "A {0} below a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} under it.",
        "Above a {0} is a {1}, on {ground}.",
    ),
    "alone": (
        "A {0} on {ground}.",
        "A big {0}, alone on {ground}.",
        "On {ground}, a {0}.",
    ),
}
# where the first object lies from the middle, in units of `distance`; the second lies opposite
OFFSETS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1), "alone": (0, 0)}
QUESTION = "What is in "  # of an understanding example, before its picture
KINDS = ("image-interleaved", "t2i", "understanding")  # names of INSET's mix where it has one


@dataclass(frozen=True)
class WorldConfig:
    """What scenes look like. Lengths in pixels, ranges include both ends."""

    canvas: int = 64
    reference: int = 48  # side of a reference picture
    pair_side: tuple[int, int] = (26, 29)  # objects of a scene of two
    alone_side: tuple[int, int] = (38, 44)
    distance: int = 16  # of a pair's objects from the middle
    jitter: int = 1
    turn: float = 12.0  # degrees, most a reference is turned
    photographs: float = 0.25  # share of scenes on a photograph instead of a colour
    alone: float = 0.25  # share of scenes with one object
    shares: tuple[float, ...] = (0.88, 0.08, 0.04)  # of KINDS


class Place(NamedTuple):
    """Where an object stands in a picture, in pixels."""

    x: int  # of its centre
    y: int
    side: int


class Scene(NamedTuple):
    """One drawn scene and its words."""

    kind: str  # one of KINDS
    relation: str  # a key of PHRASES
    things: tuple[Thing, ...]  # in the order of the phrase
    places: tuple[Place, ...]  # of the things in the target
    ground: str
    phrase: str  # a template of PHRASES
    references: tuple[np.ndarray, ...]  # uint8 [side, side, 3], one a thing
    backdrop: np.ndarray  # uint8 [canvas, canvas, 3], the ground before anything stood on it
    target: np.ndarray  # uint8 [canvas, canvas, 3]

    def pieces(self) -> list[str | int]:
        """The sentence as texts and numbers of `things`, in reading order; no empty texts."""
        phrase = self.phrase.replace("{ground}", _ground_words(self.ground))
        pieces: list[str | int] = []
        for part in phrase.replace("}", "{").split("{"):
            pieces += [int(part)] if part.isdigit() else [part] * bool(part)
        return pieces

    def words(self) -> str:
        """The sentence with nouns instead of pictures."""
        nouns = [thing.noun for thing in self.things]
        text = "".join(nouns[p] if isinstance(p, int) else p for p in self.pieces())
        for vowel in "aeiou":
            text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
        return text


def draw_scene(
    artwork: Artwork, split: str, seed: int, number: int, config: WorldConfig | None = None
) -> Scene:
    """Draws scene `number` of a split. Held-out objects stand in "validation" scenes alone."""
    config = config or WorldConfig()
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    kind = KINDS[rng.choice(len(KINDS), p=config.shares)]
    alone = rng.random() < config.alone
    relation = "alone" if alone else ("left", "right", "above", "below")[rng.integers(4)]
    choice = rng.choice(len(artwork.things[split]), 1 if alone else 2, replace=False)
    things = tuple(artwork.things[split][n] for n in choice)
    # new identities for training: mirrored, and in other colours where no noun names them
    recolour = split == "train" and kind == "image-interleaved"
    things = tuple(
        thing._replace(sprite=_vary(thing.sprite, rng, recolour, split == "train"))
        for thing in things
    )
    photograph = artwork.grounds and rng.random() < config.photographs
    ground = str(rng.choice(sorted(artwork.grounds if photograph else COLOURS)))
    canvas = _ground(artwork, ground, config.canvas, rng)
    backdrop = np.array(canvas)
    phrase = PHRASES[relation][rng.integers(len(PHRASES[relation]))]
    places = tuple(_choose(relation, at, config, rng) for at in range(len(things)))
    for thing, place in zip(things, places, strict=True):
        paste(canvas, thing.sprite, place)
    references = tuple(_reference(artwork, thing, config, rng) for thing in things)
    target = np.asarray(canvas)
    return Scene(kind, relation, things, places, ground, phrase, references, backdrop, target)


def _ground_words(ground: str) -> str:
    if ground not in COLOURS:
        return ground
    article = "an" if ground[0] in "aeiou" else "a"
    return f"{article} {ground} ground"


def _ground(artwork: Artwork, name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A plain colour, a little off its name, or a cut from a photograph at a third of its size."""
    if name in COLOURS:
        colour = np.clip(np.array(COLOURS[name]) + rng.integers(-6, 7, 3), 0, 255)
        return Image.new("RGB", (side, side), tuple(int(value) for value in colour))
    photograph = artwork.grounds[name]
    cut = min(2 * side, *photograph.shape[:2])
    top, left = (int(rng.integers(0, length - cut + 1)) for length in photograph.shape[:2])
    pixels = photograph[top : top + cut, left : left + cut]
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)


def _vary(sprite: Image.Image, rng: np.random.Generator, recolour: bool, mirror: bool):
    """Mirrors a sprite half of the time, and in half of the cases permutes its colour channels."""
    if mirror and rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recolour and rng.random() < 0.5:
        bands = sprite.split()
        sprite = Image.merge("RGBA", [bands[n] for n in rng.permutation(3)] + [bands[3]])
    return sprite


def _choose(relation: str, at: int, config: WorldConfig, rng: np.random.Generator) -> Place:
    """Where the first (at = 0) or second object of a relation goes, with some jitter."""
    low, high = config.alone_side if relation == "alone" else config.pair_side
    shift = rng.integers(-config.jitter, config.jitter + 1, 2)
    sign = 1 - 2 * at
    x, y = (
        config.canvas // 2 + sign * config.distance * step + int(move)
        for step, move in zip(OFFSETS[relation], shift, strict=True)
    )
    return Place(x, y, int(rng.integers(low, high + 1)))


def paste(canvas: Image.Image, sprite: Image.Image, place: Place, degrees: float = 0.0) -> None:
    """Puts a sprite in its place, scaled and turned."""
    sprite = sprite.resize((place.side, place.side), Image.Resampling.BOX)
    if degrees:
        sprite = sprite.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    left, top = place.x - sprite.width // 2, place.y - sprite.height // 2
    canvas.paste(sprite, (left, top), sprite)


def _reference(artwork: Artwork, thing: Thing, config: WorldConfig, rng) -> np.ndarray:
    """One object on a ground of its own, large, a little off the middle and turned."""
    side = config.reference
    if artwork.grounds and rng.random() < config.photographs / 2:
        ground = str(rng.choice(sorted(artwork.grounds)))
        canvas = _ground(artwork, ground, side, rng)
    else:
        colour = tuple(int(value) for value in rng.integers(60, 256, 3))
        canvas = Image.new("RGB", (side, side), colour)
    size = int(rng.integers(round(0.76 * side), round(0.92 * side) + 1))
    slack = (side - size) // 2
    x, y = (side // 2 + int(rng.integers(-slack, slack + 1)) for _ in range(2))
    degrees = float(rng.uniform(-config.turn, config.turn))
    paste(canvas, thing.sprite, Place(x, y, size), degrees)
    return np.asarray(canvas)


assert SPRITE >= WorldConfig.reference, "references enlarge no sprite"
