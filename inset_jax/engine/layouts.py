"""Where the objects of a scene stand, and the words that say so.

The canvas grows with the number of objects, in cells of CELL pixels, about one an object. A layout
has a place for each object and one sentence in which each picture stands once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inset_jax.engine import phrases
from inset_jax.engine.draws import Draws

CELL = 32
SHAPES = {  # objects -> columns and rows of cells, one of these
    1: ((2, 2),),
    2: ((2, 2),),
    3: ((3, 2), (2, 3)),
    4: ((3, 2), (2, 3)),
    5: ((3, 3),),
    6: ((3, 3),),
    7: ((4, 3), (3, 4)),
    8: ((4, 3), (3, 4)),
}
MOST = max(SHAPES)
LARGEST = CELL * max(cells for shapes in SHAPES.values() for shape in shapes for cells in shape)
COPIES = (2, 3, 4)  # of one object, where a sentence counts
STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
# The middles of two of which one stands in front: on average it hides a tenth of the other.
BEHIND, IN_FRONT = (0.875, 0.84375), (1.25, 1.28125)


class Layout(NamedTuple):
    """Places for objects, and a sentence. Lengths in cells."""

    relation: str  # how the places are said: a key of STEPS, "alone", "front", "rows", ...
    shape: tuple[int, int]  # columns and rows of the canvas
    centres: list[tuple[float, float]]  # column and row of each object's middle
    numbers: list[int]  # which picture of the sentence each object shows
    sentence: str  # with {0}, {1}, ... for pictures, {0s} where it is one of several, and {ground}


WAYS = ("lines", "spots", "chain")  # in which scenes of three objects and more are said


class Said(NamedTuple):
    """What scenes may say: a part of it makes an easier world."""

    relations: tuple[str, ...] = tuple(phrases.PAIRS)  # of two
    phrasings: int = phrases.MOST_PHRASINGS  # of one, each relation, spots, chains: at most so many
    ways: tuple[str, ...] = WAYS  # of three and more


def alone(draws: Draws, phrasings: int = phrases.MOST_PHRASINGS) -> Layout:
    return Layout("alone", (2, 2), [(1.0, 1.0)], [0], draws.pick(phrases.ALONE[:phrasings]))


def pair(relation: str, draws: Draws, phrasings: int = phrases.MOST_PHRASINGS) -> Layout:
    """Two objects about the middle; the first stands at the relation to the second."""
    across, down = STEPS[relation]
    centres = [(1 + across / 2, 1 + down / 2), (1 - across / 2, 1 - down / 2)]
    sentence = draws.pick(phrases.PAIRS[relation][:phrasings])
    return Layout(relation, (2, 2), centres, [0, 1], sentence)


def front(draws: Draws, phrasings: int = phrases.MOST_PHRASINGS) -> Layout:
    """The first object before the second: lower, to the right, and drawn after it."""
    sentence = draws.pick(phrases.PAIRS["front"][:phrasings])
    return Layout("front", (2, 2), [BEHIND, IN_FRONT], [1, 0], sentence)


def lines(shape: tuple[int, int], numbers: Sequence[Sequence[int]], upright: bool, draws: Draws):
    """Rows (or, upright, columns) of objects, spread evenly."""
    long, wide = shape[upright], shape[not upright]
    centres = [
        ((at + 0.5) * long / len(line), (row + 0.5) * wide / len(numbers))
        for row, line in enumerate(numbers)
        for at in range(len(line))
    ]
    centres = [(y, x) if upright else (x, y) for x, y in centres]
    sentence = phrases.of_lines(numbers, upright, draws)
    flat = [number for line in numbers for number in line]
    return Layout("columns" if upright else "rows", shape, centres, flat, sentence)


def spots(
    shape: tuple[int, int], count: int, draws: Draws, phrasings: int = phrases.MOST_PHRASINGS
) -> Layout:
    """Corners, sides and the middle, each said by its name."""
    centres, names = some_spots(shape, count, draws)
    sentence = phrases.of_spots(names, draws, phrasings)
    return Layout("spots", shape, centres, list(range(count)), sentence)


def some_spots(
    shape: tuple[int, int], count: int, draws: Draws
) -> tuple[list[tuple[float, float]], list[str]]:
    """Spots of a canvas, no two the same: their middles, and what they are called."""
    chosen = draws.order(all_spots(shape))[:count]
    centres = [centre_of(shape, spot) for spot in chosen]
    return centres, [phrases.spot_name(spot, draws) for spot in chosen]


def all_spots(shape: tuple[int, int]) -> list[tuple[str, str]]:
    """The named spots of a canvas: at most three across and three down."""
    across, down = (phrases.ACROSS[min(shape[0], 3)], phrases.DOWN[min(shape[1], 3)])
    return [(row, column) for row in down for column in across]


def centre_of(shape: tuple[int, int], spot: tuple[str, str]) -> tuple[float, float]:
    across, down = (phrases.ACROSS[min(shape[0], 3)], phrases.DOWN[min(shape[1], 3)])
    row, column = down.index(spot[0]), across.index(spot[1])
    return (column + 0.5) * shape[0] / len(across), (row + 0.5) * shape[1] / len(down)


def beside(shape: tuple[int, int], centre: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """The middles of the cells beside one, by relation to it, that lie on the canvas."""
    found = {name: (centre[0] + x, centre[1] + y) for name, (x, y) in STEPS.items()}
    return {name: at for name, at in found.items() if all(0 < at[d] < shape[d] for d in range(2))}


def chain(
    shape: tuple[int, int], count: int, draws: Draws, phrasings: int = phrases.MOST_PHRASINGS
) -> Layout:
    """The first object at a spot that is said, each other one beside one named before it."""
    first = draws.pick(all_spots(shape))
    centres, links = [centre_of(shape, first)], []
    while len(centres) < count:
        base, relation = draws.whole(0, len(centres) - 1), draws.pick(list(STEPS))
        centre = beside(shape, centres[base]).get(relation)
        if centre is not None and centre not in centres:
            centres.append(centre)
            links.append((base, relation))
    sentence = phrases.of_chain(phrases.spot_name(first, draws), links, draws, phrasings)
    return Layout("chain", shape, centres, list(range(count)), sentence)


def _divided(count: int, longest: int, most: int, draws: Draws) -> list[int]:
    """Lengths of lines that hold `count` objects: at most `most` lines of at most `longest`."""
    fewest = -(-count // longest)
    number = draws.whole(fewest, max(min(most, count - 1), fewest))
    lengths = [1] * number
    for _ in range(count - number):
        lengths[draws.pick([n for n, length in enumerate(lengths) if length < longest])] += 1
    return lengths


def _lines(shape: tuple[int, int], count: int, counted: bool, draws: Draws) -> Layout | None:
    """Rows or columns; if `counted`, one line is copies of one object (None where none is long)."""
    upright = draws.chance(0.5)
    # three lines are the most that have names: top, middle, bottom
    lengths = _divided(count, shape[upright], min(shape[not upright], 3), draws)
    several = [n for n, length in enumerate(lengths) if length in COPIES]
    if counted and not several:
        return None
    same = draws.pick(several) if counted else -1
    numbers, next_number = [], 0
    for n, length in enumerate(lengths):
        numbers.append(
            [next_number] * length if n == same else list(range(next_number, next_number + length))
        )
        next_number = numbers[-1][-1] + 1
    return lines(shape, numbers, upright, draws)


def _two(draws: Draws, said: Said) -> Layout:
    sides = [relation for relation in STEPS if relation in said.relations]
    if "front" in said.relations and (not sides or draws.chance(0.2)):
        return front(draws, said.phrasings)
    return pair(draws.pick(sides), draws, said.phrasings)


def draw_layout(count: int, counted: bool, draws: Draws, said: Said | None = None) -> Layout:
    """Draws a layout of `count` objects, 1 to MOST.

    Args:
      counted: several of the objects are copies of one ("three [star] in a row").
      said: what may be said; all of it by default. Spots, where a chain alone may and is too long.

    Raises:
      ValueError: no layout has so many objects.
    """
    said = said or Said()
    if count not in SHAPES:
        raise ValueError(f"a scene of {count} objects: there are 1 to {MOST}")
    shape = draws.pick(SHAPES[count])
    if counted and count > 1:
        while (found := _lines(shape, count, True, draws)) is None:
            pass
        return found
    if count == 1:
        return alone(draws, said.phrasings)
    if count == 2:
        return _two(draws, said)
    ways = [way for way in said.ways if way != "chain" or count <= phrases.LONGEST_CHAIN]
    way = draws.pick(ways or ["spots"])
    if way == "chain":
        return chain(shape, count, draws, said.phrasings)
    if way == "spots":
        return spots(shape, count, draws, said.phrasings)
    return _lines(shape, count, False, draws)
