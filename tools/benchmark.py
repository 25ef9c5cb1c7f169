"""Measures parts of the project: python -m tools.benchmark WHAT [--json FILE] [--check].

cpu-step: a training step (forward and backward, float32) of the configuration in
tests/golden/timing.json on the CPU at hand: visible work / (step time x rate of a matrix multiply
measured in the same run); PyTorch BAGEL reached about 0.60 where that file was made.

convert: weights of made-up numbers from BAGEL's format into a checkpoint and back: peak memory and
its curve, rate beside copying, syncing and hashing one after the other. Bars: 3 GiB at any size,
half of that rate, the same bytes back. --layers 2 6 are 4 and 8 GB and need 25 GB of disk.

kernels: the attention kernels compiled ahead of time for --chip (no TPU is needed): bundles of
their final schedules for the 7 heads of a key-value head, beside splash attention, and tokamax's if
installed. With --pack, visible tiles and modelled milliseconds a layer for packs planned for the 7B
presets, and --plot; with --blocks, what each size of tile costs in such packs; with --losses, bytes
of the flow loss and of the cross entropy beside their plain forms; with --stack, memory of the
language model's layers, forward and backward, with the kernels inside.

packing: fill of both streams by the planner, beside BAGEL's greedy rule, after dropout; a stated
mix and two adversarial ones, references up to 518 and 980 px, packs of 32,768 tokens, and the first
in packs of 16,384. Bars: 99% and 98% of the first at 32,768.

planning: a million examples, --workers processes. Bar: 180 seconds on two cores.

loader: tokens a second and core beside plain PIL and BAGEL's way, where the time goes, and memory
over --minutes of streaming. Bars: 0.9 of PIL, 2 times BAGEL's way.

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
    parser.add_argument("--rounds", type=int, default=10, help="cpu-step, loader: of each")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6], help="convert: sizes")
    parser.add_argument("--scratch", type=pathlib.Path, default="out", help="convert: disk space")
    parser.add_argument("--jobs", type=int, default=4, help="convert: workers")
    parser.add_argument("--small", action="store_true", help="convert: megabytes, to try it out")
    parser.add_argument(
        "--plot",
        metavar="PNG",
        type=pathlib.Path,
        help="convert, loader: memory curves; kernels: --pack",
    )
    parser.add_argument("--chip", nargs="+", default=["v6e"], choices=CHIPS, help="kernels: which")
    parser.add_argument("--pack", action="store_true", help="kernels: whole packs instead")
    parser.add_argument("--blocks", action="store_true", help="kernels: sizes of tiles instead")
    parser.add_argument("--losses", action="store_true", help="kernels: the losses instead")
    parser.add_argument("--stack", action="store_true", help="kernels: the 7B layers instead")
    parser.add_argument("--examples", type=int, help="packing, planning, loader: made up")
    parser.add_argument("--workers", type=int, default=2, help="planning, loader: processes")
    parser.add_argument("--minutes", type=float, default=1.0, help="loader: of streaming")
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
        if options.blocks:
            return kernel_packs.blocks(options.chip, dump)
        if options.losses:
            return kernel_losses.report(options.chip, dump)
        if options.stack:
            return kernel_stack.report(options.chip)
        return kernel_table.report(options.chip, dump)


def _packing(options: argparse.Namespace) -> tuple[dict, list[str]]:
    from configs import inset_7b
    from inset_jax.data import measure_packing

    found = measure_packing.packing(inset_7b.experiment(), options.examples or 65536)
    print(measure_packing.packing_table(found))
    return {"packing": found}, measure_packing.packing_misses(found)


def _planning(options: argparse.Namespace) -> tuple[dict, list[str]]:
    from configs import inset_7b
    from inset_jax.data import measure_packing as measure

    count = options.examples or measure.EXAMPLES
    found = measure.planning(inset_7b.experiment(), count, options.workers)
    line = (
        "planning: {examples:,} examples into {packs:,} packs in {seconds:.1f} s with {workers} "
        "processes ({seconds_a_million:.1f} s a million), {bytes_an_example:.0f} bytes an example"
    )
    print(line.format(**found))
    late = found["seconds_a_million"] > measure.SECONDS
    words = f"{found['seconds_a_million']:.0f} s a million, expected {measure.SECONDS}"
    return {"planning": found}, [words] * late


def _loader(options: argparse.Namespace) -> tuple[dict, list[str]]:
    import tempfile

    from configs import inset_7b
    from inset_jax.data import measure_loader as measure
    from inset_jax.train import curves

    packs = 8
    with tempfile.TemporaryDirectory() as folder:
        count = options.examples or 200
        config = measure.make_records(inset_7b.experiment(), pathlib.Path(folder), count)
        found = measure.speed(config, packs, options.rounds)
        print(measure.table(found), flush=True)
        if options.minutes:
            curve = measure.memory(config, options.minutes, options.workers)
            found["memory"] = curve
            found["memory_growth"] = measure.growth(curve)
            peak = max(size for _, size in curve)
            print(
                f"memory over {options.minutes:g} min: at most {peak:,.0f} MB, growing by "
                f"{found['memory_growth']:+.1f} MB a minute in the second half"
            )
            if options.plot:
                panel = (
                    "loader: resident memory (MB) over seconds",
                    [curves.Curve("loader and workers", curve, False)],
                )
                print(curves.draw([panel], options.plot))
    return {"loader": found}, measure.misses(found)


CHIPS = ("v5p", "v6e", "tpu7x")
BENCHMARKS = {
    "cpu-step": _cpu_step,
    "convert": _convert,
    "kernels": _kernels,
    "packing": _packing,
    "planning": _planning,
    "loader": _loader,
}

if __name__ == "__main__":
    sys.exit(main())
