"""A small world: scenes of one to eight objects, and sentences with pictures of them in it.

A scene is a target picture, a sentence, and for each picture in the sentence a reference of the
object: rendered apart, on another ground, in other light, at another size, turned a little, so that
copying pixels is not enough. Every scene is a function of (seed, split, number) alone.

    "A " [axe] " sits to the left of a " [crown] " on grass."      -> 64 x 64 pixels
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inset_jax.engine import edits, phrases, sprites
from inset_jax.engine.artwork import COLOURS, Artwork, Thing
from inset_jax.engine.draws import Draws
from inset_jax.engine.layouts import CELL
from inset_jax.engine.stage import TURN_STEP, Change, Content, Place, Stage, WorldConfig

QUESTION = "What is in "  # of an understanding example, before its picture
KINDS = ("image-interleaved", "video-interleaved", "editing", "t2i", "understanding")
NARROW = 64  # pixels: up to this width a photograph may be shown at half its size


class Scene(NamedTuple):
    """One drawn scene and its words."""

    kind: str  # one of KINDS
    relation: str  # of the layout (layouts.Layout), or what was changed (edits)
    sentence: str  # with {0}, {1}, ... and {ground}; see `phrases`
    ground: str
    things: tuple[Thing, ...]  # those with a picture in the sentence first
    places: tuple[Place, ...]  # of the objects in the target, from back to front
    references: tuple[np.ndarray, ...]  # uint8 [side, side, 3], of the first things
    backdrop: np.ndarray  # uint8 [height, width, 3], the ground before anything stood on it
    target: np.ndarray  # uint8 [height, width, 3]
    source: np.ndarray | None = None  # the picture before a change, of the target's size
    source_places: tuple[Place, ...] = ()

    def pieces(self) -> list[str | int]:
        """The sentence as texts and numbers of `things`, in reading order; no empty texts."""
        return phrases.pieces(self._grounded())

    def words(self) -> str:
        """The sentence with nouns instead of pictures."""
        return phrases.in_words(self._grounded(), [thing.noun for thing in self.things])

    def _grounded(self) -> str:
        return self.sentence.replace("{ground}", ground_words(self.ground))


def draw_scene(
    artwork: Artwork, split: str, seed: int, number: int, config: WorldConfig | None = None
) -> Scene:
    """Draws scene `number` of a split. Held-out objects stand in "validation" scenes alone."""
    config = config or WorldConfig()
    key = (seed, split, number)
    kind = Draws("kind", *key).weighted(KINDS, config.kinds)
    stage = Stage(artwork, config, split, kind not in ("t2i", "understanding"), key)
    if kind == "editing":
        change = edits.edited(stage)
    elif kind == "video-interleaved":
        change = edits.frames(stage)
    else:
        counted, sized = (stage.draws.chance(share) for share in (config.counts, config.sizes))
        change = stage.lay_out(stage.count(), counted, sized)
    return _drawn(artwork, kind, change, stage)


def ground_words(ground: str) -> str:
    """How a sentence calls a ground."""
    if ground not in COLOURS:
        return ground
    article = "an" if ground[0] in "aeiou" else "a"
    return f"{article} {ground} ground"


def show(content: Content | Scene, canvas: np.ndarray, things=None) -> None:
    """Puts the objects of a scene on a canvas, in place.

    Args:
      things: in place of its own, at the same places.
    """
    things = content.things if things is None else things
    for place in content.places:
        put(canvas, things[place.thing], place)


def put(canvas: np.ndarray, thing: Thing, place: Place) -> None:
    """Puts one object on a canvas, in place."""
    pixels = sprites.render(thing.sprite, thing.look, place.side, place.turn)
    sprites.put(canvas, pixels, place.x, place.y)


def _drawn(artwork: Artwork, kind: str, change: Change, stage: Stage) -> Scene:
    draws, after, before = stage.draws, change.after, change.before
    width, height = (CELL * cells for cells in after.shape)
    backdrop = _ground(artwork, after.ground, width, height, draws)
    source, target = None, backdrop.copy()
    show(after, target)
    if before is not None:
        same = before.ground == after.ground
        source = backdrop if same else _ground(artwork, before.ground, width, height, draws)
        source = source.copy()
        show(before, source)
    shown = len(phrases.numbers_in(change.sentence))
    references = tuple(_reference(artwork, thing, stage) for thing in after.things[:shown])
    return Scene(
        kind,
        change.relation,
        change.sentence,
        after.ground,
        after.things,
        after.places,
        references,
        backdrop,
        target,
        source,
        before.places if before else (),
    )


def _ground(artwork: Artwork, name: str, width: int, height: int, draws: Draws) -> np.ndarray:
    """A plain colour, a little off its name, or a cut from a photograph, perhaps mirrored."""
    if name in COLOURS:
        colour = [min(max(value + draws.whole(-6, 6), 0), 255) for value in COLOURS[name]]
        return _plain(colour, width, height)
    halved = width <= NARROW and height <= NARROW and draws.chance(0.5)
    photograph = artwork.halves[name] if halved else artwork.grounds[name]
    top, left = (
        draws.whole(0, have - need)
        for have, need in zip(photograph.shape, (height, width), strict=False)
    )
    cut = photograph[top : top + height, left : left + width]
    return (cut[:, ::-1] if draws.chance(0.5) else cut).copy()


def _plain(colour, width: int, height: int) -> np.ndarray:
    row = np.tile(np.array(colour, np.uint8), width)  # whole rows: NumPy is slow on short ones
    return np.tile(row, (height, 1)).reshape(height, width, 3)


def _reference(artwork: Artwork, thing: Thing, stage: Stage) -> np.ndarray:
    """One object on a ground of its own, a little off the middle and turned, in its own light.

    Of some a part is cut off by the picture's border, as by a crop that was made too tight.
    """
    draws, config = stage.draws, stage.config
    side = config.reference
    if artwork.grounds and draws.chance(config.photographs):
        canvas = _ground(artwork, draws.pick(sorted(artwork.grounds)), side, side, draws)
    else:
        canvas = _plain([draws.whole(60, 255) for _ in range(3)], side, side)
    size = draws.whole(*(round(share * side) for share in config.filled))
    slack = int(config.shifted * ((side - size) // 2))
    x, y = (side // 2 + draws.whole(-slack, slack) for _ in range(2))
    if draws.chance(config.cut_off):
        outside = size * draws.between(config.most_cut / 2, config.most_cut)
        off = draws.sign() * round((side - size) / 2 + outside)
        x, y = (side // 2 + off, y) if draws.chance(0.5) else (x, side // 2 + off)
    most = config.reference_turn // TURN_STEP
    put(canvas, thing, Place(0, x, y, size, TURN_STEP * draws.whole(-most, most)))
    return lit(canvas, config.light, draws)


def lit(picture: np.ndarray, most: float, draws: Draws) -> np.ndarray:
    """Changes contrast, brightness and, by a third as much, the channels' balance."""
    gain = 1 + draws.between(-most, most)
    tint = [gain * (1 + draws.between(-most, most) / 3) for _ in range(3)]
    lift = 128 * (1 + draws.between(-most, most) / 2 - gain)
    rows = picture.reshape(len(picture), -1)  # whole rows: NumPy is slow on short ones
    lit = rows * np.tile(np.array(tint, np.float32), picture.shape[1]) + np.float32(lift)
    return np.clip(lit, 0, 255).astype(np.uint8).reshape(picture.shape)
