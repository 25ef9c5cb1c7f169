"""The demo's last steps: drawings of held-out sentences, what they are worth, and the page."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from inset_jax.core import page
from inset_jax.engine import artwork
from inset_jax.engine.judge import CHANCE
from inset_jax.evaluate import held_out, table
from inset_jax.evaluate.held_out import AS_WRITTEN, CONDITIONS, SWAPPED
from tools import judging

SHOWN = 16  # sentences on the page
ARTWORK = "assets/demo"
COLUMNS = ("identity", "sharp identity", "relation")


class Results(NamedTuple):
    """Held-out sentences and the drawings of each under every condition."""

    sentences: list[held_out.Sentence]
    drawings: dict[str, list[list[Image.Image]]]  # condition -> one list a sentence


def draw(run: pathlib.Path, prompts: pathlib.Path) -> Results:
    """Draws all sentences under all conditions, from the same noise."""
    from inset_jax.sample.api import Generator

    generator = Generator.load(str(run))
    sentences = held_out.read(prompts)
    drawings: dict[str, list[list[Image.Image]]] = {}
    for condition in CONDITIONS:
        drawings[condition] = held_out.draw(generator, sentences, condition)
        print(f"{condition}: {len(sentences)} pictures", flush=True)
    return Results(sentences, drawings)


def measure(results: Results, scenes: Sequence) -> list[table.Row]:
    """Returns a row for every condition; `scenes` are those behind the sentences."""
    art, name = artwork.load(ARTWORK), f"{len(scenes)} held-out sentences"
    return [
        table.Row(name, condition, judging.figures(scenes, drawings, art))
        for condition, drawings in results.drawings.items()
    ]


def figures_table(rows: Sequence[table.Row]) -> list[list[str]]:
    return table.table(rows, {column: CHANCE[column] for column in COLUMNS})


def render(
    run: pathlib.Path,
    results: Results,
    figures: Sequence[table.Row],
    times: Mapping[str, float],
    killed: int,
) -> str:
    """Returns the page as HTML."""
    from inset_jax.train.metrics import spell

    curves = run / "curves.png"
    rows = []
    for number, sentence in enumerate(results.sentences[:SHOWN]):
        shown = {
            "drawn": results.drawings[AS_WRITTEN][number][0],
            "target, never seen by the model": sentence.target,
            "drawn with the pictures swapped": results.drawings[SWAPPED][number][0],
        }
        rows.append(page.Row(sentence.pieces, shown))
    facts = {
        **_facts(run),
        "killed and resumed": f"kill -9 after step {killed}; the same command went on from the "
        "last checkpoint",
        "training, world included": spell(times["training"]),
        "whole demo": spell(times["everything"]),
        "machine": f"{os.cpu_count()} CPU cores",
    }
    sections = [
        page.Section(
            "Drawn from sentences with pictures in them",
            "None of these objects was seen in training: objects are held out by look-alike group.",
            rows=rows,
        ),
        page.Section(
            "What the drawings are worth",
            "At every place the one of 64 held-out objects that explains the drawing best is "
            "looked for, pixel by pixel; in brackets 95% intervals. Each row draws the same "
            "sentences from the same noise and is compared with the sentence as written: if the "
            "pictures in the sentence did nothing, the rows would agree.",
            table=figures_table(figures),
        ),
        page.Section("The run", facts=facts),
        page.Section("Losses", picture=curves.read_bytes() if curves.exists() else b""),
    ]
    lead = (
        "A small model of the real architecture, trained from random weights on this machine, "
        "draws what sentences say with pictures in place of nouns."
    )
    return page.render("Images in sentences", lead, sections)


def _facts(run: pathlib.Path) -> dict[str, str]:
    """Sizes and losses of a run, from its config, its checkpoint and its records."""
    import math

    from inset_jax.checkpoint import convert, load
    from inset_jax.train import metrics

    config = load.read_config(run)
    counts = {"model": 0, "vae": 0}
    for path, shape in convert.shapes(config).items():
        counts[path.split("/")[0]] += math.prod(shape)
    records = metrics.read(run)
    facts = {
        "parameters": f"{counts['model']:,} and {counts['vae']:,} in the autoencoder",
        "updates": f"{max(row['step'] for row in records):,}",
    }
    for phase, name in (("train", "training"), ("validation", "held out")):
        losses = [row["flow"] for row in records if row["phase"] == phase and "flow" in row]
        if losses:
            facts[f"flow loss, {name}"] = f"{losses[0]:.3f} at first, {losses[-1]:.3f} at last"
    return facts
