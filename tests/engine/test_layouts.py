"""Where objects stand is what their sentence says, in every way of saying it."""

import numpy as np
import pytest

from inset_jax.engine import layouts, phrases
from inset_jax.engine.draws import Draws


@pytest.mark.parametrize("count", range(1, layouts.MOST + 1))
def test_every_sentence_shows_each_picture_once(count):
    seen = set()
    for number in range(150):
        for counted in (False, True):
            layout = layouts.draw_layout(count, counted, Draws(number))
            seen.add(layout.relation)
            assert len(layout.centres) == len(layout.numbers) == count
            shown = phrases.numbers_in(layout.sentence)
            assert sorted(shown) == sorted(set(layout.numbers))
            assert layout.sentence.count("{ground}") == 1
            copies = count - len(set(layout.numbers))
            assert bool(copies) == (counted and count > 1)
            word = phrases.NUMBERS.get(copies + 1, "")
            assert not copies or (word in layout.sentence.lower() and "s}" in layout.sentence)
    expected = {1: {"alone"}, 2: {*layouts.STEPS, "front", "rows", "columns"}}
    many = {"rows", "columns", "spots", *["chain"] * (count <= phrases.LONGEST_CHAIN)}
    assert seen == expected.get(count, many)


def test_each_place_is_said_as_it_is():
    """Rows, spots and chains are read back from their sentences."""
    seen = set()
    for number in range(200):
        layout = layouts.spots((3, 3), 6, Draws(number))
        for at, (x, y) in zip(layout.numbers, layout.centres, strict=True):
            clause = next(c for c in _clauses(layout.sentence) if f"{{{at}}}" in c)
            assert ("left" in clause) == (x < 1) and ("right" in clause) == (x > 2), clause
            assert ("top" in clause) == (y < 1) and ("bottom" in clause) == (y > 2), clause
        layout = layouts.chain((3, 3), 5, Draws(number))
        place = dict(zip(layout.numbers, layout.centres, strict=True))
        assert min(map(min, layout.centres)) >= 0.5 and max(map(max, layout.centres)) <= 2.5
        first, *clauses = layout.sentence.lower().replace("on {ground}, ", "").split(";")
        (x, y), (spot, second) = place[0], first.split("a {0} and,")
        assert ("left" in spot) == (x < 1) and ("right" in spot) == (x > 2), first
        assert ("top" in spot) == (y < 1) and ("bottom" in spot) == (y > 2), first
        for at, clause in enumerate([second.replace("it", "the first"), *clauses], 1):
            base = next(n for n, word in enumerate(phrases.ORDINALS) if f"the {word}" in clause)
            relation = next(
                name
                for name, words in phrases.RELATIONS.items()
                if any(f"{word} the" in clause for word in words)
            )
            assert tuple(np.subtract(place[at], place[base])) == layouts.STEPS[relation]
            seen.add(clause.split()[0] == "a")
    assert seen == {True, False}  # the place after the picture, and before it
    layout = layouts.lines((3, 2), [[0, 1, 2], [3, 3]], False, Draws(0))
    assert layout.centres == [(0.5, 0.5), (1.5, 0.5), (2.5, 0.5), (0.75, 1.5), (2.25, 1.5)]
    layout = layouts.lines((2, 3), [[0, 1], [2]], True, Draws(0))
    assert layout.centres == [(0.5, 0.75), (0.5, 2.25), (1.5, 1.5)]


def _clauses(sentence):
    return sentence.replace("On {ground}, ", "").replace(" and ", ", ").replace(";", ",").split(",")


def test_a_pair_may_stand_in_front_alone():
    said = layouts.Said(("front",))
    assert {layouts.draw_layout(2, False, Draws(n), said).relation for n in range(20)} == {"front"}


@pytest.mark.parametrize(("ways", "count", "expected"), [
    (("lines",), 4, {"rows", "columns"}),
    (("spots",), 6, {"spots"}),
    (("chain",), 4, {"chain"}),
    (("chain",), 8, {"spots"}),  # a chain has five objects at most
    (("spots", "chain"), 3, {"spots", "chain"}),
])  # fmt: skip
def test_scenes_of_more_are_said_in_the_ways_that_are_asked_for(ways, count, expected):
    said = layouts.Said(ways=ways)
    drawn = [layouts.draw_layout(count, False, Draws(n), said) for n in range(20)]
    assert {layout.relation for layout in drawn} == expected


def test_in_one_phrasing_a_spot_is_said_before_its_object():
    for number in range(20):
        layout = layouts.draw_layout(4, False, Draws(number), layouts.Said((), 1, ("spots",)))
        before, after = layout.sentence.lower().split("a {0}")
        assert any(
            word in before for word in ("top", "bottom", "middle", "left", "right", "centre")
        )
        assert after.startswith(";")
