"""Writes the averaged weights of a run, without its optimizer, as a checkpoint to pass on.

python -m tools.export_weights runs/mine weights/mine --note "data: 40,000 scenes"
"""

from __future__ import annotations

import argparse
import os
import sys

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a run's work folder, or one step of its checkpoints")
    parser.add_argument("target", help="a folder that is not there yet")
    parser.add_argument("--note", action="append", default=[], help="KEY: VALUE, for provenance")
    options = parser.parse_args(arguments)
    notes = dict(note.split(": ", 1) for note in options.note if ": " in note)
    if len(notes) < len(options.note):
        parser.error("--note is KEY: VALUE, each key once")

    # a large model fits the machine's memory, and not always an accelerator's
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return outcome.status(lambda: _export(options, notes), failure=1)


def _export(options: argparse.Namespace, notes: dict[str, str]) -> None:
    from inset_jax.checkpoint.export import export

    done = export(options.source, options.target, notes)
    print(f"{options.target}: {done['weights']} of step {done['step']}")


if __name__ == "__main__":
    sys.exit(main())
