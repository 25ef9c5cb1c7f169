"""The course of a run: which plan, and which pack of it, belongs to a step.

One plan a stage of the curriculum (`core.stages`); without stages, one. Which stage a step is in,
and where in its plan, follows from the number of the step alone; where a run has gone on with other
packs a step, it follows from the pack that it went on with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.core import stages
from inset_jax.core.config import Config
from inset_jax.data import columns
from inset_jax.data.index import open_index
from inset_jax.data.plan import Plan

AHEAD = 2  # sections that are planned before they are needed
DRIFT = 0.02  # of the ratio of the streams, from where on it is worth a warning

log = logging.getLogger(__name__)


class Leg(NamedTuple):
    """A stage with its plan."""

    batch: int  # the first that is in it
    config: Config
    plan: Plan
    pack: int = 0  # of the plan, the first of that batch


class Course:
    """The legs of a run in order; pickled to worker processes."""

    def __init__(self, legs: Sequence[Leg]):
        self.legs = list(legs)
        # stages begin at updates, however many batches one takes
        starts = [leg.batch // leg.config.optimizer.accumulation for leg in self.legs]
        parts = [[start, leg.plan.hash] for start, leg in zip(starts, self.legs, strict=True)]
        self.records_hash = columns.digest([index.source for index in self.legs[0].plan.indexes])
        self.hash = columns.digest(parts)  # with the number of the pack, the state of a loader

    def leg(self, batch: int) -> Leg:
        return max((leg for leg in self.legs if leg.batch <= batch), key=lambda leg: leg.batch)

    def at(self, batch: int) -> tuple[Leg, int]:
        """Returns the leg of a batch and the number of its first pack there."""
        leg = self.leg(batch)
        return leg, leg.pack + (batch - leg.batch) * leg.config.data.packs

    def go_on(self, batch: int, pack: int) -> None:
        """Makes `pack` the first one of a batch, of those before which none is asked for again."""
        leg = self.leg(batch)
        self.legs[self.legs.index(leg)] = leg._replace(batch=batch, pack=pack)


def open_course(
    records: Sequence, tokenizer, config: Config, endless: bool, folder: Path, workers: int = 0
) -> Course:
    """Measures the records (or finds them measured) and opens the plan of every stage.

    Args:
      endless: training, with condition dropout and stages; else one pass over all examples.
      workers: processes that read the records.

    Raises:
      ValueError: records that cannot be used, or stages that do not parse.
    """
    legs = []
    for number, stage in enumerate(stages.stages(config) if endless else [stages.Stage(0, config)]):
        indexes = [open_index(own, tokenizer, stage.config, folder, workers) for own in records]
        drops = stage.config.data.dropout if endless else None
        plan = Plan(indexes, stage.config, endless, drops, folder, number)
        legs.append(Leg(stage.step * config.optimizer.accumulation, stage.config, plan))
    for number, leg in enumerate(legs):
        since = f" from batch {leg.batch} on" * (number > 0)
        for left_out, reasons in leg.plan.skipped.items():
            for reason, ids in reasons.items():
                shown = ", ".join(ids[:5]) + ", ..." * (len(ids) > 5)
                told = left_out, len(ids), since, reason, shown
                log.warning("%s: %d examples left out%s: %s: %s", *told)
    return Course(legs)


class Ahead:
    """Plans sections in a thread before they are needed."""

    def __init__(self, course: Course):
        self._course = course
        self._pool = ThreadPoolExecutor(1, "planning")
        self._pending: Future | None = None
        self._told: set[int] = set()

    def of(self, batch: int) -> None:
        """Sees to it that the sections after the one that a batch needs will be there."""
        if self._pending is None or self._pending.done():
            if self._pending is not None:
                self._pending.result()  # an error is not to be lost
            self._pending = self._pool.submit(self._plan, batch)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _plan(self, batch: int) -> None:
        leg, pack = self._course.at(batch)
        current = leg.plan.section_of(pack)
        for section in range(current, current + 1 + AHEAD):
            if leg.plan.draws_in(section):
                leg.plan.section(section)
        following = [other for other in self._course.legs if other.batch > leg.batch][:1]
        for other in following:
            if self._course.at(other.batch - 1)[1] <= leg.plan.packs_until(current + AHEAD):
                other.plan.section(0)
        if leg.batch not in self._told:
            self._told.add(leg.batch)
            warning = drift(leg, current)
            if warning:
                log.warning("%s", warning)


def drift(leg: Leg, section: int) -> str:
    """Returns what to tell where the mix no longer fits the capacities; "" where it does.

    Of validation nothing is told: its few packs have the capacities of training.
    """
    plan = leg.plan
    if not plan.endless:
        return ""
    used, packs = plan.section(section).used, plan.section(section).packs
    und, gen = used[:2] / plan.capacity[:2]
    if packs < 2 or not und or not gen or abs(math.log(und / gen)) < DRIFT:
        return ""
    best = best_capacity(used[:2] / used[:2].sum(), int(plan.capacity[:2].sum()))
    fuller = min(und, gen) / max(und, gen)
    return (
        f"the mix has {used[0] / used[1]:.3f} und tokens for each gen token, the capacities "
        f"{plan.capacity[0] / plan.capacity[1]:.3f}: one stream stays at most {fuller:.0%} as full "
        f"as the other; data.capacity.und={best[0]} and data.capacity.gen={best[1]} would fit"
    )


def best_capacity(mean: Sequence[float], total: int) -> tuple[int, int]:
    """Returns capacities of the und and gen streams in the ratio of the tokens that come.

    A stream without tokens gets the least. Both are multiples of 128 (the lanes of a TPU), or of
    less where the total is small.

    Args:
      mean: und and gen tokens an example.
      total: of both capacities; up to 2% less where that comes nearer to the ratio.
    """
    step = max(min(128, total // 64), 1)
    if not all(mean):
        most = (total // step - 1) * step
        return (most, step) if mean[0] else (step, most)
    totals = np.arange(total // step, int(total * 0.98) // step, -1) * step
    und = np.arange(1, total // step)[:, None] * step
    gen = totals - und
    missed = np.where(gen > 0, abs(np.log(und * mean[1] / (np.maximum(gen, 1) * mean[0]))), np.inf)
    # to miss the ratio costs fill; to miss the total is only a smaller pack
    row, column = np.unravel_index(np.argmin(missed + (1 - totals / total) / 8), missed.shape)
    return int(und[row, 0]), int(gen[row, column])
