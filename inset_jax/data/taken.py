"""Ids that several rows of a source have: of two the first keeps it.

Each shard of a build writes down the ids of its examples; they are compared when all are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Id(NamedTuple):
    """An example's id and the row that it is of."""

    split: str
    name: str
    row: int  # in its shard
    where: str  # for people


def write(notes: Path, number: int, ids: Sequence[Id]) -> None:
    """Keeps the ids of a shard."""
    file = notes / f"{number:05d}.ids"
    beside = file.with_name(file.name + ".part")  # the file may be a finished folder's, too
    beside.write_text(json.dumps(ids))
    os.replace(beside, file)


def rows(notes: Path, count: int) -> dict[int, dict[int, str]]:
    """Returns the rows whose ids are taken by earlier ones: shard -> row -> reason."""
    hashes = [
        np.array([_hash(f"{own.split} {own.name}") for own in _read(notes, n)], np.uint64)
        for n in range(count)
    ]
    shard = np.repeat(np.arange(count), [len(own) for own in hashes])
    at = np.concatenate([np.arange(len(own)) for own in hashes])
    order = np.argsort(np.concatenate(hashes), kind="stable")
    ordered = np.concatenate(hashes)[order]
    again: dict[int, dict[int, str]] = {}
    first: dict[tuple[str, str], tuple[int, Id]] = {}  # split and id -> shard and row, the first
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    for place in np.union1d(same, same + 1):
        number = int(shard[order[place]])
        own = _read(notes, number)[at[order[place]]]
        by = first.setdefault((own.split, own.name), (number, own))
        if (by[0], by[1].row) != (number, own.row):  # two rows may be told to be at one place
            again.setdefault(number, {})[own.row] = f"id {own.name!r} is taken by {by[1].where}"
    return again


def _read(notes: Path, number: int) -> list[Id]:
    return [Id(*own) for own in json.loads((notes / f"{number:05d}.ids").read_text())]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
