"""Trains an autoencoder: python -m inset_jax.train.autoencoder --config=FILE --workdir=DIR

The config file is a Python file with `get_config()`, such as configs/demo_vae.py. Every field can
be set by a flag, --config.field=value. If the work folder has a checkpoint, training goes on from
it. The result is DIR/ae.safetensors in BAGEL's format, with its latents' scale and shift inside.
SIGINT and SIGTERM save and leave; the exit status is then 128 plus the signal's number.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from inset_jax.core import checks, overrides
from inset_jax.core.config import AutoencoderConfig

OPTIONS = {
    "workdir": "folder of the run: checkpoints, metrics, pictures; made if it is not there",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return overrides.status(argv, help_text, _train)


def help_text() -> str:
    """Everything that can be set, with its default."""
    options = [f"  --{name}=...  {text}" for name, text in OPTIONS.items()]
    fields = [f"  {line}" for line in overrides.describe(AutoencoderConfig())]
    return "\n".join([__doc__, *options, "", "Fields and their defaults:", *fields])


def _train(argv: Sequence[str]) -> int:
    command = overrides.parse(argv, OPTIONS, AutoencoderConfig)
    if not command.options["workdir"]:
        raise ValueError("--workdir=DIR is missing: the folder of this run")
    checks.check_autoencoder(command.config)
    workdir = pathlib.Path(command.options["workdir"])
    changes = overrides.diff(command.config, command.preset)
    print(f"config {command.source}" + ("" if changes else ", unchanged"))
    for line in changes:
        print(f"  {line}")
    for line in overrides.since(workdir / overrides.FILE, command.config):
        print(f"  since the last start of this run: {line}")

    from inset_jax.train.autoencoder import loop  # late: JAX takes a second to import

    outcome = loop.run(command.config, workdir)
    return 128 + outcome.signal if outcome.signal else 0


if __name__ == "__main__":
    sys.exit(main())
