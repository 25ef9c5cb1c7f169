"""Draws scenes of the small world as records without latents, and a tokenizer beside them.

python -m tools.draw_world --out runs/world --train 6000 --validation 128

OUT is a folder of records in shards, with OUT/tokenizer.json. What is drawn depends on the seed,
the artwork and the shares alone. The same command goes on after an interruption and makes only what
is missing. Latents are added by tools.encode_latents.
"""

from __future__ import annotations

import argparse
import os
import sys

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw_world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--artwork", default="assets/demo", help="folder of artwork (%(default)s)")
    flag("--out", required=True, help="folder of records")
    flag("--train", type=int, default=6000, help="training scenes (%(default)s)")
    flag("--validation", type=int, default=128, help="held-out scenes (%(default)s)")
    flag("--seed", type=int, default=0)
    flag("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    flag("--per-shard", type=int, default=2000, help="scenes of a shard (%(default)s)")
    flag("--draws", type=int, help="how often a target stands in its record")
    flag("--objects", type=weights, help="weights of scenes with 1, 2, ... objects: 1,2,1")
    kinds = "weights of image-interleaved, video-interleaved, editing, t2i, understanding"
    flag("--kinds", type=weights, help=kinds)
    other = "other fields of engine.stage.WorldConfig: photographs=0 relations=left,right"
    flag("--world", nargs="+", default=(), metavar="NAME=VALUE", help=other)
    flag("--config", default="configs/demo.py", help="gives the vocabulary's size (%(default)s)")
    options = parser.parse_args(arguments)
    if options.draws is not None and options.draws < 1:
        parser.error("--draws: at least 1; without it a record has no target")
    return outcome.status(lambda: _draw(options), failure=1, resumes=True)


def weights(text: str) -> tuple[float, ...]:
    """Parses numbers between commas: an argparse type."""
    return tuple(float(number) for number in text.split(","))


def _draw(options: argparse.Namespace) -> int:
    from inset_jax.core import overrides
    from inset_jax.data import build
    from inset_jax.engine import world_records

    world = world_records.World(
        options.artwork,
        (("train", options.train), ("validation", options.validation)),
        options.seed,
        world_records.config_of(options.objects, options.kinds, options.world),
        options.draws or world_records.DRAWS,
    )
    workers = options.workers if options.train > options.per_shard else 0
    model = overrides.load(options.config).model
    progress = build.say_progress
    built = build.build_records(world, options.out, options.per_shard, workers, progress=progress)
    world.tokenizer(model.llm.vocab_size, model.tokens).save(options.out)
    return build.say_outcome(built, options.out, False, 20)


if __name__ == "__main__":
    sys.exit(main())
