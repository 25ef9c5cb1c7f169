"""Looks at every record: python -m tools.validate_records FOLDER[#SPLIT] [--report DIR] ...

Everything is decoded and checked: pictures open and are as large as recorded, sentences have no
place left without its picture, texts are not empty, ids are not taken, no two records are the same
(by a perceptual hash of the pictures), no target of a held-out split is in another one; with
--config=FILE (and --config.field=value) also that tokens fit the packs of that training. A
truncated shard is named, its neighbours are read.

In --report DIR: report.html and report.png with counts, histograms and samples, and rejects.jsonl
with the reason of every bad record. --clean DST writes the good ones. Exit status: 0 if all records
are good, 1 if some are bad, 2 if FOLDER cannot be read.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools import outcome

SHOWN = 20  # rejects that are printed, and warnings


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.validate_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER[#SPLIT]")
    parser.add_argument("--report", type=Path, metavar="DIR", help="default: FOLDER.report")
    parser.add_argument("--clean", metavar="DST", help="folder of records: the good ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    options, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("--config"):
        parser.error(f"{rest[0]}: no such option")
    return outcome.status(lambda: _validate(options, rest))


def _validate(options: argparse.Namespace, rest: list[str]) -> int:
    from inset_jax.core import overrides
    from inset_jax.data import build, record, report, rewrite, shards, validate

    config = overrides.parse(["validate_records", *rest], {}).config if rest else None
    folder, workers = options.folder, options.workers
    shards.list_shards(folder)  # a folder that is none leaves no report
    place = options.report or Path(f"{Path(record.split_path(folder)[0])}.report")
    place.mkdir(parents=True, exist_ok=True)
    found = validate.validate(folder, place, config, workers, validate.say_progress)
    rejects = found.rejects
    build.write_rejects(rejects, place / "rejects.jsonl")
    for reject in rejects[:SHOWN]:
        print(reject, file=sys.stderr)
    for warning in found.warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    paths = report.write(report.make(found, folder), place)
    good = sum(not own.reasons for own in found.findings)
    print(f"{good} good records, {len(rejects)} rejects; {paths[0]} {paths[1]}")
    if options.clean:
        records = rewrite.WithoutRejects(folder, str(place / "rejects.jsonl"))
        built = build.build_records(records, options.clean, rewrite.ONE_TO_ONE, workers)
        build.say_outcome(built, options.clean, True, 0)
    return 1 if rejects else 0


if __name__ == "__main__":
    sys.exit(main())
