"""Changes of a scene: editing examples, and pairs of frames in which objects move.

The objects that a sentence shows are references as everywhere; the picture before the change is the
source of an edit, or the first of two frames.
"""

from __future__ import annotations

from typing import NamedTuple

from inset_jax.engine import layouts, phrases
from inset_jax.engine.artwork import COLOURS
from inset_jax.engine.layouts import Layout
from inset_jax.engine.stage import Change, Content, Place, Stage

MOST_OBJECTS = 4  # of a scene that is changed
PAINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
TIPPED = {"left": 90, "right": -90}  # degrees

REPLACE = ("Replace the {0} by a {1}.", "Put a {1} where the {0} is.", "Swap the {0} for a {1}.")
REMOVE = ("Remove the {0}.", "Take the {0} away.", "The same without the {0}.")
ADD = ("Add a {{0}} {}.", "Put a {{0}} {}.", "The same with a {{0}} {}.")
GROUND = ("Make it {ground}.", "Put everything on {ground}.", "Change the ground to {ground}.")
PAINT = ("Paint the {{0}} {}.", "Make the {{0}} {}.", "The same with the {{0}} in {}.")
MOVE = ("The {{0}} moves {}.", "Now the {{0}} is {}.")
SWAP = ("The {0} and the {1} change places.", "The {0} and the {1} swap places.")
TIP = ("The {{0}} tips over to the {}.", "The {{0}} falls to the {}.")


def edited(stage: Stage) -> Change:
    """Draws an edit: a source, a sentence, and the target."""
    return stage.draws.pick((_replace, _add, _remove, _ground, _paint))(stage)


def frames(stage: Stage) -> Change:
    """Draws two frames of the same objects and a sentence that says what happened."""
    return stage.draws.pick((_move, _swap, _tip))(stage)


def _start(stage: Stage, fewest: int = 1) -> tuple[Content, int]:
    """Draws a scene that is to be changed, and which of its objects changes."""
    count = max(stage.count(MOST_OBJECTS), fewest)
    content = stage.lay_out(count).after
    return content, stage.draws.whole(0, count - 1)


def _change(relation: str, sentence: str, order: list[int], after: Content, before: Content):
    """A change whose sentence shows the objects `order`: they are numbered anew, they first."""
    order = order + [n for n in range(len(after.things)) if n not in order]
    new = {old: number for number, old in enumerate(order)}
    things = tuple(after.things[old] for old in order)
    renumbered = [
        content._replace(
            things=things,
            places=tuple(place._replace(thing=new[place.thing]) for place in content.places),
        )
        for content in (after, before)
    ]
    return Change(relation, sentence, *renumbered)


def _at(content: Content, number: int, **changes) -> tuple[Place, ...]:
    """The places with those of one object changed."""
    return tuple(p._replace(**changes) if p.thing == number else p for p in content.places)


def _replace(stage: Stage) -> Change:
    before, number = _start(stage)
    new = len(before.things)
    things = (*before.things, stage.thing())
    before = before._replace(things=things)
    after = before._replace(places=_at(before, number, thing=new))
    return _change("replace", stage.draws.pick(REPLACE), [number, new], after, before)


def _without(content: Content, number: int) -> Content:
    return content._replace(places=tuple(p for p in content.places if p.thing != number))


def _add(stage: Stage) -> Change:
    """The target is an ordinary scene; the source lacks one of its objects."""
    count = max(stage.count(MOST_OBJECTS), 2)
    if count == 2:
        relation = stage.draws.pick(list(layouts.STEPS))
        layout = layouts.pair(relation, stage.draws)
        where = f"{stage.draws.pick(phrases.RELATIONS[relation])} the {{1}}"
        order = [0, 1]
    else:
        layout, where, *_ = _spots(stage, count)
        order = [0]
    after = stage.fill(layout).after
    sentence = stage.draws.pick(ADD).format(where)
    return _change("add", sentence, order, after, _without(after, 0))


class _Spots(NamedTuple):
    """A layout on named spots, and a spot that is free."""

    layout: Layout
    first: str  # name of the first object's spot
    free: str
    free_centre: tuple[float, float]


def _spots(stage: Stage, count: int) -> _Spots:
    draws = stage.draws
    shape = draws.pick(layouts.SHAPES[max(count, 3)])
    centres, names = layouts.some_spots(shape, count + 1, draws)
    layout = Layout("spots", shape, centres[:-1], list(range(count)), "")
    return _Spots(layout, names[0], names[-1], centres[-1])


def _remove(stage: Stage) -> Change:
    before, number = _start(stage, fewest=2)
    after = _without(before, number)
    return _change("remove", stage.draws.pick(REMOVE), [number], after, before)


def _ground(stage: Stage) -> Change:
    before, _ = _start(stage)
    after = before._replace(ground=stage.ground(before.things, before.ground))
    return _change("ground", stage.draws.pick(GROUND), [], after, before)


def _paint(stage: Stage) -> Change:
    """The painted object is a thing of its own, after the one it was."""
    before, number = _start(stage)
    colour = stage.draws.pick([name for name in PAINTS if stage.tells(name, before.ground)])
    painted = before.things[number]
    painted = painted._replace(look=painted.look._replace(paint=COLOURS[colour]))
    new = len(before.things)
    before = before._replace(things=(*before.things, painted))
    after = before._replace(places=_at(before, number, thing=new))
    return _change("paint", stage.draws.pick(PAINT).format(colour), [number], after, before)


def _move(stage: Stage) -> Change:
    """One of two goes to another side of the other, or one of several to a free spot."""
    draws = stage.draws
    count = max(stage.count(MOST_OBJECTS), 2)
    if count == 2:
        shape = (2, 2)
        still = layouts.centre_of(shape, draws.pick(layouts.all_spots(shape)))
        beside = layouts.beside(shape, still)
        first, then = draws.order(list(beside))
        layout, centre = Layout(first, shape, [beside[first], still], [0, 1], ""), beside[then]
        where, order = f"{draws.pick(phrases.RELATIONS[then])} the {{1}}", [0, 1]
    else:
        layout, _, where, centre = _spots(stage, count)
        order = [0]
    before = stage.fill(layout).after
    goal = stage.place(0, layout, centre)
    after = before._replace(places=_at(before, 0, x=goal.x, y=goal.y))
    return _change("move", draws.pick(MOVE).format(where), order, after, before)


def _swap(stage: Stage) -> Change:
    before, one = _start(stage, fewest=2)
    others = [n for n in range(len(before.things)) if n != one]
    two = stage.draws.pick(others)
    at = {place.thing: (place.x, place.y) for place in before.places}
    at[one], at[two] = at[two], at[one]
    places = tuple(p._replace(x=at[p.thing][0], y=at[p.thing][1]) for p in before.places)
    after = before._replace(places=places)
    return _change("swap", stage.draws.pick(SWAP), [one, two], after, before)


def _tip(stage: Stage) -> Change:
    before, number = _start(stage)
    way = stage.draws.pick(list(TIPPED))
    after = before._replace(places=_at(before, number, turn=TIPPED[way]))
    return _change("tip", stage.draws.pick(TIP).format(way), [number], after, before)
