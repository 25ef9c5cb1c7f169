"""Measures parts of the project: python -m tools.benchmark WHAT [--json FILE] [--check].

cpu-step: a training step (forward and backward, float32) of the configuration in
tests/golden/timing.json on the CPU at hand: visible work / (step time x rate of a matrix multiply
measured in the same run); PyTorch BAGEL reaches about 0.60.

convert: weights of made-up numbers from BAGEL's format into a checkpoint and back: peak memory and
its curve, rate beside copying, syncing and hashing one after the other. Bars: 3 GiB at any size,
half of that rate, the same bytes back. --layers 2 6 are 4 and 8 GB and need 25 GB of disk.

kernels: the attention kernels compiled ahead of time for --chip (no TPU is needed): bundles of
their final schedules for the 7 heads of a key-value head, beside splash attention. With --pack,
visible tiles and modelled milliseconds a layer for packs of 1 to 40 examples, and --plot; with
--losses, bytes of the flow loss and of the cross entropy beside their plain forms; with --stack,
memory of the language model's layers, forward and backward, with the kernels inside.

Exit status: 1 if --check is given and a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where figures go, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 below the bar")
    parser.add_argument("--rounds", type=int, default=10, help="cpu-step: step and multiply each")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6], help="convert: sizes")
    parser.add_argument("--scratch", type=pathlib.Path, default="out", help="convert: disk space")
    parser.add_argument("--jobs", type=int, default=4, help="convert: workers")
    parser.add_argument("--small", action="store_true", help="convert: megabytes, to try it out")
    parser.add_argument(
        "--plot", metavar="PNG", type=pathlib.Path, help="convert: memory curves; kernels: --pack"
    )
    parser.add_argument("--chip", nargs="+", default=["v6e"], choices=CHIPS, help="kernels: which")
    parser.add_argument("--pack", action="store_true", help="kernels: whole packs instead")
    parser.add_argument("--losses", action="store_true", help="kernels: the losses instead")
    parser.add_argument("--stack", action="store_true", help="kernels: the 7B layers instead")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.jobs < 1 or min(options.layers) < 1:
        parser.error("--rounds, --jobs and --layers: expected at least 1")

    os.environ["JAX_PLATFORMS"] = "cpu"
    figures, missed = BENCHMARKS[options.what](options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    for phrase in missed if options.check else []:
        print(f"below the bar: {phrase}", file=sys.stderr)
    return 1 if options.check and missed else 0


def _cpu_step(options: argparse.Namespace) -> tuple[dict, list[str]]:
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
    missed = figures["ratio"] < cpu_step.BAR
    return figures, [f"{figures['ratio']:.2f}, expected {cpu_step.BAR:.2f}"] if missed else []


def _convert(options: argparse.Namespace) -> tuple[dict, list[str]]:
    from inset_jax.checkpoint import measure
    from inset_jax.train import curves

    results = []
    for layers in options.layers:
        found = measure.both_ways(options.scratch, layers, options.jobs, options.small)
        results.append(found)
        for way in measure.WAYS:
            print(f"{way} {measure.line(found, way)}", flush=True)
    panels = [
        (f"{way}: resident memory (MB) over seconds", measure.series(results, way, curves.Curve))
        for way in measure.WAYS
    ]
    if options.plot:
        print(curves.draw(panels, options.plot))
    return {"convert": results, "jobs": options.jobs}, measure.failures(results)


def _kernels(options: argparse.Namespace) -> tuple[dict, list[str]]:
    import tempfile

    from tools import bundles, kernel_losses, kernel_packs, kernel_stack, kernel_table

    with tempfile.TemporaryDirectory() as folder:
        dump = pathlib.Path(folder)
        bundles.prepare(None if options.stack else dump)
        if options.pack:
            return kernel_packs.report(options.chip, dump, options.plot)
        if options.losses:
            return kernel_losses.report(options.chip, dump)
        if options.stack:
            return kernel_stack.report(options.chip)
        return kernel_table.report(options.chip, dump)


CHIPS = ("v5p", "v6e", "tpu7x")
BENCHMARKS = {"cpu-step": _cpu_step, "convert": _convert, "kernels": _kernels}

if __name__ == "__main__":
    sys.exit(main())
