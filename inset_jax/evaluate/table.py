"""What drawings are worth: means with intervals, by row and column, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.data.keyed import keyed
from inset_jax.evaluate.held_out import psnr

PSNR = "PSNR"  # dB; every other column is a share
RESAMPLES = 2000
COVERS = 0.95
NORMAL = 1.959964  # standard deviations on either side that cover as much
INTERVAL = (
    f"{COVERS:.0%} percentile bootstrap over sentences ({RESAMPLES} resamples; all places, pairs "
    "and seeds of a sentence stay together); Wilson's interval with as many trials as sentences "
    "where all have the same share"
)


class Estimate(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float
    values: int  # how many were averaged
    sentences: int  # of how many sentences


class Row(NamedTuple):
    """One line of the table."""

    name: str  # which sentences
    condition: str  # how they were drawn: one of held_out.CONDITIONS, or the weights
    columns: dict[str, Estimate]


def estimate(groups: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of all values and its interval (see INTERVAL); None where there is no value.

    Args:
      groups: the values of each sentence; a mean weighs values, not sentences.
    """
    groups = [group for group in groups if len(group)]
    if not groups:
        return None
    total = np.array([float(sum(group)) for group in groups])
    count = np.array([len(group) for group in groups])
    mean, trials = float(total.sum() / count.sum()), len(groups)
    if len(set(total / count)) == 1 and 0.0 <= mean <= 1.0:
        low, high = _wilson(mean, trials)
    else:
        draws = keyed("bootstrap", 0, "", 0).integers(0, trials, (RESAMPLES, trials))
        means = total[draws].sum(1) / count[draws].sum(1)
        low, high = np.quantile(means, [(1 - COVERS) / 2, (1 + COVERS) / 2])
    return Estimate(mean, float(low), float(high), int(count.sum()), trials)


def _wilson(share: float, trials: int) -> tuple[float, float]:
    square = NORMAL**2 / trials
    middle = (share + square / 2) / (1 + square)
    reach = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def columns(
    targets: Sequence[Image.Image],
    drawings: Sequence[Sequence[Image.Image]],
    outcomes: Callable[[int, np.ndarray], Mapping[str, Sequence[float]]],
) -> dict[str, Estimate]:
    """Averages what a judge says of drawings, and their PSNR.

    Args:
      targets: one a sentence.
      drawings: one a sentence and seed.
      outcomes: takes the number of a sentence and a drawing's pixels; returns values by column.
    """
    values: dict[str, list[list[float]]] = {}
    for number, (target, own) in enumerate(zip(targets, drawings, strict=True)):
        for drawing in own:
            found = {**outcomes(number, np.asarray(drawing)), PSNR: [psnr(drawing, target)]}
            for column, new in found.items():
                groups = values.setdefault(column, [[] for _ in targets])
                groups[number] += [float(value) for value in new]
    estimates = {column: estimate(groups) for column, groups in values.items()}
    return {column: found for column, found in estimates.items() if found is not None}


def table(rows: Sequence[Row], chance: Mapping[str, float]) -> list[list[str]]:
    """Lines of cells: a head, the rows, and what chance would give.

    Args:
      chance: by column, in the order in which they are shown; PSNR comes last.
    """
    names = [*chance, PSNR]
    lines = [["sentences", "drawn", *names]]
    for row in rows:
        cells = [spell(row.columns.get(name), name == PSNR) for name in names]
        lines.append([row.name, row.condition, *cells])
    told = [f"{share:.1%}" if share is not None else "" for share in chance.values()]
    return [*lines, ["", "chance", *told, ""]]


def spell(found: Estimate | None, decibels: bool = False) -> str:
    """ "81% (76-85)"; a dash where nothing was to be judged."""
    if found is None:
        return "-"
    if decibels:
        return f"{found.mean:.1f} dB ({found.low:.1f}-{found.high:.1f})"
    return f"{found.mean:.0%} ({100 * found.low:.0f}-{100 * found.high:.0f})"


def text(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    spaced = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in spaced)


def to_json(rows: Sequence[Row]) -> list[dict]:
    return [
        {
            "sentences": row.name,
            "drawn": row.condition,
            "columns": {name: found._asdict() for name, found in row.columns.items()},
        }
        for row in rows
    ]


def from_json(rows: Sequence[Mapping]) -> list[Row]:
    """What `to_json` wrote.

    Raises:
      ValueError: a row that lacks something, or has more; it is named.
    """
    found = []
    for number, row in enumerate(rows):
        try:
            columns = {name: Estimate(**own) for name, own in row["columns"].items()}
            found.append(Row(row["sentences"], row["drawn"], columns))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"row {number} of the table: {error!r}") from error
    return found
