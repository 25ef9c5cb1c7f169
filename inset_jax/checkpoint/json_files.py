"""JSON objects in files and the numbers in them, with errors that name the file and the key."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; ValueError where there is none.

    A comma before a closing bracket is forgiven: the config.json of BAGEL's release is said to have
    one, and its own code does not read that file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            values = json.loads(re.sub(r",(\s*[}\]])", r"\1", text))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: found {type(values).__name__}, expected a JSON object")
    return values


def number(values: Mapping[str, Any], key: str, where: pathlib.Path, default=None):
    """Returns the number under a key, or the default where there is none.

    Raises:
      ValueError: names `where`, the file.
    """
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {key} is {value!r}, expected a number")
    return value
