"""The demo's page for a checkpoint that is there already: nothing is trained.

python -m tools.demo_report --checkpoint runs/mine --out page.html
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

from tools import outcome

ROW = "2 references"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="folder of a run or of one checkpoint")
    flag("--out", type=pathlib.Path, required=True, help="HTML file")
    flag("--row", default=ROW, help="which sentences, as tools.judge calls them (%(default)s)")
    flag("--sentences", type=int, default=16, help="how many are drawn (%(default)s)")
    options = parser.parse_args(arguments)
    if options.sentences < 2:
        parser.error("--sentences: at least 2")
    return outcome.status(lambda: _report(options), failure=1)


def _report(options: argparse.Namespace) -> int:
    from inset_jax.engine import artwork, exam
    from inset_jax.sample.api import Generator
    from tools import demo_page, judging

    began = time.monotonic()
    asked = exam.scenes(artwork.load(demo_page.ARTWORK), options.row, options.sentences)
    generator = Generator.load(options.checkpoint)
    scenes, reason = judging.fits(asked, generator)
    if reason:
        print(f"left out: {reason}", flush=True)
    if len(scenes) < 2:
        raise ValueError(f"{options.row}: fewer than two sentences that the model can draw")
    results = demo_page.drawn(generator, [judging.sentence(scene) for scene in scenes])
    started = time.monotonic()
    extras = demo_page.explore(generator, scenes)
    print(f"strips and attention: {time.monotonic() - started:.0f} s", flush=True)
    figures = demo_page.measure(results, scenes)
    times = {"everything": time.monotonic() - began}
    run = pathlib.Path(options.checkpoint)
    text = demo_page.render(run, results, figures, times, killed=0, extras=extras)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
