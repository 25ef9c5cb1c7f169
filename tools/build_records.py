"""Makes records of a data set: python -m tools.build_records SRC DST [--format NAME ...].

SRC is one of these; which, is found by looking unless --format says it:

    jsonl          a file as a person writes it, pictures as [img:NAME] in the sentence
    bagel-t2i      a folder of parquet files: image, captions
    bagel-editing  a folder of parquet files: image_list, instruction_list
    bagel-vlm      a JSONL file of conversations; pictures in --images
    tfds           a prepared data set of TensorFlow Datasets with an image and a text
    folder         pictures with a metadata.jsonl, or a folder of such a split
    webdataset     a tar file or a folder of them

Bad rows are printed with their place and reason and written to DST.rejects.jsonl; the others become
records. The same command goes on after an interruption, and makes only what is missing, damaged,
changed or was rejected. Exit status: 0 if all rows are good (or --allow-rejects is given), 1 if
some are bad, 2 if there are no records. The formats are described in docs/data.md.
"""

from __future__ import annotations

import argparse
import sys

from tools import outcome

SHOWN = 20  # rejects that are printed


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    from inset_jax.data import build
    from inset_jax.data.sources import table

    parser = argparse.ArgumentParser(
        prog="python -m tools.build_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("folder", metavar="DST", help="folder of records")
    table.add_options(parser)
    build.add_options(parser)
    parser.add_argument("--allow-rejects", action="store_true", help="bad rows are no failure")
    options = parser.parse_args(arguments)
    return outcome.status(lambda: _build(options), resumes=True)


def _build(options: argparse.Namespace) -> int:
    from inset_jax.data import build
    from inset_jax.data.sources import table

    source = table.open_source(options.source, options.format, table.to_options(options))
    sharing = options.per_shard, options.workers, options.share
    built = build.build_records(source, options.folder, *sharing, build.say_progress)
    return build.say_outcome(built, options.folder, options.allow_rejects, SHOWN)


if __name__ == "__main__":
    sys.exit(main())
