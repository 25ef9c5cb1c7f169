"""Draws held-out sentences with a checkpoint and judges the drawings: the project's table.

    python -m tools.judge --checkpoint runs/demo --out table.json --seeds 3 --sentences 48

Rows: 1 to 8 references, sentences that count, edits, second frames; for --controls also references
of another sentence, swapped ones (of several each place gets the next one's, which leaves the order
of places that are no neighbours to chance), none, and untrained weights. Counts, edits and second
frames also with another sentence's target in place of the drawing, because chance has no figure for
their columns. Columns, each with a 95% interval over sentences: inset_jax/engine/judge.py says what
they mean. Sentences that the model cannot draw, longer or with larger pictures than it knows, are
left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

from tools import outcome

CONTROLS = ("2 references", "5 references")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="folder of a run or of one checkpoint")
    flag("--out", type=pathlib.Path, required=True, help="JSON file")
    flag("--rows", help="names between commas, such as: 2 references,editing (all)")
    flag("--controls", default=",".join(CONTROLS), help="rows drawn under controls (%(default)s)")
    options = parse(parser, arguments, seeds=3)
    return outcome.status(lambda: _judge(options), failure=1)


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, seeds: int
) -> argparse.Namespace:
    """Parses the parser's own flags and those of what draws and judges sentences."""
    flag = parser.add_argument
    flag("--seeds", type=int, default=seeds, help="drawings of each sentence (%(default)s)")
    flag("--sentences", type=int, default=48, help="of each row (%(default)s)")
    flag("--weights", default="ema", choices=("ema", "params"), help="(%(default)s)")
    flag("--batch", type=int, default=24, help="pictures drawn together (%(default)s)")
    flag("--world", nargs="+", default=(), metavar="NAME=VALUE", help="as in tools.draw_world")
    flag("--artwork", default="assets/demo", help="folder of artwork (%(default)s)")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.batch) < 1:
        parser.error("--seeds and --batch: at least 1")
    if options.sentences < 2:
        parser.error("--sentences: at least 2; intervals are over sentences")
    return options


def _judge(options: argparse.Namespace) -> int:
    from inset_jax.engine import artwork, exam, world_records
    from inset_jax.engine.judge import chance
    from inset_jax.evaluate import table
    from inset_jax.sample.api import Generator
    from tools import judging

    wanted = options.rows.split(",") if options.rows else list(exam.ROWS)
    art = artwork.load(options.artwork)
    world = world_records.config_of(changes=options.world)
    exams = {row: exam.scenes(art, row, options.sentences, world) for row in wanted}
    generator = Generator.load(options.checkpoint, options.weights)
    exams, left_out = judging.drawable(exams, generator)
    if not exams:
        raise ValueError(f"nothing to draw: {judging.spell(left_out)}")
    plans = judging.plans(exams, options.controls.split(","))
    by_chance = chance(len(art.things["validation"]))
    progress = judging.Progress(
        sum(judging.work(plan, exams[plan.row], options.seeds) for plan in plans)
    )
    began, rows = time.time(), []
    facts = judging.facts(generator, options, art) | {"left_out": left_out}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        rows.append(judging.row(plan, exams[plan.row], generator, art, options, progress))
        print(table.text(table.table(rows[-1:], by_chance)[:2]), flush=True)
        # after each row: what is measured outlives a run that is cut
        facts |= {"seconds": round(time.time() - began), "rows": table.to_json(rows)}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print("\n" + table.text(table.table(rows, by_chance)))
    if left_out:
        print(f"left out: {judging.spell(left_out)}")
    print(f"{options.out}: {len(rows)} rows, {facts['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
