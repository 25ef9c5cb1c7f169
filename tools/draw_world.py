"""Draws scenes of the small world as records without latents, to train an autoencoder on.

python -m tools.draw_world --out runs/world --train 6000 --validation 128
"""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.draw_world", description=__doc__)
    parser.add_argument("--artwork", default="assets/demo", help="folder of artwork")
    parser.add_argument("--out", required=True, help="folder of records; must not exist yet")
    parser.add_argument("--train", type=int, default=6000, help="number of training scenes")
    parser.add_argument("--validation", type=int, default=128, help="number of held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    from inset_jax.data.record import write_records
    from inset_jax.engine import artwork, world_records

    def examples(split: str, count: int):
        drawn = world_records.scenes(art, split, options.seed, count)
        for number, scene in enumerate(drawn):
            yield world_records.to_example(scene, f"{split}-{number}")

    try:
        art = artwork.load(options.artwork)
        counts = {"train": options.train, "validation": options.validation}
        write_records(options.out, {split: examples(split, n) for split, n in counts.items()})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.train} training and {options.validation} held-out scenes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
