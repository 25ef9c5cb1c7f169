"""Trains a model: python -m inset_jax.train --config=FILE --workdir=DIR [--config.field=value ...]

The config file is a Python file with `get_config()`; configs/ has some. Every field can be set by a
flag. If the work folder has a checkpoint, training goes on from it. SIGINT and SIGTERM save and
leave.

Exit status: 0 done; 1 an error; 75 another process of the run is gone, the same command may be
started again; 128 plus the signal's number (143 for SIGTERM) stopped and saved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import pkgutil
import sys
from collections.abc import Sequence

from inset_jax.core import overrides, processes, stages
from inset_jax.train.stopwatch import Stopwatch

OPTIONS = {
    "workdir": "folder of the run: checkpoints, metrics, pictures; made if it is not there",
    "preview": (
        "module:function that draws pictures every run.sample_every steps; called with (config, "
        "params, step, folder), returns paths (default: inset_jax.sample.preview:during_training)"
    ),
    "coordinator": (
        "HOST:PORT of process 0 of a run of several processes, or auto (TPU hosts, GKE, Slurm); "
        "default JAX_COORDINATOR_ADDRESS, and auto on a host with TPU chips"
    ),
    "processes": "how many processes there are; default JAX_NUM_PROCESSES",
    "process": "the number of this one, from 0; default JAX_PROCESS_ID",
    "lost_after": "seconds without a sign of life of another process (default: 60)",
}
# named, not imported: training knows nothing of sampling
PREVIEW = "inset_jax.sample.preview:during_training"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return overrides.status(argv, help_text, _train)


def help_text() -> str:
    """Everything that can be set, with its default."""
    options = [f"  --{name}=...  {text}" for name, text in OPTIONS.items()]
    fields = [f"  {line}" for line in overrides.describe()]
    return "\n".join([__doc__, *options, "", "Fields and their defaults:", *fields])


def _train(argv: Sequence[str]) -> int:
    watch = Stopwatch()
    command = overrides.parse(argv, OPTIONS)
    config = command.config
    if not command.options["workdir"]:
        raise ValueError("--workdir=DIR is missing: the folder of this run")
    if "://" in command.options["workdir"]:
        raise ValueError(
            f"--workdir={command.options['workdir']}: expected a folder of a file system; mount it"
        )
    stages.check(config)
    workdir = pathlib.Path(command.options["workdir"])
    preview = None
    if config.run.sample_every:
        preview = _resolve(command.options["preview"] or PREVIEW)
    where = processes.place(command.options, os.environ)
    with processes.joined(where, _seconds(command.options["lost_after"])) as group:
        index = 0 if group is None else group.index
        with _quiet(index > 0):
            return _run(command, workdir, preview, watch, index)


def _run(
    command: overrides.Command, workdir: pathlib.Path, preview, watch: Stopwatch, index: int = 0
) -> int:
    """What a process does that is by itself, or one of several that have come together."""
    config = command.config
    changes = overrides.diff(config, command.preset)
    print(f"config {command.source}" + ("" if changes else ", unchanged"))
    for line in changes:
        print(f"  {line}")
    if index == 0:
        for line in overrides.since(workdir / overrides.FILE, config):
            print(f"  since the last start of this run: {line}")
    _say_failures_once()
    from inset_jax.train import loop  # late: JAX takes a second to import

    outcome = loop.run(config, workdir, preview, watch)
    return 128 + outcome.signal if outcome.signal else 0


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or processes.LOST_SECONDS)
    except ValueError as error:
        raise ValueError(f"--lost_after={text}: expected seconds") from error
    if not 1 <= seconds < float("inf"):
        raise ValueError(f"--lost_after={text}: expected at least 1 second")
    return seconds


@contextlib.contextmanager
def _quiet(is_quiet: bool):
    """Process 0 speaks for all on standard output; errors are everybody's own."""
    if not is_quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _say_failures_once() -> None:
    """Silences the threads of a save that fails: `checkpoint.store` says why in one sentence.

    On a full disk Orbax, asyncio and TensorStore print hundreds of tracebacks between them.
    """
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def hook(unraisable, before=sys.unraisablehook) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _resolve(name: str):
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--preview={name}: {error}; name a module:function, or set run.sample_every to 0"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
