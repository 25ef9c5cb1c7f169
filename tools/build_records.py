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
records. The same command goes on after an interruption, and makes only what is missing, damaged or
changed. Exit status: 0 if all rows are good (or --allow-rejects is given), 1 if some are bad, 2 if
there are no records. The formats are described in docs/data.md.
"""

from __future__ import annotations

import argparse
import os
import sys

SHOWN = 20  # rejects that are printed


def main(arguments: list[str] | None = None) -> int:
    from inset_jax.data import build, image
    from inset_jax.data.sources import base, table

    parser = argparse.ArgumentParser(
        prog="python -m tools.build_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say, keep = parser.add_argument, image.KEEP
    say("source", metavar="SRC")
    say("folder", metavar="DST", help="folder of records")
    say("--format", choices=list(table.FORMATS), default="")
    say("--split", default="train", help="where the format names none (%(default)s)")
    say("--name", default="", help="kept in the records as their source")
    say("--licence", default="", help="kept in the records")
    say("--text", default="", metavar="FIELD", help="with the text, where it cannot be found")
    say("--image", default="", metavar="FIELD", help="with the picture, likewise")
    say("--images", default="", metavar="DIR", help="bagel-vlm: where the pictures are")
    say("--wordings", choices=("all", "one"), default="all",
        help="several captions or instructions: a record each, or one that is drawn")  # fmt: skip
    say("--max-side", type=int, default=keep.max_side, metavar="PIXELS",
        help="larger pictures are resized to it; 0 keeps all (%(default)s)")  # fmt: skip
    say("--picture-format", choices=("jpeg", "png"), default=keep.format, help="of those")
    say("--per-shard", type=int, default=build.PER_SHARD, metavar="ROWS", help="(%(default)s)")
    say("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    say("--share", type=build.share, default=(0, 1), metavar="I/N",
        help="make every N-th shard from the I-th; once all are made, run without it")  # fmt: skip
    say("--allow-rejects", action="store_true", help="bad rows are no failure")
    options = parser.parse_args(arguments)

    chosen = base.Options(
        image.Keep(options.max_side, options.picture_format),
        *(getattr(options, n) for n in "split name licence wordings text image images".split()),
    )
    try:
        source = table.open_source(options.source, options.format, chosen)
        built = build.build_records(
            source,
            options.folder,
            options.per_shard,
            options.workers,
            options.share,
            build.say_progress,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return build.say_outcome(built, options.folder, options.allow_rejects, SHOWN)


if __name__ == "__main__":
    sys.exit(main())
