"""Measures data sets and plans their packs ahead: python -m tools.plan --config FILE [options].

Prints what was left out and why, how full the packs are, and which capacities would fit the mix.
Records are measured once; a run that starts later finds lengths and plan beside them (or in
data.plans). --total asks for capacities of another sum.
"""

from __future__ import annotations

import argparse
import sys

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    """Measures and plans; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--total", type=int, help="und and gen capacity together")
    parser.add_argument("--sections", type=int, default=1, help="of 65,536 examples, to plan now")
    parser.add_argument("--workers", type=int, default=0, help="processes that read and plan")
    options, rest = parser.parse_known_args(arguments)
    return outcome.status(lambda: _plan(options, rest), failure=1)


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    from inset_jax.core import overrides, stages
    from inset_jax.data import loader
    from inset_jax.data.plan_report import report

    config = overrides.parse(["tools.plan", *rest], {}).config
    stages.check(config)
    course = loader.course_of(config, "train", options.workers)
    for line in report(course, options.sections, options.workers, options.total):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
