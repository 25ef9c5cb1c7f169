"""Measures what a person's own photographs do: is the object found, and is its crop as good?

    python -m tools.own_pictures
    python -m tools.own_pictures --checkpoint assets/demo/weights --out own.json --sentences 24

Held-out objects are put into photographs (inset_jax/engine/photographs.py: small, off the middle, a
little turned, in uneven light, half of them on a plain ground), cut out as tools.cut_object does,
and used in held-out sentences. The first table says how well the cut's box overlaps the true one
(intersection over union; found: by half at least). With a checkpoint the second judges drawings of
the same sentences with four kinds of references, as tools.judge does:

    as written              the world's own references
    cut out                 what the tool finds; where it finds nothing, the whole photograph
    cut out by hand         the true box, as a person names it with --box
    whole photographs       not cut at all
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

from tools import judge, outcome

ROWS = "1 reference,2 references"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.own_pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--checkpoint", help="folder of a run or of one checkpoint; without, only cuts are judged")
    flag("--out", type=pathlib.Path, help="JSON file")
    flag("--rows", default=ROWS, help="names between commas (%(default)s)")
    options = judge.parse(parser, arguments, seeds=1)
    return outcome.status(lambda: _measure(options), failure=1)


def _measure(options: argparse.Namespace) -> None:
    from inset_jax.engine import artwork, exam, photographs, world_records
    from inset_jax.evaluate import table
    from inset_jax.evaluate.held_out import AS_WRITTEN
    from inset_jax.sample.api import Generator
    from tools import judging

    began, art = time.time(), artwork.load(options.artwork)
    world = world_records.config_of(changes=options.world)
    exams = {
        row: exam.scenes(art, row, options.sentences, world) for row in options.rows.split(",")
    }
    generator = None
    if options.checkpoint:
        generator = Generator.load(options.checkpoint, options.weights)
        exams, left_out = judging.drawable(exams, generator)
        if left_out:
            print(f"left out: {judging.spell(left_out)}")
        if not exams:
            raise ValueError("nothing to draw: no row has two sentences that the model can draw")
    kinds, cuts = {}, []
    for row, scenes in exams.items():
        own = photographs.in_scenes(art, scenes, exam.SEED)
        kinds[row], cuts = {AS_WRITTEN: scenes} | own.scenes, cuts + own.cuts
    quality = photographs.quality(cuts)
    print(table.text([["ground", "photographs", "found", "overlap"], *map(_cells, quality)]))
    facts = {"cuts": quality}
    if generator is not None:
        facts = _judged(kinds, generator, art, options) | facts
    if options.out:
        facts["seconds"] = round(time.time() - began)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{options.out}: {facts['seconds']} s")


def _cells(row: dict) -> list[str]:
    return [row["ground"], str(row["photographs"]), f"{row['found']:.0%}", f"{row['overlap']:.2f}"]


def _judged(kinds: dict[str, dict[str, list]], generator, art, options) -> dict:
    """Draws and judges each row with each kind of references."""
    from inset_jax.engine.judge import chance
    from inset_jax.evaluate import table
    from inset_jax.evaluate.held_out import AS_WRITTEN
    from tools import judging

    drawn = [(row, kind) for row, own in kinds.items() for kind in own]
    pictures = sum(len(scenes) for own in kinds.values() for scenes in own.values())
    progress = judging.Progress(2 * pictures * options.seeds)
    rows = []
    for name, kind in drawn:
        plan = judging.Plan(name, AS_WRITTEN)
        told = lambda what, count, kind=kind: progress(what.replace(AS_WRITTEN, kind), count)
        row = judging.row(plan, kinds[name][kind], generator, art, options, told)
        rows.append(row._replace(condition=kind))
    print("\n" + table.text(table.table(rows, chance(len(art.things["validation"])))))
    return judging.facts(generator, options, art) | {"rows": table.to_json(rows)}


if __name__ == "__main__":
    sys.exit(main())
