"""Parts of tools.judge and of the demo's page: sentences of scenes, drawings, figures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from inset_jax.engine import judge as judges
from inset_jax.engine.artwork import Artwork
from inset_jax.engine.world import Scene
from inset_jax.evaluate import held_out, table
from inset_jax.evaluate.held_out import AS_WRITTEN, CONDITIONS, Sentence

UNTRAINED = "untrained weights"
UNRELATED = "target of another sentence"  # in place of a drawing: what any good picture gets
EVERY = 10.0  # seconds between two lines of progress


class Plan(NamedTuple):
    """One row of the table, to be drawn."""

    row: str  # of exam.ROWS
    condition: str  # one of held_out.CONDITIONS, or UNTRAINED, or UNRELATED


class Progress:
    """Says how far a table has come whose pictures are drawn, judged or both, one after another."""

    def __init__(self, pictures: int):
        self._total, self._done = pictures, 0
        self._began = self._said = time.monotonic()

    def __call__(self, what: str, pictures: int) -> None:
        from inset_jax.train.metrics import spell

        self._done += pictures
        now = time.monotonic()
        if now - self._said < EVERY and self._done < self._total:
            return
        self._said = now
        left = spell((self._total - self._done) * (now - self._began) / self._done)
        print(f"{what}: {self._done / self._total:.0%} of all pictures, {left} left", flush=True)


def sentence(scene: Scene) -> Sentence:
    """A scene as it is asked for; the first of two frames is a picture before the sentence."""
    pieces = [
        Image.fromarray(scene.references[piece]) if isinstance(piece, int) else piece
        for piece in scene.pieces()
    ]
    source = None if scene.source is None else Image.fromarray(scene.source)
    if source is not None and scene.kind != "editing":
        pieces, source = [source, *pieces], None
    return Sentence(pieces, scene.words(), Image.fromarray(scene.target), source)


def drawable(exams: Mapping[str, list[Scene]], generator) -> tuple[dict, dict[str, str]]:
    """Leaves out sentences that a model cannot draw, and rows with fewer than two that it can.

    Returns:
      the rows with their other sentences; by row how many are left out, and why the first one is.
    """
    can, left_out = {}, {}
    for row, scenes in exams.items():
        fitting, reason = fits(scenes, generator)
        if reason:
            left_out[row] = reason
        if len(fitting) > 1:
            can[row] = fitting
    return can, left_out


def fits(scenes: Sequence[Scene], generator) -> tuple[list[Scene], str]:
    """The scenes whose sentences a model can draw; how many are left out, and why the first is."""
    fitting, reasons = [], []
    for scene in scenes:
        try:
            held_out.check(generator, sentence(scene))
            fitting.append(scene)
        except ValueError as error:
            reasons.append(str(error))
    reason = f"{len(reasons)} of {len(scenes)} sentences: {reasons[0]}" if reasons else ""
    return fitting, reason


def spell(left_out: Mapping[str, str]) -> str:
    """What `drawable` left out, as one line."""
    return "; ".join(f"{row}, {reason}" for row, reason in left_out.items())


def plans(exams: Mapping[str, Sequence[Scene]], controls: Sequence[str]) -> list[Plan]:
    """All rows as written, counts and changes as UNRELATED pictures, `controls` under each control.

    A control that changes none of a row's sentences is left out: of one picture, none is swapped.

    Raises:
      ValueError: a control of a row that does not exist.
    """
    from inset_jax.engine.exam import REFERENCES, ROWS

    if unknown := [row for row in controls if row and row not in ROWS]:
        raise ValueError(f"controls of {', '.join(unknown)}: there are {', '.join(ROWS)}")
    changes = lambda control, row: any(
        held_out.applies(control, sentence(scene)) for scene in exams[row]
    )
    chosen = [row for row in controls if row in exams]
    return [
        *(Plan(row, AS_WRITTEN) for row in exams),
        *(Plan(row, UNRELATED) for row in exams if row not in REFERENCES),
        *(
            Plan(row, control)
            for row in chosen
            for control in [*CONDITIONS[1:], UNTRAINED]
            if changes(control, row)
        ),
    ]


def concerned(condition: str, scenes: Sequence[Scene], drawings: Sequence) -> tuple[list, list]:
    """Scenes whose sentences have the pictures that a condition changes, and their drawings."""
    pairs = zip(scenes, drawings, strict=True)
    kept = [pair for pair in pairs if held_out.applies(condition, sentence(pair[0]))]
    return [scene for scene, _ in kept], [drawing for _, drawing in kept]


def work(plan: Plan, scenes: Sequence[Scene], seeds: int) -> int:
    """How many pictures a row draws and judges, each time counted."""
    if plan.condition == UNRELATED:
        return len(unrelated(scenes)[0])
    return seeds * (len(scenes) + len(concerned(plan.condition, scenes, scenes)[0]))


def row(plan: Plan, scenes: Sequence[Scene], generator, art: Artwork, options, progress):
    """Draws and judges one row."""
    watch = lambda deed: lambda count: progress(f"{plan.row}, {plan.condition}, {deed}", count)
    if plan.condition == UNRELATED:
        scenes, drawings = unrelated(scenes)
    else:
        drawings = _draw(plan.condition, scenes, generator, options, watch("drawn"))
        scenes, drawings = concerned(plan.condition, scenes, drawings)
    return table.Row(plan.row, plan.condition, figures(scenes, drawings, art, watch("judged")))


def _draw(condition: str, scenes: Sequence[Scene], generator, options, watch):
    """Draws all scenes, so that each has the same noise under every condition."""
    if condition == UNTRAINED:
        generator, condition = untrained(generator), AS_WRITTEN
    sentences = [sentence(scene) for scene in scenes]
    return held_out.draw(generator, sentences, condition, options.seeds, options.batch, watch)


def unrelated(scenes: Sequence[Scene]) -> tuple[list[Scene], list[list[Image.Image]]]:
    """Scenes, and for each the target of the next one of its size: as one drawing of it."""
    kept, drawings = [], []
    for number, scene in enumerate(scenes):
        others = [*scenes[number + 1 :], *scenes[:number]]
        fits = [one.target for one in others if one.target.shape == scene.target.shape]
        if fits:
            kept.append(scene)
            drawings.append([Image.fromarray(fits[0])])
    return kept, drawings


def figures(
    scenes: Sequence[Scene],
    drawings: Sequence[Sequence[Image.Image]],
    art: Artwork,
    watch: Callable[[int], None] = lambda pictures: None,
) -> dict[str, table.Estimate]:
    """Judges drawings, one a scene and seed, among all held-out objects.

    Args:
      watch: called with 1 for each picture that is judged.
    """
    candidates = art.things["validation"]

    def outcomes(number: int, pixels: np.ndarray) -> dict[str, list[float]]:
        found = judges.outcomes(judges.judge(scenes[number], pixels, candidates, art))
        watch(1)
        return found

    targets = [Image.fromarray(scene.target) for scene in scenes]
    return table.columns(targets, drawings, outcomes)


def untrained(generator):
    """The same model with random weights; the autoencoder stays."""
    from inset_jax.model import inset
    from inset_jax.sample.api import Generator

    fresh = inset.create(generator.config.model, seed=0)[1]
    params = {**generator.sampler.params, "model": fresh}
    return Generator(generator.config, params, generator.tokenizer, generator.info)


def facts(generator, options, art: Artwork) -> dict:
    """What the figures were measured with."""
    import dataclasses

    from inset_jax.engine import exam, world_records

    info = generator.info
    return {
        "checkpoint": str(info["path"]),
        "step": info.get("step"),
        "weights": options.weights,
        "sha256": weights_hash(generator.sampler.params),
        "config": generator.config.name,
        "sampling": dataclasses.asdict(generator.settings()),
        "world": {
            "version": world_records.VERSION,
            "seed": exam.SEED,
            "changes": list(options.world),
        },
        "candidates": len(art.things["validation"]),
        "sentences": options.sentences,
        "seeds": options.seeds,
        "interval": table.INTERVAL,
    }


def weights_hash(params) -> str:
    """SHA-256 over all parameters, by name: hexadecimal."""
    from inset_jax.checkpoint import names

    total = hashlib.sha256()
    for path, leaf in sorted(names.flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{path} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
