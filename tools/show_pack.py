"""Shows one pack of a training as a person can read it: an HTML page and a PNG.

python -m tools.show_pack --config=FILE [--config.data.train=...] [--pack N] [--out DIR] ...

Sentences with their pictures, tokens in the colours of their kinds and streams, positions, who sees
whom, what is learned, and the padding. Pack N of the plan: step N // data.packs of the training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.show_pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--pack", type=int, default=0, metavar="N", help="(%(default)s)")
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--examples", type=int, default=12, help="written out (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/pack"), help="folder (%(default)s)")
    options, rest = parser.parse_known_args(arguments)
    return outcome.status(lambda: _show(options, rest), failure=1)


def _show(options: argparse.Namespace, rest: list[str]) -> int:
    from inset_jax.core import checks, overrides
    from inset_jax.core.config import edit
    from inset_jax.data import pack_page, pack_picture, pack_view
    from inset_jax.data.loader import Loader

    config = overrides.parse(["show_pack", *rest], {}).config
    checks.check(config)
    config = edit(config, data__moments="none")  # the pixels are to be seen
    view = pack_view.of(Loader(config, options.split), options.split, options.pack, config)
    options.out.mkdir(parents=True, exist_ok=True)
    page, picture = options.out / "pack.html", options.out / "pack.png"
    page.write_text(pack_page.to_html(view, options.examples), encoding="utf-8")
    pack_picture.to_png(view, options.examples).save(picture, optimize=True)
    print(f"{view.title}: {pack_view.lead(view)}\n{page} {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
