"""Sizes and check sums of a checkpoint's files, so that damage is found before it is used.

The format of the arrays (OCDBT) protects its index by check sums but not the numbers: one flipped
bit in them would be read without a word. So each step carries `digests.json`, written just before
the step is committed. Files on a remote store are compared by size alone: reading them twice would
double the traffic, and such stores check their own bytes.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

FILE = "digests.json"
BLOCK = 1 << 22  # bytes read at once
THREADS = 8


def write(step: epath.Path, items: Iterable[str]) -> None:
    """Notes the size and check sum of every file of the items of a step."""
    files = [path for item in items for path in _files(step / item)]
    sums = _map(_sum, files)
    table = {
        str(path.relative_to(step)): [path.stat().length, number]
        for path, number in zip(files, sums, strict=True)
    }
    (step / FILE).write_text(json.dumps(table, indent=0))


def verify(step: epath.Path, item: str, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Returns one phrase a file of the item that is not as it was written; [] when all are.

    Args:
      share: (i, n): only every n-th file is looked at, beginning with the i-th.
    """
    if not (step / FILE).exists():
        return [f"{FILE} is missing"]
    try:
        table = json.loads((step / FILE).read_text())
        inside = {name: entry for name, entry in table.items() if name.startswith(f"{item}/")}
    except (ValueError, AttributeError):
        return [f"{FILE} is not readable"]
    mine = list(inside.items())[share[0] :: share[1]]
    phrases = _map(lambda entry: _compare(step, *entry), mine)
    return [phrase for phrase in phrases if phrase]


def _compare(step: epath.Path, name: str, entry: list) -> str | None:
    path, (size, number) = step / name, entry
    if not path.exists():
        return f"{name} is missing"
    found = path.stat().length
    if found != size:
        return f"{name} has {found} bytes of {size}"
    if number is not None and _is_local(path) and _sum(path) != number:
        return f"{name} has other content than was written"
    return None


def _sum(path: epath.Path) -> int | None:
    """CRC-32 of a local file; None for a remote one."""
    if not _is_local(path):
        return None
    number = 0
    with open(os.fspath(path), "rb") as file:
        while block := file.read(BLOCK):
            number = zlib.crc32(block, number)
    return number


def _files(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found += _files(path) if path.is_dir() else [path]
    return found


def _map(function: Callable, values: Iterable[Any]) -> list:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, values))


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)
