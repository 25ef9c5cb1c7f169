"""Draws the loss curves of a run as a PNG, with Pillow alone."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from inset_jax.train import metrics

PANEL = (860, 300)  # pixels of one panel
MARGIN = (74, 38, 18, 40)  # left, top, right, bottom
SCALE = 2  # drawn larger, then reduced: smooth lines
INK, GRID, PAPER = (51, 51, 51), (226, 226, 226), (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14))
SMOOTHING = 0.9  # of the bold line over the faint one

Points = list[tuple[float, float]]


class Curve(NamedTuple):
    """One line of a panel."""

    name: str
    points: Points  # (step, value), by rising step
    is_noisy: bool  # drawn faint, with its running mean on top


def draw_run(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path | None:
    """Draws flow loss and cross entropy, in training and held out, from a run's records.

    Returns:
      the path, or None where there is nothing to draw yet.
    """
    records = metrics.read(folder)
    panels = []
    for name, title in (("flow", "flow loss"), ("cross_entropy", "cross entropy")):
        curves = []
        for phase, label in (("train", "training"), ("validation", "held out")):
            rows = [r for r in records if r["phase"] == phase]
            # a batch without targets of a kind has loss 0, which says nothing
            points = [(r["step"], r[name]) for r in rows if r.get(name)]
            if points:
                curves.append(Curve(label, points, phase == "train"))
        if curves:
            panels.append((title, curves))
    if not panels:
        return None
    return draw(panels, path)


def draw(panels: Sequence[tuple[str, Sequence[Curve]]], path: pathlib.Path) -> pathlib.Path:
    """Draws panels, each a title and its curves, one below the other as a PNG."""
    width, height = PANEL
    sheet = Image.new("RGB", (width * SCALE, height * SCALE * len(panels)), PAPER)
    for row, (title, curves) in enumerate(panels):
        _panel(ImageDraw.Draw(sheet), row * height, title, curves)
    sheet.resize((width, height * len(panels)), Image.Resampling.LANCZOS).save(path)
    return path


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, curves: Sequence[Curve]) -> None:
    """Draws axes, grid, legend and curves of one panel whose upper edge is at `top`."""
    left, above, right, below = MARGIN
    box = (left, top + above, PANEL[0] - right, top + PANEL[1] - below)
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_ticks, y_ticks = ticks(0, max(xs)), ticks(min(0, min(ys)), max(ys))
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_span[0]) / (x_span[1] - x_span[0])
        up = (y - y_span[0]) / (y_span[1] - y_span[0])
        return (
            SCALE * (box[0] + across * (box[2] - box[0])),
            SCALE * (box[3] - up * (box[3] - box[1])),
        )

    font = ImageFont.load_default(13 * SCALE)
    for y in y_ticks:
        draw.line([at(x_span[0], y), at(x_span[1], y)], GRID, SCALE)
        place = (at(x_span[0], y)[0] - 8 * SCALE, at(x_span[0], y)[1])
        draw.text(place, f"{y:g}", INK, font, anchor="rm")
    for x in x_ticks:
        place = (at(x, y_span[0])[0], at(x, y_span[0])[1] + 6 * SCALE)
        draw.text(place, f"{x:g}", INK, font, anchor="mt")
    draw.text((box[0] * SCALE, (top + 10) * SCALE), title, INK, font, anchor="lt")
    legend = box[2] * SCALE
    for curve, colour in reversed(list(zip(curves, COLOURS, strict=False))):
        draw.text((legend, (top + 10) * SCALE), curve.name, colour, font, anchor="rt")
        legend -= draw.textlength(curve.name, font) + 18 * SCALE
    for curve, colour in zip(curves, COLOURS, strict=False):
        _line(draw, [at(*point) for point in curve.points], colour, curve.is_noisy)


def _line(draw: ImageDraw.ImageDraw, points: Points, colour, is_noisy: bool) -> None:
    """One curve: faint with its running mean, or bold with dots."""
    if is_noisy:
        faint = tuple(round(c + (255 - c) * 0.65) for c in colour)
        draw.line(points, faint, SCALE)
        draw.line(_smoothed(points), colour, 2 * SCALE, "curve")
        return
    draw.line(points, colour, 2 * SCALE, "curve")
    for x, y in points:
        size = 3 * SCALE
        draw.ellipse([x - size, y - size, x + size, y + size], colour)


def _smoothed(points: Points) -> Points:
    """The exponential running mean, without a bias towards the first value."""
    total = weight = 0.0
    smooth = []
    for x, y in points:
        total, weight = SMOOTHING * total + y, SMOOTHING * weight + 1
        smooth.append((x, total / weight))
    return smooth


def ticks(low: float, high: float) -> list[float]:
    """Returns 4 to 8 round numbers that enclose [low, high]."""
    if not high > low:
        high = low + 1
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
