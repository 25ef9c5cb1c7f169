"""Metrics for Weights & Biases, where it is installed and asked for (`run.wandb_project`)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from inset_jax.core import overrides
from inset_jax.core.config import Config


class WandB:
    """One run of a project; a restart of the run goes on in it.

    The service drops what is logged for a step before the last one it knows, so steps that a
    restart repeats stay as they were first logged there.
    """

    def __init__(self, config: Config, name: str, folder: pathlib.Path):
        """Args:
        name: the id of the run (`goodput.Started`).
        folder: where the service keeps its own files.

        Raises:
          ValueError: the package is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"run.wandb_project={config.run.wandb_project!r}: the package wandb is not "
                "installed; install it, or leave the field empty"
            ) from error
        self._image = wandb.Image
        self._run = wandb.init(
            project=config.run.wandb_project,
            name=config.name,
            id=name,
            resume="allow",
            dir=str(folder),
            config=overrides.to_dict(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an RGB picture, uint8 [H, W, 3]."""
        self._run.log({name: self._image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()
