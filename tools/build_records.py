"""Makes records of a JSONL file: python -m tools.build_records SRC.jsonl DST [--allow-rejects].

The format is described in inset_jax/data/jsonl.py. Bad lines are printed as file:line: reason and
written to DST.rejects.jsonl; the others become records. Exit status: 0 if all lines are good (or
--allow-rejects is given), 1 if some are bad, 2 if there are no records.
"""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_records",
        description="Makes records of a JSONL file (see inset_jax/data/jsonl.py for its fields).",
    )
    parser.add_argument("source", metavar="SRC.jsonl")
    parser.add_argument("folder", metavar="DST", help="folder of records; must not exist yet")
    parser.add_argument("--allow-rejects", action="store_true", help="bad lines are no failure")
    options = parser.parse_args(arguments)

    from inset_jax.data.jsonl import build_records

    try:
        built = build_records(options.source, options.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reject in built.rejects:
        print(reject, file=sys.stderr)
    for split, count in built.examples.items():
        print(f"{options.folder}: {count} examples in split {split!r}")
    if built.rejects:
        print(f"{len(built.rejects)} lines rejected, see {built.rejects_file}", file=sys.stderr)
    if not built.examples:
        return 2
    return 1 if built.rejects and not options.allow_rejects else 0


if __name__ == "__main__":
    sys.exit(main())
