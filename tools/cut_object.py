"""Cuts an object out of a photograph, as a small square picture for a sentence.

    python -m tools.cut_object photo.jpg mug.png
    python -m inset_jax.generate --checkpoint out/demo/run --out mine.png \\
        --prompt "A [img:mug.png] on a blue ground."

The object has to stand free, its ground reach the photograph's border; else name it with --box.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from PIL import ImageColor

from inset_jax.engine.cutting import CROP
from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.cut_object",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("photograph", help="a picture file")
    flag("out", help="picture file to write, PNG by name")
    flag("--side", type=int, default=CROP, help="pixels of the result (%(default)s)")
    flag(
        "--ground", type=colour, help="a colour to put it on; without, the photograph's own ground"
    )
    flag("--box", type=box, help="left,top,right,bottom in pixels, instead of looking for it")
    options = parser.parse_args(arguments)
    if options.side < 1:
        parser.error("--side: at least 1 pixel")
    if options.box and options.ground:
        parser.error("--ground needs the object's outline, which --box does not give")
    return outcome.status(lambda: _cut(options), failure=1)


def colour(text: str) -> str:
    """Checks a colour's name or #rrggbb: an argparse type."""
    ImageColor.getrgb(text)
    return text


def box(text: str) -> tuple[int, int, int, int]:
    """Parses left,top,right,bottom: an argparse type."""
    left, top, right, bottom = (int(number) for number in text.split(","))
    if left >= right or top >= bottom:
        raise ValueError(text)
    return left, top, right, bottom


def _cut(options: argparse.Namespace) -> None:
    from inset_jax.data import image
    from inset_jax.engine import cutting

    photograph = image.load(options.photograph)
    if options.box:
        left, top, right, bottom = options.box
        if right <= 0 or bottom <= 0 or left >= photograph.width or top >= photograph.height:
            raise ValueError(
                f"{options.photograph}: --box {left},{top},{right},{bottom} lies outside its "
                f"{photograph.width}x{photograph.height} pixels"
            )
        cut = cutting.Cut(cutting.square(options.box), None)
    else:
        try:
            cut = cutting.find(photograph)
        except ValueError as error:
            raise ValueError(f"{options.photograph}: {error} with --box") from error
    made = cutting.crop(photograph, cut, options.side, options.ground)
    try:
        pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        made.save(options.out)
    except (OSError, ValueError) as error:  # ValueError: no picture format has such a name
        raise ValueError(f"{options.out}: cannot be written: {error}") from error
    left, top, right, bottom = cut.box
    told = f"{options.out}: pixels {left},{top} to {right},{bottom} of {options.photograph}"
    if cut.mask is None:
        print(told)
        return
    print(f"{told}; the object is {cut.mask.mean():.0%} of the photograph")
    if cut.mask.mean() > cutting.LARGE:
        print(
            f"{options.photograph}: that is much, perhaps a ground that is darker at the borders: "
            "if the cut shows more than the object, say where it is with --box",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
