"""Whether a drawing is what its sentence asked for: a comparison of pixels, no model.

    identity    at each place, the right one of all candidates explains the drawing best
    sharp       the same without tolerance for blur
    relation    for each two objects: they stand where they should rather than the other way round
                (half right where a drawing cannot tell: a picture of one colour is left to chance),
                and who should stand in front hides the other rather than the other way round; both
                have to be so, which chance gives a quarter of such pairs
    count       of an object that should stand there several times: every copy is there, no other
                candidate explains them all better, and it stands nowhere else
    attribute   of an edit or a second frame: what should have changed has, and every object that
                should be there is

Shifts up to matching.SHIFT pixels, 8% of size and blur that leaves colours and outlines where they
were are forgiven, in all but `sharp`. Copies beyond those that were asked for are not looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from inset_jax.engine import matching
from inset_jax.engine.artwork import COLOURS, Artwork, Thing
from inset_jax.engine.edits import PAINTS
from inset_jax.engine.matching import Scores
from inset_jax.engine.sprites import Look
from inset_jax.engine.world import Scene, show

PRESENT = 0.3  # of what a perfect drawing of an object explains: from here on it is there
BLURS = (0.0, 1.5, 3.0)  # pixels, as which an overlap may be drawn
TURNS = (0, 90, 180, -90)  # degrees between which a tipped object is told


class Verdict(NamedTuple):
    """What was found in one drawing."""

    # at each place (of an edit or a second frame, each that changed) the rank of the right object
    # among the candidates; 0 is first
    ranks: tuple[int, ...]
    sharp_ranks: tuple[int, ...]
    relations: tuple[float, ...]  # of each two different objects, one of which is at such a place
    counts: tuple[bool, ...]  # of each object that stands there several times
    attribute: bool | None  # None where nothing was to change


def judge(
    scene: Scene, drawing: np.ndarray, candidates: Sequence[Thing], artwork: Artwork
) -> Verdict:
    """Judges a drawing.

    Args:
      drawing: uint8 [height, width, 3], drawn for the sentence of `scene`.
      candidates: objects that might stand there, those of the scene among them.

    Raises:
      ValueError: the drawing has another size, or an object of the scene is no candidate.
    """
    names = [thing.name for thing in candidates]
    missing = {scene.things[p.thing].name for p in scene.places} - set(names)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} of the scene: not among the candidates")
    found = matching.score_places(scene, drawing, scene.places, candidates)
    own = [names.index(scene.things[place.thing].name) for place in scene.places]
    new = [n for n, place in enumerate(scene.places) if place not in scene.source_places]
    return Verdict(
        tuple(_rank(found[n].score, own[n]) for n in new),
        tuple(_rank(found[n].sharp, own[n]) for n in new),
        tuple(_relations(scene, drawing, found, own)),
        tuple(_counts(scene, drawing, found, own)),
        _attribute(scene, drawing, artwork) if scene.source is not None else None,
    )


def chance(candidates: int) -> dict[str, float | None]:
    """What drawing at random gets, by column of `outcomes`; None where it is no one figure."""
    one = 1 / candidates
    return {
        "identity": one,
        "sharp identity": one,
        "relation": 1 / 2,
        "count": None,
        "attribute": None,
    }


def outcomes(verdict: Verdict) -> dict[str, list[float]]:
    """What a verdict says, by column: 1.0 for right."""
    return {
        "identity": [float(rank == 0) for rank in verdict.ranks],
        "sharp identity": [float(rank == 0) for rank in verdict.sharp_ranks],
        "relation": list(verdict.relations),
        "count": [float(right) for right in verdict.counts],
        "attribute": [] if verdict.attribute is None else [float(verdict.attribute)],
    }


def _rank(scores: np.ndarray, own: int) -> int:
    return int((scores < scores[own]).sum())


def _relations(scene: Scene, drawing: np.ndarray, found: Sequence[Scores], own: Sequence[int]):
    """For each two places of different objects: 1.0 as they should be, 0.0 better exchanged."""
    new = [place not in scene.source_places for place in scene.places]
    for one, two in itertools.combinations(range(len(own)), 2):
        if own[one] != own[two] and (new[one] or new[two]):
            a, b = found[one].score, found[two].score
            right, wrong = a[own[one]] + b[own[two]], a[own[two]] + b[own[one]]
            beside = 0.5 if right == wrong else float(right < wrong)
            yield min(beside, _in_front(scene, drawing)) if scene.relation == "front" else beside


def _in_front(scene: Scene, drawing: np.ndarray) -> float:
    """1.0 where the overlap of two looks more like the target than with the other one in front.

    Also where what overlaps is empty, as corners of round objects are.
    """
    exchanged = scene.backdrop.copy()
    show(scene._replace(places=scene.places[::-1]), exchanged)
    overlap = (scene.target != exchanged).any(-1)
    soft = lambda picture: [gaussian_filter(picture, (blur, blur, 0)) for blur in BLURS]
    nearest = lambda one: min(_squares(as_soft, drawing, overlap) for as_soft in soft(one))
    return float(nearest(scene.target) <= nearest(exchanged))


def _squares(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Sum of the squared differences of two pictures at bool [height, width]."""
    return float(((one[where].astype(np.float32) - other[where]) ** 2).sum())


def _are_there(scene: Scene, drawing: np.ndarray) -> list[bool]:
    """Whether the right object is at each place, seen beside the drawing's own ground."""
    level = matching.levelled(scene, drawing)
    own = lambda place: [scene.things[place.thing]]
    scores = [matching.score_places(scene, level, [p], own(p))[0] for p in scene.places]
    return [score.strength[0] > PRESENT for score in scores]


def _counts(scene: Scene, drawing: np.ndarray, found: Sequence[Scores], own: Sequence[int]):
    """For each object with several places: it, and no other, is at all of them and nowhere else."""
    if len(set(own)) == len(own):
        return
    there = _are_there(scene, drawing)
    for thing in dict.fromkeys(own):
        at = [place for place, number in enumerate(own) if number == thing]
        if len(at) < 2:
            continue
        others = [(place, number) for place, number in enumerate(own) if number != thing]
        yield (
            _rank(sum(found[place].score for place in at), thing) == 0
            and all(there[place] for place in at)
            and all(found[p].score[thing] < found[p].score[n] for p in at for _, n in others)
            and all(
                found[place].score[number] < found[place].score[thing] for place, number in others
            )
        )


def _attribute(scene: Scene, drawing: np.ndarray, artwork: Artwork) -> bool:
    """What was to change: the ground or a colour is the said one, a turn too; or it is elsewhere.

    ground      nearest in mean colour and spread, of all grounds, where no object stands
    paint       the colour that explains the object best, of all paints and its own colours
    tip         the turn that does, of four
    others      nearer to the target than to the source where these differ
    """
    if not all(_are_there(scene, drawing)):
        return False
    if scene.relation == "ground":
        return _nearest_ground(scene, drawing, artwork) == scene.ground
    if scene.relation in ("paint", "tip"):
        return _nearest_look(scene, drawing)
    changed = (scene.source != scene.target).any(-1)
    new, old = (_squares(picture, drawing, changed) for picture in (scene.target, scene.source))
    return new < old


def _nearest_ground(scene: Scene, drawing: np.ndarray, artwork: Artwork) -> str:
    bare = (scene.target == scene.backdrop).all(-1)
    facts = lambda pixels: np.concatenate([pixels.mean(0), pixels.std(0)])
    ours = facts(drawing[bare].astype(np.float32))
    known = {name: np.array([*colour, 0, 0, 0]) for name, colour in COLOURS.items()}
    known |= {name: facts(own.reshape(-1, 3)) for name, own in artwork.grounds.items()}
    return min(known, key=lambda name: float(((known[name] - ours) ** 2).sum()))


def _nearest_look(scene: Scene, drawing: np.ndarray) -> bool:
    """Whether a painted or tipped object is what was asked for rather than something else."""
    old = {place.thing: place for place in scene.source_places}
    changed = [place for place in scene.places if old.get(place.thing) != place]
    place = changed[0]
    thing = scene.things[place.thing]
    if scene.relation == "tip":
        options = [(thing, place._replace(turn=turn)) for turn in TURNS]
        right = options[TURNS.index(place.turn)]
    else:
        paints = [COLOURS[name] for name in PAINTS]
        looks = [Look(thing.look.mirrored, thing.look.bands, paint) for paint in (None, *paints)]
        options = [(thing._replace(look=look), place) for look in looks]
        right = next(option for option in options if option[0].look == thing.look)
    scores = [_alone(scene, drawing, place, *option) for option in options]
    return scores[options.index(right)] == min(scores)


def _alone(scene: Scene, drawing: np.ndarray, place, thing: Thing, as_place) -> float:
    """Score of one thing, as it might look, at a place of the scene."""
    things = [thing if n == place.thing else own for n, own in enumerate(scene.things)]
    places = [as_place if own == place else own for own in scene.places]
    shown = scene._replace(things=tuple(things), places=tuple(places))
    return float(matching.score_places(shown, drawing, [as_place], [thing])[0].score[0])
