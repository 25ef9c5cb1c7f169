"""What stands on a scene's ground, before a pixel is drawn: objects, places, sizes, the ground."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inset_jax.engine import layouts, phrases
from inset_jax.engine.artwork import COLOURS, Artwork, Thing
from inset_jax.engine.draws import Draws
from inset_jax.engine.layouts import CELL, LARGEST, MOST, Layout
from inset_jax.engine.sprites import Look

TURN_STEP = 5  # degrees between two turns that occur
GROUNDS_TRIED = 3
MOST_TRIES = 10_000  # objects drawn for one place
CONTRAST = 60.0  # levels, over the three channels, between a ground and an object's mean colour


@dataclass(frozen=True)
class WorldConfig:
    """What scenes look like. Lengths in pixels, ranges include both ends, shares are of scenes.

    How large an object is and where it stands, its sentence tells: ranges of one number. Where no
    word told them, most of what a small model learned was to guess them (docs/lab_log.md). Turns
    are not told.
    """

    objects: tuple[float, ...] = (0.12, 0.28, 0.15, 0.13, 0.1, 0.09, 0.07, 0.06)  # how many: 1 to 8
    kinds: tuple[float, ...] = (0.78, 0.06, 0.08, 0.05, 0.03)  # of world.KINDS
    relations: tuple[str, ...] = tuple(phrases.PAIRS)  # of scenes of two, some of them
    ways: tuple[str, ...] = layouts.WAYS  # of scenes of more, some of them
    phrasings: int = phrases.MOST_PHRASINGS  # of one, each relation, spots, chains: at most so many
    reference: int = 32  # side of a reference picture,
    filled: tuple[float, float] = (0.76, 0.94)  # of it by the object's side,
    shifted: float = 1.0  # how much of the room that leaves its middle may be off
    cut_off: float = 0.15  # share of references that leave a part of the object outside
    most_cut: float = 0.2  # of its side, at most
    side: tuple[int, int] = (26, 26)  # of one object of several
    small_side: tuple[int, int] = (17, 17)  # of one that is said to be small, or big
    big_side: tuple[int, int] = (30, 30)
    alone: float = 1.55  # a single object is so much larger
    behind_side: tuple[int, int] = (36, 36)  # of an object that stands behind another,
    before_side: tuple[int, int] = (26, 26)  # and of that other
    jitter: int = 0  # of an object's middle
    turned: float = 0.25  # share of scenes whose objects are turned,
    most_turn: int = 15  # each by so many degrees at most,
    reference_turn: int = 10  # and every reference
    photographs: float = 0.25  # share of scenes, and of references, on a photograph
    sizes: float = 0.15  # share whose objects are said to be small or big
    counts: float = 0.15  # share in which several objects are copies of one
    light: float = 0.2  # how much a reference may be brighter, darker, tinted


_SHARE, _SIDE, _TURN = (0, 1), (1, 2 * CELL), (0, 180)  # a side: within the smallest canvas
_SHARES = ("shifted", "cut_off", "turned", "photographs", "sizes", "counts", "light")
BOUNDS = {  # lowest and highest value of a field, both allowed; a pair's first is its lower one
    **dict.fromkeys(_SHARES, _SHARE),
    **dict.fromkeys(("side", "small_side", "big_side", "behind_side", "before_side"), _SIDE),
    **dict.fromkeys(("most_turn", "reference_turn"), _TURN),
    "phrasings": (1, phrases.MOST_PHRASINGS),
    "reference": (8, LARGEST),
    "filled": (0.1, 1),
    "most_cut": (0, 0.5),
    "alone": (0.1, 2 * CELL),
    "jitter": (0, 2 * CELL),
}


def check(config: WorldConfig) -> None:
    """Refuses a world that cannot be drawn as it is described.

    Raises:
      ValueError: a value outside BOUNDS, a pair in the wrong order, no relation, one that does not
        exist or that is named twice, a single object larger than its picture.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in BOUNDS:
            continue
        low, high = BOUNDS[field.name]
        pair = value if isinstance(value, tuple) else (value, value)
        if not low <= pair[0] <= pair[1] <= high:  # nor is NaN
            first = ", the first not above the second" if pair is value else ""
            raise ValueError(f"{field.name}={_plain(value)}: expected {low} to {high}{first}")
    for name, known in (("relations", list(phrases.PAIRS)), ("ways", layouts.WAYS)):
        found = getattr(config, name)
        if not found or set(found) - set(known) or len(set(found)) < len(found):
            raise ValueError(
                f"{name}={_plain(found)}: expected at least one of {_plain(known)}, none twice"
            )
    sides = [config.side, *(config.small_side, config.big_side) * (config.sizes > 0)]
    alone = [round(config.alone * side) for pair in sides for side in pair]
    if not 1 <= min(alone) <= max(alone) <= 2 * CELL:
        raise ValueError(
            f"alone={config.alone}: a single object has {min(alone)} to {max(alone)} pixels a "
            f"side, expected 1 to {2 * CELL}"
        )


def _plain(value) -> str:
    """A value as it is said on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


class Place(NamedTuple):
    """Where an object stands in a picture. Lengths in pixels."""

    thing: int  # which one it is
    x: int  # of its middle
    y: int
    side: int
    turn: int = 0  # degrees, counterclockwise


class Content(NamedTuple):
    """What a picture shows."""

    shape: tuple[int, int]  # columns and rows of cells
    things: tuple[Thing, ...]
    places: tuple[Place, ...]  # from back to front
    ground: str


class Change(NamedTuple):
    """A sentence, what it asks for and, of an edit or two frames, what was there before."""

    relation: str
    sentence: str  # numbers are those of `after.things`, which `before` shares
    after: Content
    before: Content | None = None


class Stage:
    """Draws the parts of one scene in order; no object twice, nor two that look alike."""

    def __init__(self, artwork: Artwork, config: WorldConfig, split: str, recolour: bool, key):
        """Args:
        recolour: training objects change their colours in half of the scenes, which makes new ones
          of them; not where nouns or named colours are said of them.
        """
        self.config, self.draws = config, Draws(*key)
        self._artwork = artwork
        self._pool = artwork.things[split]
        self._groups: set[str] = set()
        self._varies, self._recolour = split == "train", recolour

    def thing(self) -> Thing:
        """Draws an object, in training perhaps mirrored and in other colours."""
        thing, tries = self.draws.pick(self._pool), 1
        while thing.group in self._groups:
            if tries == MOST_TRIES:
                groups = len({thing.group for thing in self._pool})
                raise ValueError(
                    f"no object is left for a scene after {len(self._groups)} others: the artwork "
                    f"has {groups} look-alike groups in this split"
                )
            thing, tries = self.draws.pick(self._pool), tries + 1
        self._groups.add(thing.group)
        if not self._varies:
            return thing
        mirrored = self.draws.chance(0.5)
        changed = self._recolour and self.draws.chance(0.5)
        bands = tuple(self.draws.order(range(3))) if changed else (0, 1, 2)
        return thing._replace(look=Look(mirrored, bands))

    def ground(self, things: Sequence[Thing], other: str = "") -> str:
        """Draws a ground, not `other`, that no object vanishes on, or the best of a few."""
        photograph = self._artwork.grounds and self.draws.chance(self.config.photographs)
        names = sorted(self._artwork.grounds) if photograph else list(COLOURS)
        tried = self.draws.order([name for name in names if name != other])[:GROUNDS_TRIED]
        contrast = [min(self._contrast(name, thing) for thing in things) for name in tried]
        good = (name for name, value in zip(tried, contrast, strict=True) if value >= CONTRAST)
        return next(good, tried[contrast.index(max(contrast))])

    def _contrast(self, ground: str, thing: Thing) -> float:
        own, under = thing.sprite.colour, self._artwork.ground_colour(ground)
        return sum(abs(own[band] - under[n]) for n, band in enumerate(thing.look.bands))

    def tells(self, colour: str, ground: str) -> bool:
        """Whether something of a colour can be told from a ground."""
        pairs = zip(COLOURS[colour], self._artwork.ground_colour(ground), strict=True)
        return sum(abs(own - under) for own, under in pairs) > 2 * CONTRAST

    def lay_out(self, count: int, counted: bool = False, sized: bool = False) -> Change:
        """Draws a layout of `count` objects, the objects, their places and the ground."""
        said = layouts.Said(self.config.relations, self.config.phrasings, self.config.ways)
        layout = layouts.draw_layout(count, counted, self.draws, said)
        return self.fill(layout, sized)

    def fill(self, layout: Layout, sized: bool = False) -> Change:
        """Draws objects for a layout, and where exactly they stand."""
        count = max(layout.numbers) + 1
        things = tuple(self.thing() for _ in range(count))
        sizes, sentence = [""] * count, layout.sentence
        if sized and layout.relation != "front":
            sizes = [self.draws.pick(phrases.SIZES) for _ in range(count)]
            sentence = phrases.sized(sentence, sizes)
        turned = self.draws.chance(self.config.turned)
        places = [
            self.place(number, layout, centre, sizes[number], turned)
            for number, centre in zip(layout.numbers, layout.centres, strict=True)
        ]
        after = Content(layout.shape, things, tuple(places), self.ground(things))
        return Change(layout.relation, sentence, after)

    def place(self, number: int, layout: Layout, centre, size: str = "", turned: bool = False):
        """Draws where exactly, how large and how much turned an object stands."""
        config, draws = self.config, self.draws
        low, high = {"small": config.small_side, "big": config.big_side, "": config.side}[size]
        if layout.relation == "alone":
            low, high = (round(config.alone * side) for side in (low, high))
        elif layout.relation == "front":
            low, high = config.behind_side if number else config.before_side
        side = draws.whole(low, high)
        most = config.most_turn // TURN_STEP
        turn = TURN_STEP * draws.whole(-most, most) if turned else 0
        x, y = (
            self._jittered(CELL * at, side, CELL * cells)
            for at, cells in zip(centre, layout.shape, strict=True)
        )
        return Place(number, x, y, side, turn)

    def _jittered(self, at: float, side: int, length: int) -> int:
        """A coordinate a little off, with the whole object inside."""
        at = round(at) + self.draws.whole(-self.config.jitter, self.config.jitter)
        return min(max(at, side // 2), length - side + side // 2)

    def count(self, most: int = MOST) -> int:
        """Draws a number of objects."""
        weights = [*self.config.objects, *[0.0] * MOST][:most]
        if not any(weights):  # all scenes of this world have more objects
            return most
        return self.draws.weighted(range(1, most + 1), weights)
