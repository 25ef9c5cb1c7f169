"""Shows that a step is the same on one device, on meshes, in several processes and over slices.

python -m tools.equality --out out/equality

Draws a few records of the small world, runs the tiny preset on each layout of
`inset_jax.train.equality` on simulated CPU devices, and prints the largest differences of losses
and gradients from those of one device. Exit status 1 if one is above 1e-5.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from tools import draw_world, outcome

CONFIG = "configs/tiny.py"
PACKS = 8  # every mesh divides them


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.equality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/equality"))
    parser.add_argument("--layouts", nargs="+", help="the first is what the others are compared to")
    options = parser.parse_args(arguments)
    return outcome.status(lambda: _compare(options.out.resolve(), options.layouts), failure=1)


def _compare(out: pathlib.Path, names: list[str] | None) -> int:
    from inset_jax.core import overrides
    from inset_jax.core.config import edit
    from inset_jax.train import equality

    known = {layout.name: layout for layout in equality.LAYOUTS}
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"--layouts: no {', '.join(unknown)}; there are {', '.join(known)}")
    records = out / "records"
    amount = ["--train", "64", "--validation", "8", "--draws", "1", "--kinds", "1,1,1,1,1"]
    if status := draw_world.main(["--out", str(records), "--config", CONFIG, *amount]):
        return status
    config = edit(
        overrides.load(CONFIG),
        data__packs=PACKS,
        data__train=(str(records),),
        data__tokenizer=str(records),
        data__moments="none",
    )
    rows = []
    for row in equality.compare(config, out, [known[name] for name in names or known]):
        print(f"{row.layout.name:<12} {row.seconds:5.0f} s  {row.arrays} arrays", flush=True)
        rows.append(row)
    lines = equality.table(rows)
    (out / "equality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if all(row.equal for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
