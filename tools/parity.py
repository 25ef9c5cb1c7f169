"""Replays golden arrays of the PyTorch reference and prints how far this code is from them.

python -m tools.parity --golden tests/golden
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.parity",
        description="Replays golden arrays and compares everything in between. "
        "Exit status 1 when an array fails, 2 when the folder cannot be used.",
    )
    parser.add_argument(
        "--golden",
        required=True,
        type=Path,
        help="a model's folder (with ckpt/), the folder `common`, or the parent of both",
    )
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    options = parser.parse_args(arguments)

    from inset_jax.parity import report

    results = []
    try:
        print(report.HEADER)
        for result in report.run(options.golden):
            results.append(result)
            if not (options.quiet and result.passed):
                print(report.line(result), flush=True)
    except ValueError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    failed = [result for result in results if not result.passed]
    print(f"\n{report.summary(results)}\n{len(results)} arrays compared, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
