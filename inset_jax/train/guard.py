"""The guard of a run: steps that are not finite, and spikes of the gradient norm.

`judge` is part of the jitted step, which keeps parameters, averages and optimizer state as they
were where it says no; whether the run then goes on or stops is `run.on_bad_step`. What it remembers
is in the state of the run and in the meta of its checkpoints, so that a run which goes on judges as
if it had never been interrupted. Records of bad steps go to `bad_steps.jsonl`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.core.config import RunConfig
from inset_jax.train import metrics

Tree = dict[str, Any]

STOP, SKIP = "stop", "skip"  # values of run.on_bad_step
FILE = "bad_steps.jsonl"
UNSEEN = np.finfo(np.float32).max  # in place of the norm of a step that has not been
NAMED = 20  # record ids in a message; the file has all


class Verdict(NamedTuple):
    """What is thought of a step; scalars."""

    good: jax.Array  # bool; if not, the step changed no parameter, average or optimizer state
    limit: jax.Array  # float32, of the gradient norm; inf as long as too few norms are known
    in_a_row: jax.Array  # int32, bad steps up to and with this one


def initial(run: RunConfig) -> Tree:
    """Returns the memory of a guard that has seen nothing."""
    return {
        # norms of the last good steps, the newest last
        "norms": jnp.full(run.spike_window, UNSEEN, jnp.float32),
        "in_a_row": jnp.zeros((), jnp.int32),
    }


def logical() -> Tree:
    """Returns the logical names of the memory: the same on every device."""
    return {"norms": (None,), "in_a_row": ()}


def judge(memory: Tree, finite: jax.Array, norm: jax.Array, run: RunConfig) -> tuple[Verdict, Tree]:
    """Judges one step; works under jit.

    A spike is a gradient norm above `run.spike` times the median of the last `run.spike_window`
    good ones. Until more than half of these are there the limit is infinite: no step is a spike.

    Args:
      finite: bool scalar, whether loss and gradients are.
      norm: float32 scalar, of all gradients before clipping.

    Returns:
      the verdict, and the memory after it.
    """
    norms = memory["norms"]
    limit = jnp.asarray(jnp.inf, jnp.float32)
    if run.spike:
        limit = run.spike * jnp.sort(norms)[len(norms) // 2]
    good = finite & (norm <= limit)
    in_a_row = jnp.where(good, 0, memory["in_a_row"] + 1)
    seen = jnp.where(good, jnp.append(norms[1:], norm.astype(jnp.float32)), norms)
    return Verdict(good, limit, in_a_row), {"norms": seen, "in_a_row": in_a_row}


def to_json(memory: Tree) -> dict[str, Any]:
    """Returns the memory as JSON can hold it; `from_json` is the inverse, to the bit."""
    norms = np.asarray(memory["norms"], np.float64)
    return {"norms": norms[norms < UNSEEN].tolist(), "in_a_row": int(memory["in_a_row"])}


def from_json(told: Mapping[str, Any], run: RunConfig) -> Tree:
    """Returns a memory of NumPy arrays; {} is that of a guard that has seen nothing."""
    norms = np.asarray(told.get("norms", []), np.float32)[-run.spike_window :]
    unseen = np.full(run.spike_window - len(norms), UNSEEN, np.float32)
    return {
        "norms": np.concatenate([unseen, norms]),
        "in_a_row": np.int32(told.get("in_a_row", 0)),
    }


class BadSteps:
    """Appends to `bad_steps.jsonl`; a run that goes on from step N drops what came after N."""

    def __init__(self, folder: pathlib.Path, run: RunConfig, step: int, process: int = 0):
        """process: this host's number; each knows the records of its own packs and has a file."""
        self.path = folder / (f"bad_steps.{process}.jsonl" if process else FILE)
        self._run = run
        metrics.drop_after(self.path, step)
        self._count = 0

    def add(self, step: int, report, records: Sequence[str]) -> str | None:
        """Writes a bad step down.

        Args:
          report: of `train.step`, its arrays on the host.
          records: ids of all examples of the batch.

        Returns:
          why the run has to stop, or None where the step is skipped.
        """
        self._count += 1
        losses, verdict = report.losses, report.verdict
        figures = (
            f"flow {losses.flow:g}, cross entropy {losses.cross_entropy:g}, "
            f"gradient norm {report.grad_norm:g}"
        )
        why = "not finite"
        if report.finite:
            why = f"gradient norm above {verdict.limit:g}, {self._run.spike:g} times its median"
        entry = {"step": step, "why": why, "figures": figures, "records": list(records)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        more = len(records) - NAMED
        shown = ", ".join(records[:NAMED]) + f" and {more} more" * (more > 0)
        told = f"step {step}: {why} ({figures}); records of the batch: {shown} (all in {self.path})"
        if self._run.on_bad_step == STOP:
            return told
        if verdict.in_a_row >= self._run.max_bad_steps:
            return f"{told}; {verdict.in_a_row} bad steps in a row (run.max_bad_steps)"
        print(f"{told}; skipped", flush=True)
        return None

    def take(self) -> int:
        """Returns the number of bad steps since the last call."""
        count, self._count = self._count, 0
        return count
