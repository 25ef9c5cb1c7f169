"""Pictures during training: a few sentences, drawn with the weights as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from inset_jax.core.config import Config
from inset_jax.data import image
from inset_jax.data import text as texts
from inset_jax.data.record import Example, open_records
from inset_jax.sample.api import Generator, Options
from inset_jax.sample.prompt import Prompt, check_drawable, vae_limits

SENTENCES = 4  # in one preview
SEARCHED = 256  # records of a folder that are looked at for them
GAP = 4  # pixels between cells
PAPER = (255, 255, 255)


def preview(
    params: dict[str, Any],
    config: Config,
    tokenizer: texts.Tokenizer,
    prompts: Sequence[Prompt],
    targets: Sequence[Image.Image] = (),
) -> Image.Image:
    """Draws one picture a prompt, in one batched run, with `config.sample`.

    Args:
      targets: what each prompt should have given, if known.

    Returns:
      a grid: a row a prompt, its pictures in reading order (the source first), the target if there
      are targets, and the drawing.
    """
    drawn = Generator(config, params, tokenizer).draw_all(prompts, Options(settings=config.sample))
    rows = []
    for number, (prompt, result) in enumerate(zip(prompts, drawn)):
        row = [piece for piece in prompt.pieces if isinstance(piece, Image.Image)]
        row = [prompt.source, *row] if prompt.source is not None else row
        rows.append([*row, *targets[number : number + 1], result.pictures[0]])
    return grid(rows)


def during_training(config: Config, params: dict[str, Any], step: int, folder: Path) -> list[Path]:
    """Draws the first sentences of the held-out records (or of the training ones) that have a
    picture to draw, of all folders in turn, on the mesh that is set; all processes of a run call it
    together, the first one writes.

    Returns:
      the files: one grid, `<folder>/<step>.png`.

    Raises:
      ValueError: no records, no tokenizer, or none of the first SEARCHED records of each folder has
        a picture that can be drawn.
    """
    split = "validation" if config.data.validation else "train"
    records = [open_records(name, split) for name in getattr(config.data, split)]
    file = config.data.tokenizer or config.run.init_from
    tokenizer = texts.load(file, config.model.tokens, config.model.llm.vocab_size)
    chosen = list(itertools.islice(_drawable(records, config, tokenizer), SENTENCES))
    if not chosen:
        raise ValueError(
            f"data.{split} has no example with a sentence and a picture to draw among the first "
            f"{SEARCHED} of each folder"
        )
    prompts, targets = zip(*chosen)
    path = Path(folder) / f"{step:08d}.png"
    page = preview(params, config, tokenizer, prompts, targets)
    if jax.process_index() == 0:
        page.save(path)
    return [path]


def _drawable(
    records: Sequence[Sequence[Example]], config: Config, tokenizer: texts.Tokenizer
) -> Iterator[tuple[Prompt, Image.Image]]:
    """Prompts of records and their targets; of each folder the first, of each the second, ..."""
    for number in range(SEARCHED):
        for own in records:
            try:
                asked = from_example(own[number], config) if number < len(own) else None
                if asked is not None:
                    check_drawable(asked[0], config, tokenizer)
                    yield asked
            except ValueError:  # damaged or too long: training says so, here another one will do
                continue


def from_example(example: Example, config: Config) -> tuple[Prompt, Image.Image] | None:
    """What a record asks for up to its first target, and that target; None if it has neither."""
    if all(segment.kind != "target" for segment in example.segments):
        return None  # before its pictures are decoded
    pieces: list[str | Image.Image] = []
    source, source_bytes = None, b""
    for segment in example.segments:
        if segment.kind == "target":
            target = image.load(segment.image, example.id)
            width, height = image.resized_size(*target.size, vae_limits(config))
            prompt = Prompt(pieces, source, height, width, name=example.id)
            return (prompt, target) if any(isinstance(piece, str) for piece in pieces) else None
        if segment.kind == "text":
            pieces.append(segment.text)
        elif segment.kind == "vae":
            source, source_bytes = image.load(segment.image, example.id), segment.image
        elif segment.image != source_bytes:  # the source's patches come with it
            pieces.append(image.load(segment.image, example.id))
    return None


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
