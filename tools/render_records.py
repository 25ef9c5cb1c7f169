"""Gives the pictures of records their exact training sizes, for runs where resizing is what waits.

python -m tools.render_records SRC DST --config=FILE [--config.field=value ...]

The config is that of the training. Pixels are stored as PNG; packs of DST are those of SRC to the
bit. A picture that is read as ViT patches and as latents is stored twice, so DST is larger or
smaller than SRC as its pictures are. Another resizing rule needs the original records. The same
command goes on after an interruption. Moments are kept where they are (tools.encode_latents).
"""

from __future__ import annotations

import argparse
import os
import sys

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.render_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="folder of records")
    parser.add_argument("folder", metavar="DST", help="folder of records to make")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    options, rest = parser.parse_known_args(arguments)
    return outcome.status(lambda: _render(options, rest), resumes=True)


def _render(options: argparse.Namespace, rest: list[str]) -> int:
    from inset_jax.core import checks, overrides
    from inset_jax.data import build, rewrite

    config = overrides.parse(["render_records", *rest], {}).config
    checks.check(config)
    records, workers = rewrite.Rendered(options.source, config), options.workers
    built = build.build_records(
        records, options.folder, rewrite.ONE_TO_ONE, workers, progress=build.say_progress
    )
    return build.say_outcome(built, options.folder, False, 20)


if __name__ == "__main__":
    sys.exit(main())
