"""Prints how many parameters a model has, by part and expert; allocates none of them.

python -m tools.parameters --config=configs/bagel_7b.py [--config.model.llm.layers=2 ...]
python -m tools.parameters --checkpoint=DIR      a run's folder or a BAGEL-format folder
"""

from __future__ import annotations

import argparse
import sys

from tools import outcome


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR")
    parser.add_argument("--config", metavar="FILE")
    options, rest = parser.parse_known_args(argv[1:])
    if (options.checkpoint is None) == (options.config is None):
        parser.error("give either --config=FILE or --checkpoint=DIR")
    if options.checkpoint and rest:
        parser.error(f"{rest[0]}: not expected with --checkpoint")
    return outcome.status(lambda: print(_table(options.checkpoint, argv)), failure=1)


def _table(checkpoint: str | None, argv: list[str]) -> str:
    from inset_jax.checkpoint import convert, load, parameters
    from inset_jax.core import overrides

    if checkpoint is None:
        config = overrides.parse(argv, {}).config.model
    else:
        config = load.read_config(checkpoint)
    return parameters.table(convert.shapes(config))


if __name__ == "__main__":
    sys.exit(main())
