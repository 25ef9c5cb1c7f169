"""The training loop: batches in, checkpoints, metrics, held-out losses and pictures out.

    <workdir>/config.json     the resolved config of the last start that came to a first step
    <workdir>/checkpoints/    parameters, averages, optimizer, data position (`checkpoint.store`)
    <workdir>/metrics.jsonl   and tensorboard/, curves.png
    <workdir>/previews/       pictures drawn on the way
    <workdir>/bad_records.jsonl  ids of records that could not be used
    <workdir>/bad_steps.jsonl steps that updated nothing, with the records of their batches
    <workdir>/health/         signs of life of every process (`health`)
    <workdir>/profile/        traces (`profiling`)
    <workdir>/run.json        when the run was first started (`goodput`)

The state of the data is the number of steps: batch k belongs to step k, whatever happened before.
So a run that was killed and started again goes on with the very same next batch; with other packs a
step or batches an update than before, with the very next pack, whose number the checkpoint has.

Every process of a run goes through the same steps at the same time and writes its part of the
checkpoints; files, curves and lines on the terminal are those of process 0.
"""

from __future__ import annotations

import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from inset_jax.checkpoint import autoencoder, damaged, load, store, tokenizer
from inset_jax.core import mesh as meshes
from inset_jax.core import overrides, processes, stages
from inset_jax.core.config import Config, edit
from inset_jax.data import pack as packing
from inset_jax.data.loader import HostBatch, Loader, check_folders
from inset_jax.train import curves, faults, guard, metrics, optim, start, step
from inset_jax.train.health import Health
from inset_jax.train.held_out import HeldOut
from inset_jax.train.journal import Journal
from inset_jax.train.latents import LatentWriter
from inset_jax.train.profiling import Profiler
from inset_jax.train.signals import Agreement, Asked, Signals
from inset_jax.train.stopwatch import Stopwatch

# config, {"model", "vae"}, step, folder -> the pictures there; every process calls it, the first
# one writes
Preview = Callable[[Config, dict[str, Any], int, pathlib.Path], Sequence[pathlib.Path]]


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # steps done and saved
    signal: int | None  # what asked it to stop early


class Pending(NamedTuple):
    """A step that the device may still be working on."""

    step: int
    report: step.Report
    batches: list[HostBatch]


class Pause(NamedTuple):
    """A moment between two steps in which something is due."""

    step: int  # the one that has been made
    stopping: bool
    saving: bool


def run(
    config: Config,
    workdir: pathlib.Path,
    preview: Preview | None = None,
    watch: Stopwatch | None = None,
) -> Outcome:
    """Trains until `run.steps`, from the newest checkpoint of the work folder if it has one.

    Args:
      watch: of the command, if it began before.

    Raises:
      ValueError: the config cannot work; the data, the weights or the checkpoints are refused; a
        step is bad and the config says to stop; a checkpoint cannot be written.
    """
    stages.check(config)
    if not config.data.train:
        raise ValueError("data.train is empty: name the folders of records to train on")
    watch = watch or Stopwatch()
    watch.phase("hosts", start.hosts())
    directory, asked = workdir / load.CHECKPOINTS, config
    config = with_tokenizer(config, directory)
    check_folders(config)
    mesh = meshes.build(config.mesh)
    start.check_mesh(config, mesh)
    watch.phase("mesh", "mesh " + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))
    if config.run.on_damaged_checkpoint == "previous":
        for line in damaged.set_aside(directory):
            print(line, flush=True)
    kept = config.run.keep, config.run.keep_best, config.run.keep_every
    with jax.set_mesh(mesh), store.Store(directory, *kept) as saver:
        if jax.process_index() == 0:
            tokenizer.keep(directory, config.data.tokenizer)
        return _Run((config, asked), workdir, mesh, saver, (preview, watch)).go()


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

    def __init__(
        self,
        configs: tuple[Config, Config],
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        saver: store.Store,
        beside: tuple[Preview | None, Stopwatch],
    ):
        """configs: the one to run by, and as it was asked for, without what was found beside."""
        (config, self.asked), self.workdir, self.mesh, self.saver = configs, workdir, mesh, saver
        self.config = config
        self.preview, self.watch = beside
        self.share = meshes.share(mesh, config.data.packs)
        self.training: Loader | None = None  # opened when the first step is made
        begun = start.begin(config, mesh, workdir / load.CHECKPOINTS)
        self.state, self.vae, self.provenance = begun.state, begun.vae, begun.provenance
        self.first = int(self.state["step"])
        self.write_latents = LatentWriter(config, self.vae, mesh)
        self.reading = _with_digest(config, self.write_latents.params)
        trained, frozen = optim.split(self.state["params"], config.optimizer.frozen)
        print(
            f"{config.name}: {_millions(trained)} parameters train, {_millions(frozen)} are frozen,"
            f" {_millions(self.vae)} in the autoencoder"
        )
        jax.block_until_ready(self.state)
        self.watch.phase("restore", begun.origin)
        self.advance = start.OnceAShape(start.jitted(config, self.state, mesh))
        self.held_out = HeldOut(self.reading, mesh, self.share, self._packs)
        self.journal = Journal(config, workdir, self.share, self.watch, self.first)
        self.goodput = self.journal.account(begun.useful)
        self.profiler = Profiler(config.run, workdir)
        self.health = Health(workdir, jax.process_index(), config.run.watchdog_minutes)
        self.saved = self.first, time.monotonic()  # step of the last checkpoint, and when

    def go(self) -> Outcome:
        """Trains, and leaves the folder in order however it ends."""
        run, last, stopped = self.config.run, self.first, None
        if self.first >= run.steps:
            print(f"nothing to do: step {self.first} is there and run.steps is {run.steps}")
            self.journal.close()
            return Outcome(self.first, None)
        try:
            with Signals() as signals, self.health:
                for pause in self._steps(signals):
                    last = pause.step
                    stopped = signals.received if pause.stopping else None
                    self._between(pause)
                self.saver.wait()
        finally:
            self._leave()
        if stopped:
            name = signal.Signals(stopped).name
            print(f"stopped by {name} at step {last}, saved; the same command goes on from there")
        return Outcome(last, stopped)

    def _leave(self) -> None:
        """Closes the metrics and draws them; on a full disk, that must not hide the first error."""
        acts = [self.profiler.close, self.journal.close]
        if jax.process_index() == 0:
            acts.append(lambda: curves.draw_run(self.workdir, self.workdir / "curves.png"))
        for act in acts:
            try:
                act()
            except OSError as error:
                print(f"{self.workdir}: metrics or curves are not complete: {error}")

    def _steps(self, signals: Signals):
        """Makes steps; yields a Pause after those that something is due after.

        By then all reports have been read. A signal that comes too late for one round is seen in
        the next, so the last step that is yielded is the last that was made.
        """
        run = self.config.run
        agreed = Agreement(self.mesh)
        each = self.config.optimizer.accumulation
        batches = self._open(self.first * each)
        pending: Pending | None = None
        for number in range(self.first + 1, run.steps + 1):
            some = [next(batches) for _ in range(each)]
            if number > self.first + 1:
                self.watch.lap("data")
            packs = start.place(self._packs(some), self.mesh)
            report = self._advance(number, packs, some)
            # the report of the step before is read while the device works on this one
            self._read(pending)
            self.saver.look()
            pending = Pending(number, report, some)
            asked = agreed(Asked(signals.received or 0, self._overdue(), self.profiler.asked()))
            if asked.profile:
                self.profiler.ask(number + 1)
            if asked.signal:
                signals.received = asked.signal
            # what was asked for before a checkpoint may arrive just after it
            saving = bool(asked.save) and number > self.saved[0] + 1
            stopping = bool(asked.signal)
            if stopping or saving or number == run.steps or self._is_due(number):
                self._read(pending)
                pending = None
                yield Pause(number, stopping, saving)
            self.watch.lap("step")
            if stopping:
                return

    def _advance(self, number: int, packs, batches: Sequence[HostBatch]) -> step.Report:
        """Starts a step on the devices; waits for the first one and says what it took."""
        is_first = number == self.first + 1
        if is_first:
            self.watch.phase("batch", "first batch")
            if online := sum(len(batch.pictures) for batch in batches):
                print(f"{online} pictures of it were encoded: no stored latents fit them")
        self.profiler.before(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            self.state, report = self.advance(self.state, packs)
        if is_first:
            self.watch.phase("compile", "step compiled")
            jax.block_until_ready(report)
            self.watch.lap("first")
            print(f"first step after {metrics.spell(self.watch.to_first_step())}", flush=True)
            if jax.process_index() == 0:
                overrides.keep(self.asked, self.workdir / overrides.FILE)
            self.journal.begin()
            self.health.beat(number)
        self.profiler.after(number, report)
        return report

    def _open(self, batch: int) -> Loader:
        """Opens the training data, and says if plan or place are not as the checkpoint's steps."""
        loader = Loader(self.reading, "train", self.share.index, self.share.count, batch)
        self.training = loader
        if self.first:
            saved = store.read_meta(self.saver.directory, self.first)["data"]
            told = faults.check_plan(saved, loader, self.config.data.on_bad_record)
            if told := told or faults.go_on(saved, loader):
                print(f"step {self.first}: {told}", flush=True)
        return loader

    def _is_due(self, number: int) -> bool:
        run = self.config.run
        due = (run.save_every, run.validate_every, run.sample_every)
        return any(every and number % every == 0 for every in due)

    def _overdue(self) -> bool:
        """Whether a checkpoint is overdue by the clock; of process 0, which tells the others."""
        minutes = self.config.run.save_minutes
        late = minutes and time.monotonic() - self.saved[1] > minutes * 60
        return bool(late) and jax.process_index() == 0

    def _between(self, pause: Pause) -> None:
        """What happens between two steps: held-out losses, a checkpoint, pictures."""
        run, number = self.config.run, pause.step
        last, held_out = number == run.steps, None
        due = lambda every: every and (number % every == 0 or last) and not pause.stopping
        if due(run.validate_every) and self.config.data.validation:
            held_out = self.journal.held_out(number, self.held_out.measure(self.state["params"]))
            self._passed("held_out")
        saving = pause.saving or pause.stopping or last or number % run.save_every == 0
        if saving or (held_out is not None and self.saver.is_best(held_out)):
            self._save(number, held_out)
            self._passed("save")
        if not pause.stopping:
            self.journal.chips(number)
        if due(run.sample_every):
            self._draw(number)
            self._passed("pictures")

    def _passed(self, kind: str) -> None:
        """Notes that something between two steps has come to its end."""
        self.watch.lap(kind)
        self.health.beat()

    def _packs(self, batches: Sequence[HostBatch]):
        """Returns the batches as packs [accumulation, P, ...] with their latents, NumPy arrays."""
        return packing.stack([self.write_latents(b.pack, b.pictures) for b in batches])

    def _read(self, pending: Pending | None) -> None:
        """Waits for a step's report and takes it in.

        Raises:
          ValueError: the step is bad and the run has to stop.
        """
        if pending is None:
            return
        report = jax.device_get(pending.report)
        self.watch.lap("step" if report.verdict.good else "bad")
        self.health.beat(pending.step)
        restarts = self.training.restarts
        if why := self.journal.read(pending.step, report, pending.batches, restarts):
            raise ValueError(f"{why}; nothing was updated, and {self._newest()}")

    def _newest(self) -> str:
        self.saver.wait()
        saved = store.steps(self.saver.directory)
        return f"step {saved[-1]} is the last checkpoint" if saved else "no checkpoint exists yet"

    def _save(self, number: int, held_out: float | None) -> None:
        meta = {
            "config": overrides.to_dict(self.config),
            "data": {
                "step": number * self.config.optimizer.accumulation,
                "pack": self.training.pack,
                "plan": self.training.hash,
                "records": self.training.records_hash,
            },
            "guard": guard.to_json(jax.device_get(self.state["guard"])),
            "useful_seconds": self.goodput.useful(),
            "provenance": self.provenance,
        }
        if held_out is not None:
            meta[store.HELD_OUT] = held_out
            if self.saver.is_best(held_out):
                print(f"step {number}: the lowest held-out loss so far, {held_out:.4f}; kept")
        self.saver.save(number, {**start.to_items(self.state, self.vae), "step": number}, meta)
        self.saved = number, time.monotonic()

    def _draw(self, number: int) -> None:
        """Calls the preview with the averaged weights; the run goes on without a picture.

        Raises:
          ValueError: it failed here alone, and the other processes wait for this one.
        """
        if self.preview is None:
            return
        params = {"model": optim.merge(self.state["params"], self.state["ema"]), "vae": self.vae}
        folder = self.workdir / "previews"
        folder.mkdir(exist_ok=True)
        why = ""
        try:
            paths = self.preview(self.config, params, number, folder)
            for path in paths if self.journal.writer is not None else ():
                with curves.Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self.journal.writer.picture(number, path.stem, pixels)
            print(f"step {number}: drew {', '.join(str(path) for path in paths)}", flush=True)
        except (ValueError, OSError) as error:
            why = f"step {number}: no picture: {error}"
            print(why, file=sys.stderr if jax.process_index() else None, flush=True)
        processes.settle(f"picture {number}", why)


def _with_digest(config: Config, vae) -> Config:
    """Returns the config that loaders get: stored latents of this very autoencoder are used."""
    if config.data.moments != "own":
        return config
    return edit(config, data__moments=autoencoder.digest(vae))


def _millions(tree) -> str:
    count = sum(x.size for x in jax.tree.leaves(tree))
    return f"{count / 1e6:,.2f}M"
