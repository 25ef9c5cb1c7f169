"""A view of a pack as one PNG."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from inset_jax.core import sheet
from inset_jax.data.layout import GEN
from inset_jax.data.pack_view import (
    CLEAN,
    COLOURS,
    MARKER,
    NAMES,
    NOISY,
    PADDING,
    PATCH,
    Span,
    View,
    describe,
    lead,
    losses,
    mask,
    padding,
    token_text,
)

WIDTH = 1340  # pixels of the PNG within its margin
MASK = 560  # pixels a side
MOST_TOKENS = 80  # of one text that are written out
MOST_PATCHES = 24  # tokens of a picture in the mask of one example
FIRST = f"its first example, of each picture at most {MOST_PATCHES} tokens"
SAMPLES = 2 * MASK  # tokens that a mask looks at, at most


def to_png(view: View, most: int) -> Image.Image:
    """Returns the whole as one picture; `most` examples are written out."""
    head = lambda text: sheet.word(text, 21)
    note = lambda text: sheet.paragraph(text, WIDTH, 13, sheet.FAINT)
    first = shortened(view, 0) if view.examples else np.arange(0)
    whole = [
        sheet.word(view.title, 27),
        sheet.paragraph(lead(view), WIDTH),
        legend(),
        head("The two streams"),
        note("und: text, markers, ViT patches"),
        strip(view, 0),
        note("gen: latents"),
        strip(view, GEN),
        note(padding(view) + " The line below the slots changes its tone with the example."),
        head("Examples"),
        note("Below a token: its rotary position. Struck out: dropped by condition dropout."),
        *(example_picture(view, number) for number in range(min(most, len(view.examples)))),
    ]
    if len(view.examples) > most:
        whole.append(note(f"and {len(view.examples) - most} more"))
    whole += [
        head("Rotary positions in reading order"),
        positions(view),
        head("Who sees whom"),
        note("Row: a query. Column: a key, in its colour where it is seen; white where it is not."),
        sheet.row(
            [
                sheet.column([mask_picture(view, np.arange(len(view.kind))), note("the pack")], 4),
                sheet.column([mask_picture(view, first), note(FIRST)], 4),
            ],
            40,
            at=0,
        ),
        head("Losses"),
        sheet.table([[cell[:60] for cell in row] for row in losses(view)], 13),
    ]
    return sheet.column(whole, 16, 36)


def shortened(view: View, number: int) -> np.ndarray:
    """Tokens of an example in reading order, of a large picture only some, so that words show."""
    tokens = []
    for span in view.examples[number][2]:
        own = np.arange(span.start, span.end)
        if span.item.kind != "text" and len(own) > MOST_PATCHES + 2:
            inner = np.linspace(1, len(own) - 2, MOST_PATCHES).round().astype(int)
            own = own[np.concatenate([[0], inner, [len(own) - 1]])]
        tokens.append(own)
    return np.concatenate(tokens)


def legend() -> Image.Image:
    parts = []
    for name, colour in zip(NAMES, COLOURS, strict=True):
        swatch = Image.new("RGB", (15, 15), tuple(colour))
        parts.append(sheet.row([swatch, sheet.word(name, 13, sheet.FAINT)], 6))
    return sheet.flow(parts, WIDTH, 22)


def strip(view: View, stream: int, width: int = WIDTH) -> Image.Image:
    """All slots of a stream as cells, padding included; a line below them marks the examples."""
    own = view.laid.stream == stream
    capacity = view.config.data.capacity
    count = capacity.gen if stream == GEN else capacity.und
    kinds = np.full(count, PADDING)
    kinds[: own.sum()] = view.kind[own]
    example = np.full(count, -1)
    example[: own.sum()] = view.laid.example[own]
    side = int(np.clip(np.sqrt(width * 260 / count), 3, 26))
    columns = width // side
    lines = -(-count // columns)
    high = side + (5 if side > 6 else 3)
    picture = Image.new("RGB", (width, lines * high), sheet.PAPER)
    draw = ImageDraw.Draw(picture)
    gap = 1 if side > 4 else 0
    for slot in range(count):
        x, y = slot % columns * side, slot // columns * high
        draw.rectangle([x, y, x + side - 1 - gap, y + side - 1], tuple(COLOURS[kinds[slot]]))
        if example[slot] >= 0:
            tone = (40, 42, 50) if example[slot] % 2 else (170, 173, 182)
            draw.rectangle([x, y + side, x + side - 1, y + high - 3], tone)
    return picture


def positions(view: View, width: int = WIDTH, height: int = 150) -> Image.Image:
    """Rotary positions over the tokens in reading order, in the colours of their kinds."""
    picture = Image.new("RGB", (width, height), sheet.PAPER)
    draw = ImageDraw.Draw(picture)
    position, count = view.laid.position[0], max(len(view.kind), 1)
    most = max(int(position.max(initial=1)), 1)
    left, bottom = 46, height - 18
    across = (width - left) / count
    dot = max(1.0, min(across, 5.0))
    for number in range(count if len(view.kind) else 0):
        x, y = left + number * across, bottom - position[number] / most * (bottom - 12)
        colour = tuple(COLOURS[view.kind[number]])
        draw.rectangle([x, y - 2, x + dot, y + 2], colour)
    for value in (0, most):
        y = bottom - value / most * (bottom - 12)
        draw.text((left - 8, y), str(value), sheet.FAINT, sheet.font(11), anchor="rm")
    draw.line([(left, bottom + 4), (width, bottom + 4)], sheet.LINE)
    return picture


def mask_picture(view: View, tokens: np.ndarray, side: int = MASK) -> Image.Image:
    """A mask: a row a query, a column a key in the key's colour, kinds along the edges."""
    if len(tokens) > SAMPLES:
        tokens = tokens[np.linspace(0, len(tokens) - 1, SAMPLES).round().astype(int)]
    colours = COLOURS[view.kind[tokens]]
    pixels = np.where(mask(view, tokens)[..., None], colours[None], np.uint8(255))
    drawn = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    way = Image.Resampling.NEAREST if len(tokens) < side else Image.Resampling.BOX
    drawn = drawn.resize((side, side), way)
    edge = lambda size: Image.fromarray(colours[None] if size[0] > size[1] else colours[:, None])
    top, left = (edge(size).resize(size, Image.Resampling.NEAREST)
                 for size in ((side, 12), (12, side)))  # fmt: skip
    whole = Image.new("RGB", (side + 15, side + 15), sheet.PAPER)
    whole.paste(top, (15, 0))
    whole.paste(left, (0, 15))
    whole.paste(drawn, (15, 15))
    ImageDraw.Draw(whole).rectangle([15, 15, side + 14, side + 14], outline=sheet.LINE)
    return whole


def example_picture(view: View, number: int) -> Image.Image:
    """An example as a sentence: tokens and pictures in their colours."""
    name, kind, spans = view.examples[number]
    inner = WIDTH - 30
    parts = [part for span in spans for part in _span_pictures(view, span)]
    und = sum(int((view.laid.stream[s.start : s.end] != GEN).sum()) for s in spans)
    gen = sum(s.end - s.start for s in spans) - und
    title = sheet.word(f"{number} · {name} · {kind or 'no kind'} · {und} und, {gen} gen", 13,
                       sheet.FAINT)  # fmt: skip
    body = sheet.flow(parts, inner, 3, 8)
    return sheet.frame(sheet.wide(sheet.column([title, body], 8), inner), sheet.LINE, 1, 13)


def _span_pictures(view: View, span: Span) -> list[Image.Image]:
    item, laid = span.item, view.laid
    if item.kind != "text":
        return [_image_box(view, span)]
    if item.dropped:
        text = view.tokenizer.decode(item.ids)
        return [struck(own) for own in sheet.words(text, ink=sheet.FAINT)]
    tokens = list(range(span.start, span.end))
    shown = tokens[:MOST_TOKENS]
    parts = [_token_box(view, token, int(laid.position[0][token])) for token in shown]
    if len(shown) < len(tokens):
        parts.append(sheet.word(f"… {len(tokens) - len(shown)} more", 13, sheet.FAINT))
    return parts


def _token_box(view: View, token: int, position: int) -> Image.Image:
    colour = tuple(int(c) for c in COLOURS[view.kind[token]])
    is_marker = view.kind[token] == MARKER
    paper = colour if is_marker else soft(colour)
    chip = sheet.word(token_text(view, token), 11 if is_marker else 14,
                      sheet.PAPER if is_marker else sheet.INK, paper, 3)  # fmt: skip
    below = sheet.word(str(position), 9, sheet.FAINT)
    lines = [chip, Image.new("RGB", (chip.width, 3), colour), below]
    return sheet.column(lines, 0)


def _image_box(view: View, span: Span) -> Image.Image:
    item = span.item
    code = {"vit": PATCH, "clean": CLEAN, "target": NOISY}[item.kind]
    colour = tuple(int(c) for c in COLOURS[PADDING if item.dropped else code])
    if item.image is None:
        drawn = Image.new("RGB", (72, 72), sheet.SOFT)
    else:
        drawn = sheet.thumbnail(Image.fromarray(item.image), 150 if item.kind == "target" else 96)
    drawn = sheet.frame(drawn, colour, 4)
    if item.dropped:
        drawn = struck(drawn)
    return sheet.column([drawn, sheet.word(describe(view, span), 10, sheet.FAINT)], 2)


def struck(picture: Image.Image) -> Image.Image:
    """The same with a line through it."""
    picture = picture.copy()
    middle = picture.height // 2
    ImageDraw.Draw(picture).line([(0, middle), (picture.width, middle)], sheet.FAINT, 2)
    return picture


def soft(colour: sheet.Colour) -> sheet.Colour:
    """A pale tone of a colour, for what stands behind letters."""
    return tuple(round(255 - (255 - c) * 0.22) for c in colour)
