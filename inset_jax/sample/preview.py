"""Pictures during training: a few sentences, drawn with the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from inset_jax.core.config import Config
from inset_jax.data.text import Tokenizer
from inset_jax.sample.api import Generator, Options
from inset_jax.sample.prompt import Prompt

GAP = 4  # pixels between cells
PAPER = (255, 255, 255)


def preview(
    params: dict[str, Any], config: Config, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Image.Image:
    """Draws one picture a prompt, in one batched run, with `config.sample`.

    Returns:
      a grid: a row a prompt, its pictures in reading order (the source first), the drawing last.
    """
    generator = Generator(config, params, tokenizer)
    drawn = generator.draw_all(prompts, Options(settings=config.sample))
    rows = []
    for prompt, result in zip(prompts, drawn):
        given = [piece for piece in prompt.pieces if isinstance(piece, Image.Image)]
        given = [prompt.source, *given] if prompt.source is not None else given
        rows.append([*given, result.pictures[0]])
    return grid(rows)


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Lays pictures out in rows, aligned to the right; each shrinks to the last one's size."""
    width, height = (max(row[-1].size[axis] for row in rows) for axis in (0, 1))
    columns = max(map(len, rows))
    page = Image.new(
        "RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), PAPER
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row, columns - len(row)):
            cell = picture.convert("RGB")
            cell.thumbnail((width, height))
            page.paste(cell, (x * (width + GAP), y * (height + GAP)))
    return page
