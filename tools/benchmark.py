"""Times parts of the project: python -m tools.benchmark cpu-step [--rounds N] [--json F] [--check].

cpu-step: a training step (forward and backward, float32) of the configuration in
tests/golden/timing.json on the CPU at hand. Prints visible work / (step time x rate of a matrix
multiply measured in the same run); PyTorch BAGEL reaches about 0.60. Exit status: 1 if --check is
given and the best of the rounds stays below 0.60.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description="Times parts of the project."
    )
    parser.add_argument("what", choices=["cpu-step"])
    parser.add_argument("--rounds", type=int, default=10, help="step and multiply, each time")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where figures go, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 below the bar")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")

    os.environ["JAX_PLATFORMS"] = "cpu"
    from inset_jax.core.host import keep_freed_memory

    keep_freed_memory()
    from inset_jax.train import cpu_step

    figures = cpu_step.report(cpu_step.measure(options.rounds))
    print(
        "cpu-step: ratio {ratio:.2f} (median {ratio_median:.2f}) of {work_gflop:.1f} GFLOP visible "
        "work\n  step {step_s:.3f} s (median {step_median_s:.3f}), matrix multiply "
        "{multiply_gflops:.0f} GFLOP/s (median {multiply_median_gflops:.0f}), {rounds} rounds\n"
        "  peak memory {peak_memory_mb:.0f} MB".format(**figures)
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.check and figures["ratio"] < cpu_step.BAR:
        print(f"below the bar of {cpu_step.BAR:.2f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
