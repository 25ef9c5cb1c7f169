"""The loop that trains an autoencoder: cuts in, checkpoints, figures, pictures and a file out.

    <workdir>/config.json       the resolved config of the last start that came to a first step
    <workdir>/checkpoints/      parameters, averages, optimizer, number of steps
    <workdir>/ae.safetensors    the averaged weights in BAGEL's format, as of the last checkpoint
    <workdir>/metrics.jsonl     and tensorboard/
    <workdir>/previews/         held-out pictures over their reconstructions

The state of the data is the number of steps, so a run that was killed and started again goes on
with the very same next batch.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

import inset_jax
from inset_jax.checkpoint import autoencoder as files
from inset_jax.checkpoint import convert, store
from inset_jax.core import host, overrides
from inset_jax.core import mesh as meshes
from inset_jax.core.config import AutoencoderConfig, ModelConfig, edit
from inset_jax.data.crops import Crops, held_out
from inset_jax.model import vae
from inset_jax.train import metrics, optim
from inset_jax.train.autoencoder import measure, step
from inset_jax.train.signals import Signals

Tree = dict[str, Any]

FILE = "ae.safetensors"


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # updates done and saved
    signal: int | None  # what asked it to stop early
    file: pathlib.Path


def run(config: AutoencoderConfig, workdir: pathlib.Path) -> Outcome:
    """Trains until `run.steps`, from the newest checkpoint of the work folder if it has one.

    Raises:
      ValueError: the data, the weights or the checkpoints are refused; the loss is not finite; a
        checkpoint cannot be written.
    """
    asked = config
    # the loss knows no scale and shift: they are measured, for those who come after
    config = edit(config, vae__scale=1.0, vae__shift=0.0)
    crops = Crops(config.data, config.run.seed)
    mesh = meshes.build(config.mesh)
    host.keep_freed_memory()
    with jax.set_mesh(mesh), store.Store(workdir / "checkpoints", config.run.keep) as saver:
        return _Run((config, asked), workdir, crops, mesh, saver).go()


class _Run:
    """One run on one mesh."""

    def __init__(
        self,
        configs: tuple[AutoencoderConfig, ...],
        workdir,
        crops: Crops,
        mesh,
        saver: store.Store,
    ):
        """configs: the one to run by, and as it was asked for."""
        (config, self.asked), self.workdir, self.crops, self.saver = configs, workdir, crops, saver
        self.config = config
        self.everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
        pixels = (config.data.batch, config.data.side, config.data.side, 3)
        self.spread = meshes.sharding(mesh, ("pack", None, None, None), pixels)
        self.gauge = measure.Gauge(config, self.spread)
        self.facts: dict[str, Any] = {}  # of the last validation
        self.held_out = None
        if config.data.validation and config.run.validate_every:
            self.held_out = held_out(config.data, config.run.validation_images)
        self.state, origin = self._begin()
        self.first = int(self.state["step"])
        definition, _ = vae.abstract(config.vae)
        self.advance = jax.jit(
            step.train_step(definition, config),
            donate_argnums=0,
            out_shardings=(self.everywhere, self.everywhere),
        )
        self.writer = metrics.Writer(workdir, self.first)
        count = sum(x.size for x in jax.tree.leaves(self.state["params"]))
        print(
            f"{config.name}: {count / 1e6:,.2f}M parameters, 1 latent of "
            f"{config.vae.latent_channels} numbers for {config.vae.downsample}^2 pixels; {origin}; "
            f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}"
        )

    def go(self) -> Outcome:
        """Trains, and leaves the folder in order however it ends."""
        run, last, file = self.config.run, self.first, self.workdir / FILE
        try:
            with Signals() as signals:
                for last, stopping in self._steps(signals):
                    self._between(last, stopping)
            if self.first >= run.steps:
                print(f"nothing to do: step {last} is there and run.steps is {run.steps}")
                # killed while it was written, the file is still the one of an earlier checkpoint
                if not file.exists() or files.read_facts(file).get("steps") != last:
                    self._export(last)
            self.saver.wait()
        finally:
            self.writer.close()
        if signals.received:
            name = signal.Signals(signals.received).name
            print(f"stopped by {name} at step {last}, saved; the same command goes on from there")
        return Outcome(last, signals.received, file)

    def _begin(self) -> tuple[Tree, str]:
        """Returns the first state, or the newest one of the work folder, and where it is from."""
        config, directory = self.config, self.saver.directory
        first = lambda params: step.initial_state(params, config)
        if store.steps(directory):
            number = store.latest(directory)
            _, shapes = vae.abstract(config.vae)
            wanted = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere),
                jax.eval_shape(first, shapes),
            )
            found = store.restore(directory, _items(wanted), number)
            state = {
                "params": found["params"]["vae"],
                "ema": found["ema"]["vae"],
                "opt_state": found["opt_state"],
                "step": jax.device_put(np.int32(number), self.everywhere),
            }
            return state, f"step {number} of {directory}"
        if config.run.init_from:
            stored = files.read_config(config.run.init_from) or config.vae
            given = dataclasses.replace(config.vae, scale=stored.scale, shift=stored.shift)
            params = convert.load_autoencoder(config.run.init_from, ModelConfig(vae=given))
            origin = f"weights of {config.run.init_from}"
        else:
            _, params = vae.create(config.vae, config.run.seed)
            origin = f"random weights of seed {config.run.seed}"
        return jax.device_put(first(params), self.everywhere), origin

    def _steps(self, signals: Signals):
        """Makes updates; yields (number, stopping) where something is due, all reports read."""
        run = self.config.run
        self.clock = metrics.Clock(self.first)
        began, pending = time.monotonic(), None
        for number, pixels in enumerate(
            self.crops.batches(self.first, run.steps), start=self.first + 1
        ):
            self.state, report = self.advance(self.state, jax.device_put(pixels, self.spread))
            if number == self.first + 1:
                jax.block_until_ready(report)
                overrides.keep(self.asked, self.workdir / overrides.FILE)
                print(f"first step after {metrics.spell(time.monotonic() - began)} of compiling")
                self.clock.restart(number)
            # the report of the step before is read while the device works on this one
            self._read(pending)
            pending = number, report
            stopping = signals.received is not None  # once: a signal may come at any moment
            due = [every for every in (run.save_every, run.validate_every) if every]
            if number == run.steps or stopping or any(number % every == 0 for every in due):
                self._read(pending)
                pending = None
                yield number, stopping
                self.clock.restart(number)
            if stopping:
                return

    def _read(self, pending: tuple[int, step.Report] | None) -> None:
        """Waits for a step's report, refuses what is not finite, logs what is due."""
        if pending is None:
            return
        number, report = pending[0], jax.device_get(pending[1])
        run, losses = self.config.run, report.losses
        if not report.finite:
            self.saver.wait()
            saved = store.steps(self.saver.directory)
            intact = f"step {saved[-1]} is the last one" if saved else "there is none yet"
            raise ValueError(
                f"step {number}: not finite (reconstruction {losses.reconstruction:g}, KL "
                f"{losses.kl:g}, gradient norm {report.grad_norm:g}); nothing was updated, and the "
                f"checkpoints are intact: {intact}. Lower optimizer.peak_lr or raise its warm-up"
            )
        if number % run.log_every and number != run.steps:
            return
        values = {**losses._asdict(), "grad_norm": report.grad_norm}
        values["learning_rate"] = report.learning_rate
        line = (
            f"step {number:>{len(str(run.steps))}}/{run.steps}  loss {losses.total:.4f}  "
            f"{self.config.loss.reconstruction} {losses.reconstruction:.4f}  kl {losses.kl:.3g}  "
            f"lr {report.learning_rate:.2e}"
        )
        speed = self.clock.read(number, run.steps)
        if speed:
            speed["images_per_second"] = speed["steps_per_second"] * self.config.data.batch
            line += f"  {speed['images_per_second']:.1f} images/s"
            line += f"  left {metrics.spell(speed['seconds_left'])}"
        print(line, flush=True)
        self.writer.write(number, "train", {**values, **speed})

    def _between(self, number: int, stopping: bool) -> None:
        """What happens between two updates: held-out figures and pictures, a checkpoint."""
        run, last = self.config.run, number == self.config.run.steps
        if self.held_out is not None and not stopping:
            if last or number % run.validate_every == 0:
                self._validate(number)
        if last or stopping or number % run.save_every == 0:
            meta = {
                "config": overrides.to_dict(self.config),
                "data": {"step": number},
                "provenance": [],
            }
            self.saver.save(number, {**_items(self.state), "step": number}, meta)
            self._export(number)

    def _averaged(self) -> Tree:
        return optim.merge(self.state["params"], self.state["ema"])

    def _validate(self, number: int) -> None:
        """Measures held-out pictures with the averaged weights and draws some."""
        found = self.gauge.held_out(self._averaged(), self.held_out)
        folder = self.workdir / "previews"
        folder.mkdir(exist_ok=True)
        Image.fromarray(found.grid).save(folder / f"{number:08d}.png")
        self.writer.picture(number, "held_out", found.grid)
        self.writer.write(number, "validation", {"psnr": found.psnr})
        self.facts = {"psnr": round(found.psnr, 2), "psnr_pictures": found.pictures}
        print(f"step {number}: held out  {found.psnr:.2f} dB over {found.pictures} pictures")

    def _export(self, number: int) -> None:
        """Measures the latents and writes the file."""
        params, data, run = self._averaged(), self.config.data, self.config.run
        batches = (self.crops.batch(n) for n in range(math.ceil(run.measure_images / data.batch)))
        measured = self.gauge.latents(params, batches)
        facts = {
            "name": self.config.name,
            "steps": number,
            "batch": data.batch,
            "side": data.side,
            "trained_on": list(data.train),
            "began_with": run.init_from or f"random weights of seed {run.seed}",
            "tools": {"inset-jax": inset_jax.__version__, "jax": jax.__version__},
            **self.facts,
        }
        file = self.workdir / FILE
        files.save(file, params, measured, facts, run.file_dtype)
        print(
            f"step {number}: wrote {file}, {file.stat().st_size / 1e6:.2f} MB; latents have mean "
            f"{measured.shift:.4f} and deviation {1 / measured.scale:.4f}, so "
            f"vae.scale={measured.scale!r} and vae.shift={measured.shift!r}",
            flush=True,
        )


def _items(state: Tree) -> Tree:
    """Returns the items of a checkpoint."""
    return {
        "params": {"vae": state["params"]},
        "ema": {"vae": state["ema"]},
        "opt_state": state["opt_state"],
    }
