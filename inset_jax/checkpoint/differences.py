"""How two trees or two models differ, in words: shared by every reader and writer of this room."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

LISTED = 20  # lines of one kind before "and N more"
FEW = 3  # the same where a sentence has said already what is wrong with all of them

Shapes = Mapping[str, tuple[int, ...]]


def shapes(found: Shapes, expected: Shapes, listed: int = LISTED) -> list[str]:
    """Returns one line a name that is missing, unexpected or misshapen, each with a hint.

    Of each kind `listed` names are given and the others counted. A name that is missing on one side
    is paired with the most similar one that only the other side has: a renamed tensor is then seen
    at a glance.
    """
    missing, extra, misshapen = by_kind(found, expected).values()
    return [
        *_listed("missing", missing, lambda name: near(name, extra or list(found)), listed),
        *_listed("unexpected", extra, lambda name: near(name, missing or list(expected)), listed),
        *_listed(
            "misshapen",
            misshapen,
            lambda name: f" is {list(found[name])}, expected {list(expected[name])}",
            listed,
        ),
    ]


def by_kind(found: Shapes, expected: Shapes) -> dict[str, list[str]]:
    """Returns all the names that are "missing", "unexpected" and "misshapen"."""
    return {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshapen": [
            name
            for name in expected
            if name in found and tuple(found[name]) != tuple(expected[name])
        ],
    }


def models(there, here, path: str = "") -> list[str]:
    """Returns one phrase a field in which two model configs differ."""
    phrases = []
    for field in dataclasses.fields(here):
        old, new = getattr(there, field.name), getattr(here, field.name)
        if dataclasses.is_dataclass(new):
            phrases += models(old, new, f"{path}{field.name}.")
        elif old != new:
            phrases.append(f"{path}{field.name} is {old!r} there and {new!r} here")
    return phrases


def _listed(kind: str, names: Sequence[str], hint, listed: int) -> list[str]:
    lines = [f"  {kind}: {name}{hint(name)}" for name in names[:listed]]
    rest = len(names) - listed
    return [*lines, f"  {kind}: and {rest} more"] if rest > 0 else lines


def near(name: str, candidates: Sequence[str]) -> str:
    """Returns " (nearest: ...)" for a name, or "" where nothing is similar."""
    close = difflib.get_close_matches(name, candidates, 1)
    return f" (nearest: {close[0]})" if close else ""
