"""Pictures of words, tables and bars, with Pillow alone: what reports put into a PNG.

Parts are pictures; `flow`, `row` and `column` arrange them. Sizes are pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
INK, FAINT, LINE, SOFT, PAPER = (
    (34, 36, 42),
    (112, 116, 126),
    (212, 214, 220),
    (244, 245, 247),
    (255, 255, 255),
)
BLUE, ORANGE, GREEN, PURPLE = (66, 118, 196), (224, 132, 40), (72, 158, 92), (140, 96, 190)
SIZE = 15  # of letters


@functools.cache
def font(size: int = SIZE):
    """A font with many letters where the machine has one, else the one that Pillow brings."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def word(text: str, size: int = SIZE, ink: Colour = INK, paper: Colour = PAPER, pad: int = 0):
    """One piece of text on one line, as a picture one line high.

    Args:
      pad: pixels beside the text, on its paper.
    """
    text = text.replace("\n", " ")
    above, below = font(size).getmetrics()
    width = max(1, round(font(size).getlength(text))) + 2 * pad
    picture = Image.new("RGB", (width, above + below + (2 if pad else 0)), paper)
    ImageDraw.Draw(picture).text((pad, 1 if pad else 0), text, ink, font(size))
    return picture


def words(text: str, size: int = SIZE, ink: Colour = INK, paper: Colour = PAPER) -> list:
    """The words of a text, for `flow`."""
    return [word(own, size, ink, paper) for own in text.split()]


def paragraph(text: str, width: int, size: int = SIZE, ink: Colour = INK) -> Image.Image:
    """A text broken into lines."""
    return flow(words(text, size, ink), width, gap=round(size * 0.3), lead=2)


def flow(
    parts: Sequence[Image.Image], width: int, gap: int = 5, lead: int = 6, paper: Colour = PAPER
) -> Image.Image:
    """Pictures in lines as a text is set, each line centred on its height."""
    lines: list[list[Image.Image]] = [[]]
    taken = 0
    for part in parts:
        if taken and taken + gap + part.width > width:
            lines.append([])
            taken = 0
        lines[-1].append(part)
        taken += part.width + (gap if taken else 0)
    return column([row(line, gap, paper) for line in lines if line], lead, paper=paper)


def row(parts: Sequence[Image.Image], gap: int = 5, paper: Colour = PAPER, at: float = 0.5):
    """Pictures side by side.

    Args:
      at: where they stand in the height: 0 at the top, 1 at the bottom.
    """
    height = max((part.height for part in parts), default=1)
    picture = Image.new("RGB", (max(1, _length([p.width for p in parts], gap)), height), paper)
    x = 0
    for part in parts:
        picture.paste(part, (x, round((height - part.height) * at)))
        x += part.width + gap
    return picture


def column(
    parts: Sequence[Image.Image], gap: int = 8, margin: int = 0, paper: Colour = PAPER
) -> Image.Image:
    """Pictures one below the other."""
    width = max((part.width for part in parts), default=1)
    height = max(1, _length([part.height for part in parts], gap))
    picture = Image.new("RGB", (width + 2 * margin, height + 2 * margin), paper)
    y = margin
    for part in parts:
        picture.paste(part, (margin, y))
        y += part.height + gap
    return picture


def _length(sides: Sequence[int], gap: int) -> int:
    return sum(sides) + gap * (len(sides) - 1)


def frame(
    picture: Image.Image, colour: Colour, thick: int = 3, pad: int = 0, paper: Colour = PAPER
) -> Image.Image:
    """A border around a picture, with some paper between."""
    side = 2 * (thick + pad)
    framed = Image.new("RGB", (picture.width + side, picture.height + side), colour)
    inner = (picture.width + 2 * pad, picture.height + 2 * pad)
    framed.paste(Image.new("RGB", inner, paper), (thick, thick))
    framed.paste(picture, (thick + pad, thick + pad))
    return framed


def wide(picture: Image.Image, width: int, paper: Colour = PAPER) -> Image.Image:
    """The same with paper at its right, at least `width` wide."""
    whole = Image.new("RGB", (max(width, picture.width), picture.height), paper)
    whole.paste(picture, (0, 0))
    return whole


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """A picture at most `side` wide and high; a tiny one is enlarged with sharp pixels."""
    longest = max(picture.size)
    if longest * 2 <= side:
        times = side // longest
        size = tuple(length * times for length in picture.size)
        return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def table(rows: Sequence[Sequence[str]], size: int = SIZE) -> Image.Image:
    """Rows of cells; the first row is the head. Numbers stand at the right of their column."""
    cells = [
        [word(cell, size, FAINT if not number else INK) for cell in own]
        for number, own in enumerate(rows)
    ]
    widths = [max(own[c].width for own in cells) for c in range(len(rows[0]))]
    high, gap = cells[0][0].height + 8, 26
    total = _length(widths, gap)
    picture = Image.new("RGB", (total, high * len(rows) + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    for r, own in enumerate(cells):
        x = 0
        for c, cell in enumerate(own):
            right = all(_is_number(line[c]) for line in rows[1:]) and len(rows) > 1
            picture.paste(cell, (x + (widths[c] - cell.width) * right, r * high + 4))
            x += widths[c] + gap
        draw.line([(0, (r + 1) * high), (total, (r + 1) * high)], LINE)
    return picture


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").isdigit()


def bars(
    title: str,
    bins: Sequence[tuple[str, int]],
    width: int,
    height: int = 170,
    colour: Colour = BLUE,
) -> Image.Image:
    """A bar a bin, with the count above it and the label below (every few, where they are many)."""
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    small = font(11)
    draw.text((0, 0), title, INK, font(SIZE))
    top, bottom = 44, height - 20
    most = max((count for _, count in bins), default=0) or 1
    step = width / max(len(bins), 1)
    draw.line([(0, bottom), (width, bottom)], LINE)
    widest = max((draw.textlength(label, small) for label, _ in bins), default=1)
    every = max(1, -(-int(widest + 8) // max(int(step), 1)))
    for number, (label, count) in enumerate(bins):
        x, full = number * step, max(2, min(step * 0.86, 60))
        left = x + (step - full) / 2
        if count:
            y = bottom - max(2, round((bottom - top) * count / most))
            draw.rectangle([left, y, left + full, bottom - 1], colour)
            if draw.textlength(f"{count}", small) < step:
                draw.text((left + full / 2, y - 2), f"{count}", FAINT, small, anchor="mb")
        if number % every == 0:
            draw.text((left + full / 2, bottom + 3), label, FAINT, small, anchor="mt")
    return picture
