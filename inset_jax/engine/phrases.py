"""The words of the small world.

A sentence is a text with {0}, {1}, ... where pictures stand, each once, {0s} where the picture is
that of several objects ("three {0s} in a row"), and {ground} where the ground is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from inset_jax.engine.draws import Draws

PICTURE = re.compile(r"\{(\d+)(s?)\}")

# {0} stands at the relation to {1}. The first ones say of each picture by itself where it is, the
# others with the whole sentence in mind alone.
PAIRS = {
    "left": (
        "On the left a {0}, on the right a {1}, on {ground}.",
        "A {0} sits to the left of a {1} on {ground}.",
        "A {0} left of a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} on its left.",
        "To the right of a {0} is a {1}, on {ground}.",
    ),
    "right": (
        "On the right a {0}, on the left a {1}, on {ground}.",
        "A {0} sits to the right of a {1} on {ground}.",
        "A {0} right of a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} on its right.",
        "To the left of a {0} is a {1}, on {ground}.",
    ),
    "above": (
        "At the top a {0}, at the bottom a {1}, on {ground}.",
        "A {0} floats above a {1} on {ground}.",
        "A {0} above a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} over it.",
        "Below a {0} is a {1}, on {ground}.",
    ),
    "below": (
        "At the bottom a {0}, at the top a {1}, on {ground}.",
        "A {0} lies below a {1} on {ground}.",
        "A {0} below a {1}, on {ground}.",
        "On {ground}, a {1} with a {0} under it.",
        "Above a {0} is a {1}, on {ground}.",
    ),
    "front": (
        "In front a {0}, behind it a {1}, on {ground}.",
        "A {0} in front of a {1} on {ground}.",
        "A {0} stands in front of a {1}, on {ground}.",
        "On {ground}, a {1} behind a {0}.",
        "Behind a {0} is a {1}, on {ground}.",
    ),
}
ALONE = (
    "A {0} on {ground}.",
    "A single {0}, alone on {ground}.",
    "On {ground}, a {0}.",
)
MOST_PHRASINGS = max(map(len, (ALONE, *PAIRS.values())))
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
ORDINALS = ("first", "second", "third", "fourth")
LONGEST_CHAIN = len(ORDINALS) + 1
NUMBERS = {2: "two", 3: "three", 4: "four"}
ACROSS = {2: ("left", "right"), 3: ("left", "middle", "right")}
DOWN = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
ROW_NAMES = {
    2: (
        ("in the top row", "in the bottom row"),
        ("at the top", "at the bottom"),
        ("", "below them"),
    ),
    3: (
        ("in the top row", "in the middle row", "in the bottom row"),
        ("at the top", "in the middle", "at the bottom"),
        ("", "below them", "at the bottom"),
    ),
}
COLUMN_NAMES = {
    2: (("in the left column", "in the right column"), ("on the left", "on the right")),
    3: (
        ("in the left column", "in the middle column", "in the right column"),
        ("on the left", "in the middle", "on the right"),
    ),
}
ONE_LINE = (  # of a single row, of a single column
    ("from left to right, {}", "side by side, {}", "{} in a row"),
    ("from top to bottom, {}", "one below the other, {}", "{} in a column"),
)
ONE_COUNTED = (("{} in a row", "{} side by side"), ("{} in a column", "{} one below the other"))
SIZES = ("small", "big")


def on_ground(clause: str, draws: Draws) -> str:
    """Makes a sentence of what stands where, and of the ground."""
    way = draws.whole(0, 2)
    if way == 0:
        return f"On {{ground}}, {clause}."
    clause = clause[0].upper() + clause[1:]
    return f"{clause}, on {{ground}}." if way == 1 else f"{clause}. All on {{ground}}."


def listed(things: Sequence[str]) -> str:
    """ "a, b and c" """
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def _line(numbers: Sequence[int]) -> str:
    """What stands in a row or column: different objects, or copies of one."""
    if len(numbers) > 1 and numbers[0] == numbers[1]:
        return f"{NUMBERS[len(numbers)]} {{{numbers[0]}s}}"
    return listed([f"a {{{number}}}" for number in numbers])


def of_lines(numbers: Sequence[Sequence[int]], upright: bool, draws: Draws) -> str:
    """A sentence for rows, top first, or, upright, for columns, left first."""
    said = [_line(line) for line in numbers]
    if len(said) == 1:
        counted = "s}" in said[0]
        return on_ground(
            draws.pick((ONE_COUNTED if counted else ONE_LINE)[upright]).format(said[0]), draws
        )
    names = draws.pick((COLUMN_NAMES if upright else ROW_NAMES)[len(said)])
    joined = [f"{name} {line}".strip() for name, line in zip(names, said, strict=True)]
    return on_ground("; ".join(joined), draws)


def spot_name(spot: tuple[str, str], draws: Draws) -> str:
    """Says a spot of a canvas, given as (row, column)."""
    row, column = spot
    if spot == ("middle", "middle"):
        return draws.pick(("in the middle", "in the centre"))
    if column == "middle":
        return draws.pick((f"at the {row}", f"at the {row} in the middle"))
    if row == "middle":
        return draws.pick((f"on the {column}", f"on the {column} in the middle"))
    return draws.pick((f"in the {row} {column} corner", f"at the {row} {column}"))


def of_spots(names: Sequence[str], draws: Draws, phrasings: int = MOST_PHRASINGS) -> str:
    """A sentence that says the spot of each object: before it, and in other phrasings after it."""
    if draws.chance(0.5) and phrasings > 1:
        said = [f"a {{{number}}} {name}" for number, name in enumerate(names)]
        return on_ground(listed(said), draws)
    return on_ground("; ".join(f"{name} a {{{n}}}" for n, name in enumerate(names)), draws)


def of_chain(
    spot: str, links: Sequence[tuple[int, str]], draws: Draws, phrasings: int = MOST_PHRASINGS
) -> str:
    """A sentence in which each object but the first stands beside one that was named before it.

    Args:
      spot: where the first one is. Without it no word would tell where the whole stands.
      links: for each of the others, the number of that one and the relation to it.
      phrasings: 1 says each place before its picture.
    """
    said = [f"{spot} a {{0}} and, {draws.pick(RELATIONS[links[0][1]])} it, a {{1}}"]
    after = phrasings > 1 and draws.chance(0.5)
    for number, (base, relation) in enumerate(links[1:], 2):
        thing, place = f"a {{{number}}}", f"{draws.pick(RELATIONS[relation])} the {ORDINALS[base]}"
        said.append(f"{thing} {place}" if after else f"{place} {thing}")
    return on_ground("; ".join(said), draws)


def sized(sentence: str, sizes: Sequence[str]) -> str:
    """Puts a word before each picture: "a {0}" becomes "a big {0}"."""
    return PICTURE.sub(lambda found: f"{sizes[int(found[1])]} {found[0]}", sentence)


def numbers_in(sentence: str) -> list[int]:
    """The pictures of a sentence, in reading order."""
    return [int(found[1]) for found in PICTURE.finditer(sentence)]


def pieces(sentence: str) -> list[str | int]:
    """Texts and numbers of pictures, in reading order; no empty texts."""
    parts = PICTURE.split(sentence)  # text, number, "s" or "", text, ...
    found: list[str | int] = []
    for at in range(0, len(parts), 3):
        found += [parts[at]] * bool(parts[at])
        found += [int(parts[at + 1])] if at + 1 < len(parts) else []
    return found


def in_words(sentence: str, nouns: Sequence[str]) -> str:
    """The sentence with nouns in place of pictures."""

    def noun(found: re.Match) -> str:
        own = nouns[int(found[1])]
        return plural(own) if found[2] else own

    text = PICTURE.sub(noun, sentence)
    return re.sub(r"\b([Aa]) (?=[aeiou])(?!uni|one )", r"\1n ", text)  # by sound


def plural(noun: str) -> str:
    """The plural of a noun, as regular ones have it."""
    first, of, rest = noun.partition(" of ")
    if of:
        return plural(first) + of + rest
    if re.search(r"[^su]s$", noun):  # "scissors"
        return noun
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"
