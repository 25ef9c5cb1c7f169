"""What a run will need on a TPU slice, without one: python -m inset_jax.preflight --config=FILE
--slice=NAME [--task=sample] [--fast] [--search] [--table] [--exact] [--out=DIR]
[--config.field=value ...]

Compiles the very step that the run will take, for the chips of the slice (v6e-256, v5p-128,
tpu7x-128, 2x v5p-128, or v6e:16x16), and reports memory by part against the chip's, operations,
collectives and what hides them, kernels, and an estimate of the step's time. Saves
DIR/preflight.json and DIR/preflight.html.

With --task=sample it compiles what draws pictures in place of the step: the prefill of a sentence,
one evaluation of all branches of the guidance, and the decoding; DIR/sampling.json, sampling.html.

Exit status: 0 it fits; 1 it does not fit, it is not known whether it does (libtpu said nothing of
its memory), it does not compile, or an argument is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from inset_jax.core import host

OPTIONS = {
    "slice": "v6e-256, v5p-128, tpu7x-128, v5e-64, 2x v5p-128, or chips along each axis: v6e:16x16",
    "task": "train (default) or sample",
    "weights_dtype": "int8, with --task=sample: as of inset_jax.generate",
    "out": "folder of the report (default: out/preflight)",
    "limit": "seconds that one compile may take (default: 3600)",
}
TASKS = ("train", "sample")
SWITCHES = {
    "fast": "stop where libtpu has scheduled the program and planned its memory",
    "exact": "refuse a data.packs or mesh.dcn that the slice cannot take, in place of fitting it",
    "table": "print how the rules split the state, in GiB of a device, and compile nothing",
    "search": "try layouts and remat policies, each as with --fast, and rank those that fit",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv if argv is None else list(argv)
    if any(argument.lstrip("-") in ("help", "h") for argument in argv[1:]):
        print(help_text())
        return 0
    given = {name for name in SWITCHES if f"--{name}" in argv}
    rest = [argument for argument in argv if argument not in [f"--{name}" for name in SWITCHES]]
    try:
        with host.raising_sigterm():  # a compile is a process of its own
            return _run(rest, given)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, host.Terminated) as error:
        print("interrupted", file=sys.stderr)
        return host.status(error)


def help_text() -> str:
    """Everything that can be set, with its default."""
    from inset_jax.core import overrides

    options = [f"  --{name}=...  {words}" for name, words in OPTIONS.items()]
    options += [f"  --{name}  {words}" for name, words in SWITCHES.items()]
    fields = [f"  {line}" for line in overrides.describe()]
    return "\n".join([__doc__, *options, "", "Fields and their defaults:", *fields])


def _run(argv: Sequence[str], given: set[str]) -> int:
    from inset_jax.core import overrides, stages
    from inset_jax.preflight import chips, settings

    command = overrides.parse(argv, OPTIONS)
    if not command.options["slice"]:
        raise ValueError("--slice=NAME is missing, for example --slice=v6e-256")
    slice_ = chips.parse(command.options["slice"])
    task = command.options["task"] or "train"
    _agree(task, command.options["weights_dtype"], given)
    config, flags = settings.fitted(command.config, command.preset, slice_)
    if "exact" in given and flags:
        raise ValueError(f"{slice_.name}: the run needs {' '.join(flags)}")
    stages.check(config)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU at hand is not for this
    if "table" in given:
        from inset_jax.preflight import split

        print(split.text(config, slice_))
        return 0
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu compiles for TPUs and is not installed: pip install '.[tpu]'")
    out = pathlib.Path(command.options["out"] or "out/preflight")
    limit = _seconds(command.options["limit"])
    if task == "sample":
        from inset_jax.preflight import drawing

        is_int8 = command.options["weights_dtype"] == "int8"
        return drawing.main(config, slice_, out, "fast" in given, limit, is_int8)
    from inset_jax.preflight import search

    different = _shapes(config)
    status = 0
    for step, stage in different.items():
        folder = out / f"step-{step}" if len(different) > 1 else out
        if "search" in given:
            status |= search.main(stage, slice_, folder, limit)
        else:
            status |= _one(stage, slice_, folder, "fast" in given, limit, flags)
    return status


def _agree(task: str, weights_dtype: str | None, given: set[str]) -> None:
    """Refuses options that do not go together."""
    if task not in TASKS:
        raise ValueError(f"--task={task}: expected {' or '.join(TASKS)}")
    flags = lambda names: " or ".join(f"--{name}" for name in sorted(names))
    if task == "sample" and given - {"fast"}:
        raise ValueError(f"--task=sample has no {flags(given - {'fast'})}")
    if "table" in given and given & {"fast", "search"}:
        raise ValueError(f"--table compiles nothing: leave out {flags(given & {'fast', 'search'})}")
    if weights_dtype and (weights_dtype, task) != ("int8", "sample"):
        raise ValueError(
            f"--weights_dtype={weights_dtype} with --task={task}: expected int8, with "
            "--task=sample, or neither"
        )


def _seconds(text: str | None) -> float:
    try:
        return float(text or 3600)
    except ValueError as error:
        raise ValueError(f"--limit={text}: expected seconds") from error


def _shapes(config) -> dict[int, object]:
    """The stages of the curriculum that compile a program of their own: first step -> config."""
    from inset_jax.core import stages

    found = {}
    for stage in stages.stages(config):
        capacity = stage.config.data.capacity
        if capacity not in [other.data.capacity for other in found.values()]:
            found[stage.step] = stage.config
    return found


def _one(config, slice_, out: pathlib.Path, fast: bool, limit: float, flags: list[str]) -> int:
    """Reports one layout; returns the exit status."""
    from inset_jax.preflight import compiler, report

    with tempfile.TemporaryDirectory() as scratch:
        found = compiler.run(config, slice_, pathlib.Path(scratch), fast, limit)
    figures = report.assemble(config, slice_, found) | {"flags": flags, "plan": _plan(config)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "preflight.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "preflight.html").write_text(report.page(figures))
    print(report.text(figures))
    print(f"{out / 'preflight.json'} {out / 'preflight.html'}")
    return 0 if figures["memory"]["fits"] else 1


def _plan(config) -> list[str]:
    """What the plan of the data says of the capacities, where the data are here."""
    here = [pathlib.Path(folder).exists() for folder in config.data.train]
    if not here or not all(here):
        return []
    from inset_jax.data import loader, plan_report

    try:
        return list(plan_report.report(loader.course_of(config, "train"), 1, 0, None))
    except ValueError as error:
        return [f"not known: {error}"]


if __name__ == "__main__":
    sys.exit(main())
