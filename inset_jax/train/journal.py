"""What a run says about its steps: judged, counted over all processes, printed and written down.

Every process keeps one and calls it at the same places; files and lines are those of process 0,
but for bad records and bad steps, of which each process knows its own.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax

from inset_jax.core import mesh as meshes
from inset_jax.core import processes
from inset_jax.core.config import Config
from inset_jax.data.loader import HostBatch
from inset_jax.train import (
    faults,
    goodput,
    guard,
    health,
    metrics,
    probe,
    remote,
    step,
    throughput,
)
from inset_jax.train.stopwatch import START, Stopwatch


class Journal:
    """The journal of one process."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        share: meshes.Share,
        watch: Stopwatch,
        first: int,
    ):
        """first: the step that the run goes on from; what was written of later ones is dropped.

        Raises:
          ValueError: Weights & Biases is asked for and not installed; run.json is damaged.
        """
        self.config, self.share, self.watch, self.first = config, share, watch, first
        index = jax.process_index()
        self.faults = faults.FaultLog(workdir, first, index)
        self.bad = guard.BadSteps(workdir, config.run, first, index)
        self.speed = throughput.Throughput(config, watch, share.is_first)
        # on CPUs devices are threads that wait for one another
        self.probe = None if jax.default_backend() == "cpu" else probe.Probe()
        self.writer: metrics.Writer | None = None
        self.began = 0.0  # see `goodput.Started`
        if index == 0:
            forget_gone(workdir, first, jax.process_count())
            started = goodput.started(workdir)
            self.began = started.began
            service = (
                remote.WandB(config, started.id, workdir) if config.run.wandb_project else None
            )
            self.writer = metrics.Writer(workdir, first, service)

    def account(self, before: float) -> goodput.Goodput:
        """Returns the account of the time that counts; `before` is what the checkpoint brought."""
        self.goodput = goodput.Goodput(self.watch, self.began, before)
        return self.goodput

    def begin(self) -> None:
        """Notes how long the phases up to the first step took."""
        told = {f"start/{kind}": self.watch.seconds[kind] for kind in START}
        self._write(self.first, "start", told | {"start/all": self.watch.to_first_step()})

    def read(
        self, number: int, report: step.Report, batches: Sequence[HostBatch], restarts: int
    ) -> str | None:
        """Takes in the report of a step, its arrays on the host; prints and writes what is due.

        Args:
          batches: of this process, one a step of accumulation.
          restarts: of worker processes so far.

        Returns:
          why the run has to stop, or None.
        """
        if not report.verdict.good:
            names = [name for b in batches for pack in b.examples for name, _ in pack]
            if why := self.bad.add(number, report, names):
                return why
        for batch in batches:
            self.faults.add(number, batch.faults)
        self.speed.add([batch.pack for batch in batches])
        if number == self.first + 1:
            self.speed.forget()  # compiling is in nobody's rate
        run = self.config.run
        if number % run.log_every == 0 or number == run.steps:
            self._line(number, report, batches, restarts)
        return None

    def held_out(self, number: int, sums: metrics.KindSums) -> float:
        """Prints and writes the held-out losses of a step, of all processes; returns the loss."""
        values = self._together(sums)[0].means()
        weight = self.config.loss
        total = weight.flow_weight * values.get("flow", 0.0)
        total += weight.cross_entropy_weight * values.get("cross_entropy", 0.0)
        self._write(number, "validation", {**values, "loss": total})
        told = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"step {number}: held out  {told}", flush=True)
        return total

    def chips(self, number: int) -> None:
        """Compares the chips with one another, between two steps; names one that is slow."""
        if self.probe is None or jax.device_count() == 1:
            return
        values, slow = probe.figures(processes.gather(self.probe.own()))
        if slow:
            print(slow, flush=True)
        self._write(number, "chips", values)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _line(
        self, number: int, report: step.Report, batches: Sequence[HostBatch], restarts: int
    ) -> None:
        sums = metrics.KindSums()
        for one, batch in zip(_slices(report.by_example), batches, strict=True):
            sums.add(metrics.rows_of(one, self.share.rows), batch.examples)
        whole, told = self._together(sums, self.speed.own())
        speed = self.speed.figures(told)
        if rate := speed.get("steps_per_second"):
            speed["seconds_left"] = (self.config.run.steps - number) / rate
        values = {
            **whole.means(),
            **metrics.by_time(*report.by_time),
            "loss": report.losses.total,
            "flow": report.losses.flow,
            "cross_entropy": report.losses.cross_entropy,
            "grad_norm": report.grad_norm,
            **{f"grad_norm/{part}": norm for part, norm in report.grad_norms.items()},
            "learning_rate": report.learning_rate,
            "bad_records": self.faults.take(),
            "bad_steps": self.bad.take(),
            "worker_restarts": restarts,
            **speed,
            "goodput": self.goodput.share(),
        }
        print(metrics.progress_line(number, self.config.run.steps, values), flush=True)
        if slow := throughput.slow_host(told, speed):
            print(slow, flush=True)
        self._write(number, "train", values)

    def _together(self, sums: metrics.KindSums, own=None) -> tuple[metrics.KindSums, list]:
        """Gathers losses by kind, added up, and what else each process knows.

        All processes call it at the same place.
        """
        kinds = sums.to_json() if self.share.is_first else {}
        told = processes.gather([kinds, own])
        whole = metrics.KindSums()
        for kinds, _ in told:
            whole.add_sums(kinds)
        return whole, [other for _, other in told]

    def _write(self, number: int, phase: str, values: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(number, phase, values)


def forget_gone(workdir: pathlib.Path, first: int, count: int) -> None:
    """Trims what processes have left that are no more, when a run goes on with fewer."""
    health.forget_gone(workdir, count)
    for path in workdir.glob("bad_*.*.jsonl"):  # each process trims its own
        number = path.name.split(".")[1]
        if number.isdigit() and int(number) >= count:
            metrics.drop_after(path, first)


def _slices(by_example: step.ByExample) -> list[step.ByExample]:
    """Splits [accumulation, P, E] arrays into one tuple a batch."""
    return [step.ByExample(*parts) for parts in zip(*by_example, strict=True)]
