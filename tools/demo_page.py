"""The demo's last steps: drawings of held-out sentences, what they are worth, and the page."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.core import page
from inset_jax.engine import artwork
from inset_jax.engine.judge import judge
from inset_jax.evaluate import held_out
from inset_jax.evaluate.held_out import AS_WRITTEN, CONDITIONS, SWAPPED

BATCH = 8  # sentences in one run
SHOWN = 16  # sentences on the page
ARTWORK = "assets/demo"


class Results(NamedTuple):
    """Held-out sentences and the drawing of each under every condition."""

    sentences: list[held_out.Sentence]
    drawings: dict[str, list[Image.Image]]


class Figures(NamedTuple):
    """What drawings under one condition are worth, measured against the sentence as written."""

    psnr: float  # dB to the target
    identity: float  # share of places where the right one of `candidates` objects is nearest
    order: float  # share of places nearer to their own object than to the other of the scene
    candidates: int


def draw(run: pathlib.Path, prompts: pathlib.Path) -> Results:
    """Draws all sentences under all conditions, from the same noise."""
    from inset_jax.sample.api import Generator, Options
    from inset_jax.sample.prompt import Prompt

    generator = Generator.load(str(run))
    sentences = held_out.read(prompts)
    drawings: dict[str, list[Image.Image]] = {}
    for condition in CONDITIONS:
        pieces = held_out.under(condition, sentences)
        drawings[condition] = []
        for start in range(0, len(pieces), BATCH):
            some = [
                Prompt(own, seed=start + n) for n, own in enumerate(pieces[start : start + BATCH])
            ]
            made = generator.draw_all(some, Options())
            drawings[condition] += [one.pictures[0] for one in made]
        print(f"{condition}: {len(pieces)} pictures", flush=True)
    return Results(sentences, drawings)


def measure(results: Results, scenes: Sequence) -> dict[str, Figures]:
    """Returns figures for every condition; `scenes` are those behind the sentences."""
    candidates = artwork.load(ARTWORK).things["validation"]
    figures = {}
    for condition, drawings in results.drawings.items():
        verdicts = [
            verdict
            for scene, drawing in zip(scenes, drawings, strict=True)
            for verdict in judge(scene, np.asarray(drawing), candidates)
        ]
        psnr = [
            held_out.psnr(drawing, sentence.target)
            for drawing, sentence in zip(drawings, results.sentences, strict=True)
        ]
        figures[condition] = Figures(
            float(np.mean(psnr)),
            float(np.mean([verdict.rank == 0 for verdict in verdicts])),
            float(np.mean([verdict.in_order for verdict in verdicts])),
            len(candidates),
        )
    return figures


def table(figures: Mapping[str, Figures]) -> list[list[str]]:
    candidates = next(iter(figures.values())).candidates
    head = ["", f"right one of {candidates}", "own object nearer", "PSNR to target"]
    rows = [
        [condition, f"{own.identity:.0%}", f"{own.order:.0%}", f"{own.psnr:.1f} dB"]
        for condition, own in figures.items()
    ]
    return [head, *rows, ["chance", f"{1 / candidates:.0%}", "50%", ""]]


def render(
    run: pathlib.Path,
    results: Results,
    figures: Mapping[str, Figures],
    times: Mapping[str, float],
    killed: int,
) -> str:
    """Returns the page as HTML."""
    from inset_jax.train.metrics import spell

    curves = run / "curves.png"
    rows = []
    for number, sentence in enumerate(results.sentences[:SHOWN]):
        shown = {
            "drawn": results.drawings[AS_WRITTEN][number],
            "target, never seen by the model": sentence.target,
            "drawn with the pictures swapped": results.drawings[SWAPPED][number],
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
            "At every place the nearest of all held-out objects is looked for, pixel by pixel. "
            "Each row draws the same sentences from the same noise and is compared with the "
            "sentence as written: if the pictures in the sentence did nothing, the rows would "
            "agree.",
            table=table(figures),
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
