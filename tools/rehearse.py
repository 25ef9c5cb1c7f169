"""The whole life of a run on a pod, in small, on this machine: `make pod-rehearsal`.

python -m tools.rehearse --out out/rehearsal

Preflight of a slice; records of the small world; weights in BAGEL's form brought in; training by
four processes until SIGTERM reaches them; the same run gone on with by two; a picture; the weights
brought out in BAGEL's form and compared. Every phase is the command that a pod runs, with the tiny
preset, and its log lies beside the report. A phase that does not end as it should ends the
rehearsal with status 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tools import outcome

CONFIG = "configs/tiny.py"
MODEL = "tests/golden/tiny_a/ckpt"  # a BAGEL folder of the tiny preset's sizes
COMPILED = ("configs/inset_7b.py", "v5p-128")  # a small program's memory libtpu does not tell early
PROCESSES, LATER = 4, 2  # that train, before and after the interruption
STEPS, INTERRUPTED_AFTER = 12, 4
STOPPED = 128 + signal.SIGTERM  # exit status of a run that saved and left
PATIENCE = 600  # seconds for the first steps, and for a phase to end after them
MARK = ".rehearsal"  # file in folders that may be emptied


class Phase(NamedTuple):
    """One part of the life, when it is over."""

    name: str
    seconds: float
    told: str


class Rehearsal:
    """A folder with everything that the phases leave to each other."""

    def __init__(self, folder: pathlib.Path):
        if " " in str(folder):
            raise ValueError(f"{folder}: a path without spaces, for launch/local.sh")
        if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
            raise ValueError(f"{folder}: holds something else than a rehearsal; name a new folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / MARK).touch()
        self.folder = folder

    def call(self, name: str, words: Sequence, environment: Mapping[str, str] = {}) -> str:
        """Runs a command to its end and returns what it printed.

        Raises:
          ValueError: it failed; with its last lines.
        """
        return self.end(name, self.start(name, words, environment), 0)

    def start(self, name: str, words: Sequence, environment: Mapping[str, str] = {}):
        here = {"PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(
                list(map(str, words)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **here, **environment},
            )

    def end(self, name: str, process: subprocess.Popen, expected: int) -> str:
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{name}: not over after {PATIENCE} s") from None
        finally:
            if process.poll() is None:
                process.terminate()  # launch/local.sh passes it on
        printed = (self.folder / f"{name}.log").read_text()
        if status != expected:
            last = "\n".join(printed.splitlines()[-8:])
            raise ValueError(f"{name}: exit status {status}, expected {expected}:\n{last}")
        return printed

    def preflight(self) -> str:
        if importlib.util.find_spec("libtpu") is None:
            return "left out: libtpu is not installed"
        config, chips = COMPILED
        words = [*_module("tools.preflight"), f"--config={config}", f"--slice={chips}", "--fast"]
        self.call("preflight", [*words, f"--out={self.folder / 'preflight'}"])
        return f"the step of {config} fits {chips}, says libtpu's plan"

    def records(self) -> str:
        out = ["--out", self.folder / "records", "--config", CONFIG]
        amount = ["--train", 200, "--validation", 16, "--draws", 1]
        self.call("records", [*_module("tools.draw_world"), *out, *amount])
        return "200 examples to train on, 16 held out"

    def convert(self) -> str:
        source = self.folder / "bagel"
        shutil.copytree(MODEL, source)
        shutil.copy(self.folder / "records" / "tokenizer.json", source)
        weights = self.folder / "weights"
        self.call("convert", [*_module("tools.convert_weights"), "to-orbax", source, weights])
        return "weights in BAGEL's form brought in"

    def train(self) -> str:
        process = self.start("train", ["bash", "launch/local.sh"], self._training(PROCESSES))
        began = time.monotonic()
        try:
            while self._steps()[-1:] < [INTERRUPTED_AFTER] and process.poll() is None:
                if time.monotonic() - began > PATIENCE:
                    raise ValueError(f"train: no {INTERRUPTED_AFTER} steps in {PATIENCE} s")
                time.sleep(0.2)
        finally:
            process.terminate()
        self.end("train", process, STOPPED)
        return f"{PROCESSES} processes, SIGTERM, saved at step {self._steps()[-1]}"

    def resume(self) -> str:
        before = self._steps()[-1]
        self.call("resume", ["bash", "launch/local.sh"], self._training(LATER))
        steps = self._steps()
        if steps != list(range(1, STEPS + 1)):
            raise ValueError(f"resume: steps {steps}, expected each from 1 to {STEPS} once")
        return f"{LATER} processes, steps {before + 1} to {STEPS}, none lost, none twice"

    def draw(self) -> str:
        from PIL import Image

        picture = self.folder / "picture.png"
        words = [*_module("inset_jax.generate"), "--checkpoint", self.folder / "run"]
        words += ["--prompt", "a lamp on a table", "--height", 64, "--width", 64]
        self.call("draw", [*words, "--num_timesteps", 4, "--out", picture])
        return "a picture of {} x {} pixels".format(*Image.open(picture).size)

    def bring_out(self) -> str:
        run, out = self.folder / "run", self.folder / "bagel-again"
        command = _module("tools.convert_weights")
        self.call("bring_out", [*command, "to-bagel", run, out])
        self.call("verify", [*command, "verify", run, out])
        return "the run's weights in BAGEL's form, equal tensor by tensor"

    def _training(self, processes: int) -> dict[str, str]:
        """Settings of launch/local.sh."""
        records = f"('{self.folder / 'records'}',)"
        fields = {
            "run.init_from": self.folder / "weights",
            "run.steps": STEPS,
            "data.train": records,
            "data.validation": records,
            "data.tokenizer": self.folder / "records",
        }
        return {
            "PROCESSES": str(processes),
            "DEVICES": "1",
            "PACKS": str(PROCESSES),
            "CONFIG": CONFIG,
            "WORKDIR": str(self.folder / "run"),
            "FLAGS": " ".join(f"--config.{name}={value}" for name, value in fields.items()),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            # how fast a step is, is not rehearsed; how long its compile takes, is waited for
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }

    def _steps(self) -> list[int]:
        """The steps whose losses the run has written down."""
        from inset_jax.train import metrics

        if not (self.folder / "run").exists():
            return []
        return [row["step"] for row in metrics.read(self.folder / "run") if row["phase"] == "train"]


PHASES = ("preflight", "records", "convert", "train", "resume", "draw", "bring_out")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/rehearsal"))
    options = parser.parse_args(arguments)
    return outcome.status(lambda: rehearse(options.out), failure=1)


def rehearse(folder: pathlib.Path) -> None:
    """Runs all phases; prints a line a phase and writes report.json."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    rehearsal, done = Rehearsal(folder.resolve()), []
    for name in PHASES:
        began = time.monotonic()
        told = getattr(rehearsal, name)()
        done.append(Phase(name, time.monotonic() - began, told))
        print(f"{name:<10} {done[-1].seconds:6.1f} s  {told}", flush=True)
    report = [phase._asdict() for phase in done]
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{sum(phase.seconds for phase in done):17.1f} s in all; {folder}/report.json")


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


if __name__ == "__main__":
    sys.exit(main())
