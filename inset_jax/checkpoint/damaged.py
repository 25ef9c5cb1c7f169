"""Going back to the checkpoint before a damaged one: `run.on_damaged_checkpoint="previous"`."""

from __future__ import annotations

import os
import pathlib

import jax

from inset_jax.checkpoint import errors, store
from inset_jax.core import processes

ASIDE = "damaged_checkpoints"  # beside the folder of checkpoints


def set_aside(directory: str | os.PathLike) -> list[str]:
    """Moves newest checkpoints away until one is left that is as it was written.

    All processes call it together, before the folder is opened for saving; each compares its share
    of the files. Nothing is moved where no step is whole.

    Returns:
      a sentence for each step that was moved.

    Raises:
      ValueError: there are checkpoints, and every one is damaged.
    """
    directory = pathlib.Path(directory)
    told: dict[int, str] = {}
    found = store.steps(directory)
    for step in reversed(found):
        phrases = [phrase for own in processes.gather(_damage(directory, step)) for phrase in own]
        if not phrases:
            break
        told[step] = "; ".join(phrases[:3])
    if told and len(told) == len(found):
        lines = [f"  step {step}: {phrase}" for step, phrase in told.items()]
        raise errors.Damaged("\n".join([f"{directory}: every checkpoint is damaged", *lines]))
    for step in told if jax.process_index() == 0 else ():
        _move(directory / str(step), directory.parent / ASIDE)
    processes.gather(None)  # nobody looks before all is in its place
    return [
        f"{directory}: step {step} is damaged ({phrase}); moved to {directory.parent / ASIDE}"
        for step, phrase in told.items()
    ]


def _damage(directory: pathlib.Path, step: int) -> list[str]:
    """What is wrong with this process's share of the files of a step."""
    try:
        items = store.read_meta(directory, step)["items"]
        for item in items:
            store.verify(directory, step, item)
    except (ValueError, OSError, KeyError) as error:  # a disk that cannot read is damage too
        return [f"step {step}: {error}"]
    return []


def _move(step: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    names = [step.name, *(f"{step.name}.{n}" for n in range(1, 1000))]
    step.rename(next(folder / name for name in names if not (folder / name).exists()))
