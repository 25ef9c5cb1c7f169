"""The demo's last steps: drawings of held-out sentences, what they are worth, and the page.

A part of the page that is drawn with the model stands in a module of its own: demo_strips,
demo_attention; `explore` draws both.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from inset_jax.core import page
from inset_jax.core.config import SampleConfig, edit
from inset_jax.engine import artwork
from inset_jax.engine.judge import chance
from inset_jax.evaluate import held_out, table
from inset_jax.evaluate.held_out import AS_WRITTEN, CONDITIONS, SWAPPED
from tools import demo_attention, demo_strips, demo_table, judging

if TYPE_CHECKING:
    from inset_jax.engine.world import Scene
    from inset_jax.sample.api import Generator

SHOWN = 16  # sentences on the page
LOOKED_INTO = 2  # of them, whose attention is shown
ARTWORK = "assets/demo"
MEASURED = pathlib.Path("assets/demo/table.json")  # of tools.judge, for the shipped weights
OWN = ("kind", "folder", "step", "tools", "weights", "files", "time")  # not notes of people
BEFORE = "as written, before training on"


class Results(NamedTuple):
    """Held-out sentences and the drawings of each under every condition."""

    sentences: list[held_out.Sentence]
    drawings: dict[str, list[list[Image.Image]]]  # condition, or BEFORE -> one list a sentence
    seconds: float  # of a picture, several drawn together, after compilation


def draw_before(
    weights: str, prompts: pathlib.Path, sampling: SampleConfig
) -> list[list[Image.Image]]:
    """Draws all sentences of a file, as written, with weights that are to be trained on.

    Args:
      sampling: of the run that trains them, so that only the weights differ from what it draws.
    """
    from inset_jax.sample.api import Generator

    generator = Generator.load(weights)
    generator.config = edit(generator.config, sample=sampling)
    sentences, watch = held_out.read(prompts), Watch()
    drawings = held_out.draw(generator, sentences, watch=watch)
    print(f"{len(sentences)} pictures, {watch.seconds:.2f} s each at best", flush=True)
    return drawings


def draw(
    run: pathlib.Path, prompts: pathlib.Path, before: list[list[Image.Image]] | None = None
) -> Results:
    """Draws all sentences of a file under all conditions, from the same noise.

    Args:
      before: what `draw_before` returned.
    """
    from inset_jax.sample.api import Generator

    results = drawn(Generator.load(str(run)), held_out.read(prompts))
    if before is None:
        return results
    return results._replace(drawings={BEFORE: before, **results.drawings})


class Watch:
    """Finds out how long a picture takes: the fastest run's time, divided by its pictures."""

    def __init__(self):
        self.seconds = float("inf")
        self._last = time.monotonic()

    def __call__(self, pictures: int) -> None:
        now = time.monotonic()
        self.seconds = min(self.seconds, (now - self._last) / pictures)
        self._last = now


def drawn(generator: Generator, sentences: list[held_out.Sentence]) -> Results:
    """Draws sentences under all conditions that change one of them, from the same noise."""
    drawings: dict[str, list[list[Image.Image]]] = {}
    watch = Watch()
    for condition in CONDITIONS:
        if not any(held_out.applies(condition, sentence) for sentence in sentences):
            print(f"{condition}: no sentence has the pictures for it", flush=True)
            continue
        drawings[condition] = held_out.draw(generator, sentences, condition, watch=watch)
        print(f"{condition}: {len(sentences)} pictures", flush=True)
    return Results(sentences, drawings, watch.seconds)


def explore(run: pathlib.Path | Generator, scenes: Sequence[Scene]) -> list[page.Section]:
    """Draws the sections that look into the model: strips, and attention over sentences.

    Args:
      run: a folder, or the model that was loaded from it.
      scenes: held-out ones; those of several objects in the smallest pictures are taken.
    """
    from inset_jax.sample.api import Generator

    generator = run if isinstance(run, Generator) else Generator.load(str(run))
    chosen = [scene for scene in scenes if len(scene.places) > 1] or list(scenes)
    first, *others = sorted(chosen, key=lambda scene: scene.target.size)
    strips = demo_strips.draw(generator, judging.sentence(first))
    looks = [demo_attention.look(generator, scene) for scene in (others or [first])[:LOOKED_INTO]]
    return [demo_strips.section(strips), demo_attention.section(looks)]


def measure(results: Results, scenes: Sequence) -> list[table.Row]:
    """Returns a row for every condition; `scenes` are those behind the sentences."""
    art, name, rows = artwork.load(ARTWORK), f"{len(scenes)} held-out sentences", []
    for condition, drawings in results.drawings.items():
        kept = judging.concerned(condition, scenes, drawings)
        rows.append(table.Row(name, condition, judging.figures(*kept, art)))
    return rows


def figures_table(rows: Sequence[table.Row]) -> list[list[str]]:
    return table.table(rows, _by_chance(rows))


def _by_chance(rows: Sequence[table.Row]) -> dict[str, float | None]:
    """What chance gives in the columns that were measured."""
    found = chance(len(artwork.load(ARTWORK).things["validation"]))
    return {name: found[name] for name in found if any(name in row.columns for row in rows)}


def render(
    run: pathlib.Path,
    results: Results,
    figures: Sequence[table.Row],
    times: Mapping[str, float],
    killed: int,
    extras: Sequence[page.Section] = (),
) -> str:
    """Returns the page as HTML.

    Args:
      times: seconds of "training" and of "everything".
      killed: the step after which training was killed; 0: it was not.
      extras: what `explore` returned.
    """
    curves = run / "curves.png"
    measured = [demo_table.section(MEASURED)] if MEASURED.exists() else []
    facts = _facts(run) | _told(results, times, killed)
    has_before = BEFORE in results.drawings
    gallery = "".join(map(page.card, _rows(results)))
    sections = [
        page.Section(
            "Drawn from sentences with pictures in them",
            "None of these objects was seen in training: objects are held out by look-alike group. "
            "The target is what the world's generator drew for the sentence; the model never saw "
            "it. Swapped: the same sentence with its pictures exchanged, from the same noise."
            + " Before: drawn with the shipped weights, from the same noise."
            * has_before,
            html=f"<div class='gallery{' four' * has_before}'>{gallery}</div>",
        ),
        *extras,
        *measured,
        page.Section(
            "What these drawings are worth",
            f"The sentences of this page, {len(results.sentences)} in all. At every place the one "
            "of 64 held-out objects that explains the drawing best is looked for, pixel by pixel; "
            "in brackets 95% intervals. Each row draws the same sentences from the same noise and "
            "is compared with the sentence as written: if the pictures in the sentence did "
            "nothing, the rows would agree.",
            html=demo_table.lines(figures, _by_chance(figures)),
        ),
        page.Section("The run", facts=facts),
    ]
    if curves.exists():
        sections.append(page.Section("Losses", picture=curves.read_bytes()))
    lead = (
        "A small model of the real architecture draws sentences that have pictures in place of "
        "nouns. How often it puts the right object at the right place stands in the tables."
    )
    style = STYLE + demo_strips.STYLE + demo_attention.STYLE + demo_table.STYLE
    return page.render("Images in sentences", lead, sections, style)


STYLE = """
main { max-width: 1040px; }
.gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
.gallery article { margin: 0; }
.gallery .drawing { width: 128px; }
.four { grid-template-columns: repeat(auto-fill, minmax(470px, 1fr)); }
.four .drawing { width: 96px; }
@media (max-width: 520px) { .gallery { grid-template-columns: 1fr; } }
"""


def _rows(results: Results) -> list[page.Row]:
    """The first sentences, each with drawing, target, a control and what was drawn before."""
    rows = []
    for number, sentence in enumerate(results.sentences[:SHOWN]):
        shown = {"source": sentence.source} if sentence.source is not None else {}
        shown |= {"drawn": results.drawings[AS_WRITTEN][number][0], "target": sentence.target}
        for condition, caption in ((SWAPPED, "swapped"), (BEFORE, "before")):
            if condition in results.drawings:
                shown[caption] = results.drawings[condition][number][0]
        rows.append(page.Row(sentence.pieces, shown))
    return rows


def _told(results: Results, times: Mapping[str, float], killed: int) -> dict[str, str]:
    """How a run was interrupted, and how long everything took; see `render`."""
    from inset_jax.train.metrics import spell

    facts = {}
    if killed:
        facts["killed and resumed"] = (
            f"kill -9 after step {killed}; the same command went on from the last checkpoint"
        )
    if "training" in times:
        facts["training, world and first drawings included"] = spell(times["training"])
        facts["whole demo"] = spell(times["everything"])
    else:
        facts["drawing and judging"] = spell(times["everything"])
    facts["a picture"] = f"{results.seconds:.2f} s at best, several drawn together"
    facts["machine"] = f"{os.cpu_count()} CPU cores"
    return facts


def _facts(run: pathlib.Path) -> dict[str, str]:
    """Sizes and losses of a run, from its config, its checkpoint and its records."""
    import math

    from inset_jax.checkpoint import convert, load, provenance
    from inset_jax.train import metrics

    config = load.read_config(run)
    counts = {"model": 0, "vae": 0}
    for path, shape in convert.shapes(config).items():
        counts[path.split("/")[0]] += math.prod(shape)
    facts = {"parameters": f"{counts['model']:,} and {counts['vae']:,} in the autoencoder"}
    facts |= notes(provenance.ancestry(run))
    records = metrics.read(run)
    if not records:  # an export has none
        return facts
    facts["updates"] = f"{max(row['step'] for row in records):,}"
    for phase, name in (("train", "training"), ("validation", "held out")):
        losses = [row["flow"] for row in records if row["phase"] == phase and "flow" in row]
        if losses:
            facts[f"flow loss, {name}"] = f"{losses[0]:.3f} at first, {losses[-1]:.3f} at last"
    return facts


def notes(provenance: Sequence[Mapping]) -> dict[str, str]:
    """What people noted about the weights that a run began with or is: cost, data, figures."""
    return {
        f"{name}, earlier weights" if entry is not provenance[-1] else name: str(value)
        for entry in provenance
        for name, value in entry.items()
        if name not in OWN and isinstance(value, (str, int, float))
    }
