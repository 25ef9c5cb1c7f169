"""The training loop: batches in, checkpoints, metrics, held-out losses and pictures out.

    <workdir>/config.json     the resolved config
    <workdir>/checkpoints/    parameters, averages, optimizer, data position (`checkpoint.store`)
    <workdir>/metrics.jsonl   and tensorboard/, curves.png
    <workdir>/previews/       pictures drawn on the way
    <workdir>/bad_records.jsonl  ids of records that could not be used

The state of the data is the number of updates: batch k belongs to update k, whatever happened
before. So a run that was killed and started again goes on with the very same next batch.

Every process of a run goes through the same steps at the same time and writes its part of the
checkpoints; files, curves and lines on the terminal are those of process 0.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from inset_jax.checkpoint import autoencoder, load, store, tokenizer
from inset_jax.core import checks, overrides, processes
from inset_jax.core import mesh as meshes
from inset_jax.core.config import Config, edit
from inset_jax.data import pack as packing
from inset_jax.data.loader import HostBatch, Loader
from inset_jax.model import inset
from inset_jax.train import curves, faults, metrics, optim, start, step
from inset_jax.train.latents import LatentWriter
from inset_jax.train.signals import Agreement, Signals

# config, {"model", "vae"}, step, folder -> the pictures there; every process calls it, the first
# one writes
Preview = Callable[[Config, dict[str, Any], int, pathlib.Path], Sequence[pathlib.Path]]

NAMED = 20  # record ids in the message about a loss that is not finite; the file has all


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # updates done and saved
    signal: int | None  # what asked it to stop early


class Pending(NamedTuple):
    """A step that the device may still be working on."""

    step: int
    report: step.Report
    batches: list[HostBatch]


def run(config: Config, workdir: pathlib.Path, preview: Preview | None = None) -> Outcome:
    """Trains until `run.steps`, from the newest checkpoint of the work folder if it has one.

    Raises:
      ValueError: the config cannot work; the data, the weights or the checkpoints are refused; the
        loss is not finite; a checkpoint cannot be written.
    """
    checks.check(config)
    if not config.data.train:
        raise ValueError("data.train is empty: name the folders of records to train on")
    directory = workdir / load.CHECKPOINTS
    config = with_tokenizer(config, directory)
    mesh = meshes.build(config.mesh)
    start.check_mesh(config, mesh)
    with jax.set_mesh(mesh), store.Store(directory, config.run.keep) as saver:
        if jax.process_index() == 0:
            tokenizer.keep(directory, config.data.tokenizer)
        return _Run(config, workdir, mesh, saver, preview).go()


def with_tokenizer(config: Config, directory: pathlib.Path) -> Config:
    """Returns the config with `data.tokenizer` filled in: beside the checkpoints, or the weights.

    Raises:
      ValueError: there is none.
    """
    if config.data.tokenizer:
        return config
    places = [directory, *([pathlib.Path(p) for p in [config.run.init_from] if p])]
    for place in places:
        for folder in (place, place.parent):
            found = tokenizer.find(folder)
            if found:
                return edit(config, data__tokenizer=str(found))
    raise ValueError(
        "data.tokenizer is empty and no tokenizer.json lies in "
        f"{' or '.join(str(place) for place in places)}: set it to a tokenizer.json or its folder"
    )


class _Run:
    """One process's share of one run."""

    def __init__(self, config: Config, workdir, mesh, saver: store.Store, preview: Preview | None):
        self.config, self.workdir, self.mesh, self.saver = config, workdir, mesh, saver
        self.preview = preview
        self.share = meshes.share(mesh, config.data.packs)
        self.training: Loader | None = None  # each is opened when it is first asked for
        self.validation: Loader | None = None
        begun = start.begin(config, mesh, workdir / load.CHECKPOINTS)
        self.state, self.vae, self.provenance = begun.state, begun.vae, begun.provenance
        self.first = int(self.state["step"])
        self.write_latents = LatentWriter(config, self.vae, mesh)
        self.reading = _with_digest(config, self.write_latents.params)
        trained, frozen = optim.split(self.state["params"], config.optimizer.frozen)
        print(
            f"{config.name}: {_millions(trained)} parameters train, {_millions(frozen)} are frozen,"
            f" {_millions(self.vae)} in the autoencoder; {begun.origin}; "
            f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}"
        )
        definition, _ = inset.abstract(config.model)
        everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.advance = start.jitted(config, self.state, mesh)
        loss = step.loss_function(definition, config)

        def held_out(params, packs):
            """Sums by example of one batch [1, P, ...]."""
            one = jax.tree.map(lambda x: x[0], packs)
            return loss(params, one, step.weights(packs))[1][1]

        self.held_out = jax.jit(held_out, out_shardings=everywhere)
        self.writer = metrics.Writer(workdir, self.first) if jax.process_index() == 0 else None
        self.faults = faults.FaultLog(workdir, self.first, jax.process_index())

    def go(self) -> Outcome:
        """Trains, and leaves the folder in order however it ends."""
        run, last = self.config.run, self.first
        if self.first >= run.steps:
            print(f"nothing to do: step {self.first} is there and run.steps is {run.steps}")
            return Outcome(self.first, None)
        try:
            with Signals() as signals:
                for last, stopping in self._steps(signals):
                    self._between(last, stopping)
            self.saver.wait()
        finally:
            self._leave()
        if signals.received:
            name = signal.Signals(signals.received).name
            print(f"stopped by {name} at step {last}, saved; the same command goes on from there")
        return Outcome(last, signals.received)

    def _leave(self) -> None:
        """Closes the metrics and draws them; on a full disk, that must not hide the first error."""
        if self.writer is None:
            return
        for act in (
            self.writer.close,
            lambda: curves.draw_run(self.workdir, self.workdir / "curves.png"),
        ):
            try:
                act()
            except OSError as error:
                print(f"{self.workdir}: metrics or curves are not complete: {error}")

    def _steps(self, signals: Signals):
        """Makes updates; yields (number, stopping) after those that something is due after.

        By then all reports have been read. A signal that comes too late for one round is seen in
        the next, so the last step that is yielded is the last that was made.
        """
        run = self.config.run
        self.clock = metrics.Clock(self.first)
        agreed = Agreement(self.mesh)
        each = self.config.optimizer.accumulation
        batches = self._open(self.first * each)
        pending: Pending | None = None
        began = time.monotonic()
        for number in range(self.first + 1, run.steps + 1):
            some = [next(batches) for _ in range(each)]
            packs = start.place(self._packs(some), self.mesh)
            self.state, report = self.advance(self.state, packs)
            if number == self.first + 1:
                jax.block_until_ready(report)
                print(f"first step after {metrics.spell(time.monotonic() - began)} of compiling")
                if online := sum(len(batch.pictures) for batch in some):
                    print(f"{online} pictures of it were encoded: no stored latents fit them")
                self.clock.restart(number)
            # the report of the step before is read while the device works on this one
            self._read(pending)
            pending = Pending(number, report, some)
            signals.received = agreed(signals.received)
            stopping = signals.received is not None
            if stopping or number == run.steps or self._is_due(number):
                self._read(pending)
                pending = None
                yield number, stopping
                self.clock.restart(number)
            if stopping:
                return

    def _open(self, batch: int) -> Loader:
        """Opens the training data, and says if the plan is not the one of the checkpoint."""
        loader = self.training = self._loader("train", batch)
        if self.first:
            saved = store.read_meta(self.saver.directory, self.first)["data"]
            told = faults.check_plan(saved, loader, self.config.data.on_bad_record)
            if told:
                print(f"step {self.first}: {told}", flush=True)
        return loader

    def _loader(self, split: str, at: int) -> Loader:
        return Loader(self.reading, split, self.share.index, self.share.count, at)

    def _is_due(self, number: int) -> bool:
        run = self.config.run
        due = (run.save_every, run.validate_every, run.sample_every)
        return any(every and number % every == 0 for every in due)

    def _between(self, number: int, stopping: bool) -> None:
        """What happens between two updates: held-out losses, a checkpoint, pictures."""
        run = self.config.run
        last = number == run.steps
        due = lambda every: every and (number % every == 0 or last) and not stopping
        if due(run.validate_every):
            self._validate(number)
        if number % run.save_every == 0 or last or stopping:
            self._save(number)
        if due(run.sample_every):
            self._draw(number)

    def _packs(self, batches: Sequence[HostBatch]):
        """Returns the batches as packs [accumulation, P, ...] with their latents, NumPy arrays."""
        return packing.stack([self.write_latents(b.pack, b.pictures) for b in batches])

    def _read(self, pending: Pending | None) -> None:
        """Waits for a step's report, refuses what is not finite, logs what is due."""
        if pending is None:
            return
        report = jax.device_get(pending.report)
        if not report.finite:
            raise ValueError(self._not_finite(pending.step, report, pending.batches))
        for batch in pending.batches:
            pack = batch.pack
            self.clock.add(int(np.sum(pack.und_example >= 0) + np.sum(pack.gen_example >= 0)))
            self.faults.add(pending.step, batch.faults)
        run = self.config.run
        if pending.step % run.log_every and pending.step != run.steps:
            return
        sums = metrics.KindSums()
        for one, batch in zip(_slices(report.by_example), pending.batches, strict=True):
            sums.add(self._own_rows(one), batch.examples)
        speed = self.clock.read(pending.step, run.steps)
        sums, tokens = self._together(sums, speed)
        if speed:
            speed["tokens_per_second"] = tokens
        values = {
            "loss": report.losses.total,
            "flow": report.losses.flow,
            "cross_entropy": report.losses.cross_entropy,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "bad_records": self.faults.take(),
            "worker_restarts": self.training.restarts,
        }
        values = {name: float(value) for name, value in values.items()}
        values = {**sums.means(), **metrics.by_time(*report.by_time), **values}
        print(metrics.progress_line(pending.step, run.steps, {**values, **speed}), flush=True)
        self._write(pending.step, "train", {**values, **speed})

    def _own_rows(self, by_example: step.ByExample) -> step.ByExample:
        """Of the global batch [P, E], the packs whose examples this process knows."""
        return step.ByExample(*(part[list(self.share.rows)] for part in by_example))

    def _together(self, sums: metrics.KindSums, speed: dict) -> tuple[metrics.KindSums, float]:
        """Adds up what the processes know, each of its own packs: kinds, tokens a second."""
        own = {"kinds": sums.to_json(), "tokens": speed.get("tokens_per_second", 0.0)}
        told = processes.gather(own if self.share.is_first else None)
        told = [one for one in told if one]
        whole = metrics.KindSums()
        for one in told:
            whole.add_sums(one["kinds"])
        return whole, sum(one["tokens"] for one in told)

    def _write(self, number: int, phase: str, values: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(number, phase, values)

    def _not_finite(self, number: int, report: step.Report, batches: Sequence[HostBatch]) -> str:
        """Writes down the records of the batch and returns what to tell."""
        ids = [name for batch in batches for pack in batch.examples for name, _ in pack]
        losses = report.losses
        figures = (
            f"flow {losses.flow:g}, cross entropy {losses.cross_entropy:g}, "
            f"gradient norm {report.grad_norm:g}"
        )
        process = f"_process_{jax.process_index()}" if jax.process_index() else ""
        path = self.workdir / f"not_finite_{number}{process}.json"
        path.write_text(json.dumps({"step": number, "figures": figures, "records": ids}, indent=1))
        shown = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if ids[NAMED:] else "")
        self.saver.wait()
        saved = store.steps(self.saver.directory)
        intact = f"step {saved[-1]} is the last checkpoint" if saved else "no checkpoint exists yet"
        return (
            f"step {number}: not finite ({figures}); records of the batch: {shown} (all in {path});"
            f" nothing was updated, and {intact}"
        )

    def _validate(self, number: int) -> None:
        """Measures the held-out losses by kind of data; noise is the same each time."""
        data = self.config.data
        if not data.validation:
            return
        if self.validation is None:
            self.validation = self._loader("validation", 0)
        self.validation.step = 0
        sums = metrics.KindSums()
        most = math.ceil(self.config.run.validation_packs / data.packs)
        for batch in itertools.islice(self.validation, most):
            packs = start.place(self._packs([batch]), self.mesh)
            told = jax.device_get(self.held_out(self.state["params"], packs))
            sums.add(self._own_rows(told), batch.examples)
        values = self._together(sums, {})[0].means()
        self._write(number, "validation", values)
        told = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"step {number}: held out  {told}", flush=True)

    def _save(self, number: int) -> None:
        meta = {
            "config": overrides.to_dict(self.config),
            "data": {
                "step": number * self.config.optimizer.accumulation,
                "plan": self.training.hash,
                "records": self.training.records_hash,
            },
            "provenance": self.provenance,
        }
        self.saver.save(number, {**start.to_items(self.state, self.vae), "step": number}, meta)

    def _draw(self, number: int) -> None:
        """Calls the preview with the averaged weights; a picture that fails stops nothing."""
        if self.preview is None:
            return
        params = {"model": optim.merge(self.state["params"], self.state["ema"]), "vae": self.vae}
        folder = self.workdir / "previews"
        folder.mkdir(exist_ok=True)
        try:
            paths = self.preview(self.config, params, number, folder)
        except (ValueError, OSError) as error:
            print(f"step {number}: no picture: {error}")
            return
        for path in paths if self.writer is not None else ():
            with curves.Image.open(path) as picture:
                self.writer.picture(number, path.stem, np.asarray(picture.convert("RGB")))
        print(f"step {number}: drew {', '.join(str(path) for path in paths)}", flush=True)


def _with_digest(config: Config, vae) -> Config:
    """Returns the config that loaders get: stored latents of this very autoencoder are used."""
    if config.data.moments != "own":
        return config
    return edit(config, data__moments=autoencoder.digest(vae))


def _slices(by_example: step.ByExample) -> list[step.ByExample]:
    """Splits [accumulation, P, E] arrays into one tuple a batch."""
    return [step.ByExample(*parts) for parts in zip(*by_example, strict=True)]


def _millions(tree) -> str:
    count = sum(x.size for x in jax.tree.leaves(tree))
    return f"{count / 1e6:,.2f}M"
