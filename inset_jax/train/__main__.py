"""Trains a model: python -m inset_jax.train --config=FILE --workdir=DIR [--config.field=value ...]

The config file is a Python file with `get_config()`; configs/ has some. Every field can be set by a
flag. If the work folder has a checkpoint, training goes on from it. SIGINT and SIGTERM save and
leave; the exit status is then 128 plus the signal's number.
"""

from __future__ import annotations

import logging
import pathlib
import pkgutil
import sys
from collections.abc import Sequence

from inset_jax.core import checks, overrides

OPTIONS = {
    "workdir": "folder of the run: checkpoints, metrics, pictures; made if it is not there",
    "preview": (
        "module:function that draws pictures every run.sample_every steps; called with (config, "
        "params, step, folder), returns paths (default: inset_jax.sample.preview:during_training)"
    ),
}
# named, not imported: training knows nothing of sampling
PREVIEW = "inset_jax.sample.preview:during_training"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv if argv is None else list(argv)
    if any(argument.lstrip("-") in ("help", "h") for argument in argv[1:]):
        print(help_text())
        return 0
    try:
        return _train(argv)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1


def help_text() -> str:
    """Everything that can be set, with its default."""
    options = [f"  --{name}=...  {text}" for name, text in OPTIONS.items()]
    fields = [f"  {line}" for line in overrides.describe()]
    return "\n".join([__doc__, *options, "", "Fields and their defaults:", *fields])


def _train(argv: Sequence[str]) -> int:
    command = overrides.parse(argv, OPTIONS)
    config = command.config
    if not command.options["workdir"]:
        raise ValueError("--workdir=DIR is missing: the folder of this run")
    checks.check(config)
    workdir = pathlib.Path(command.options["workdir"])
    changes = overrides.diff(config, command.preset)
    print(f"config {command.source}" + ("" if changes else ", unchanged"))
    for line in changes:
        print(f"  {line}")
    for line in overrides.keep(config, workdir / "config.json"):
        print(f"  since the last start of this run: {line}")
    preview = None
    if config.run.sample_every:
        preview = _resolve(command.options["preview"] or PREVIEW)

    _say_failures_once()
    from inset_jax.train import loop  # late: JAX takes a second to import

    outcome = loop.run(config, workdir, preview)
    return 128 + outcome.signal if outcome.signal else 0


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
