"""What a run writes down: JSON lines, TensorBoard events, and a line on the terminal."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

JSONL = "metrics.jsonl"
EVENTS = "tensorboard"


class Writer:
    """Appends metrics to `metrics.jsonl`, TensorBoard's event files, and a service if there is one.

    A run that goes on from step N first drops what an earlier process wrote after N, so that the
    file reads as if the run had never been interrupted.
    """

    def __init__(self, folder: pathlib.Path, step: int, service=None):
        """service: with `write`, `picture` and `close` as `remote.WandB` has them."""
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / JSONL
        drop_after(self._path, step)
        self._lines = open(self._path, "a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)
        self._service = service

    def write(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Records what is finite of the numbers of one step.

        Args:
          phase: "train", "validation", "start" or "chips".

        Raises:
          OSError: the file cannot grow; it is named.
        """
        values = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        try:
            self._lines.write(json.dumps({"step": step, "phase": phase, **values}) + "\n")
            self._lines.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        named = {f"{phase}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            self._events.add_scalar(name, value, step)
        if self._service:
            self._service.write(step, named)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an RGB picture, uint8 [H, W, 3], to the event files."""
        self._events.add_image(name, pixels, step, dataformats="HWC")
        if self._service:
            self._service.picture(step, name, pixels)

    def close(self) -> None:
        self._lines.close()
        self._events.close()
        if self._service:
            self._service.close()


class Clock:
    """Steps a second since the last line, and the time left."""

    def __init__(self, step: int):
        self._step, self._time = step, time.monotonic()

    def restart(self, step: int) -> None:
        """Starts the count anew, so that what just happened is in nobody's rate."""
        self.__init__(step)

    def read(self, step: int, steps: int) -> dict[str, float]:
        """Returns steps a second since the last reading, and the seconds left.

        Nothing, where no step has passed since then.
        """
        seconds = max(time.monotonic() - self._time, 1e-9)
        done = step - self._step
        self.restart(step)
        if done <= 0:
            return {}
        return {"steps_per_second": done / seconds, "seconds_left": (steps - step) * seconds / done}


def read(folder: pathlib.Path) -> list[dict]:
    """Returns the records of a run's `metrics.jsonl`, a torn last line left out."""
    path = pathlib.Path(folder) / JSONL
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def progress_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """The line on the terminal: step, losses, and once they are known rates and the time left."""
    line = (
        f"step {step:>{len(str(steps))}}/{steps}  loss {values['loss']:.4f}  "
        f"flow {values['flow']:.4f}  ce {values['cross_entropy']:.4f}  "
        f"lr {values['learning_rate']:.2e}"
    )
    if "seconds_left" not in values:
        return line
    line += (
        f"  {values['steps_per_second']:.2f} steps/s  {values['tokens_per_second']:,.0f} tokens/s"
    )
    if "mfu" in values:
        line += f"  MFU {values['mfu']:.1%}"
    return f"{line}  left {spell(values['seconds_left'])}"


def spell(seconds: float) -> str:
    """Returns a duration as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class KindSums:
    """Collects weighted sums of both losses by kind of data, over any number of packs."""

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}

    def add(self, by_example, examples: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Adds a batch.

        Args:
          by_example: four arrays [P, E]: sum and weight of the cross entropy, then of the flow.
          examples: for each pack, (id, kind) of its examples in order.
        """
        columns = np.stack([np.asarray(part, np.float64) for part in by_example], axis=-1)
        for own, pack in zip(examples, columns, strict=True):
            for (_, kind), sums in zip(own, pack, strict=False):
                self._sums[kind] = self._sums.get(kind, 0.0) + sums

    def to_json(self) -> dict[str, list[float]]:
        """Returns the sums by kind; `add_sums` of another collection takes them."""
        return {kind: [float(x) for x in sums] for kind, sums in self._sums.items()}

    def add_sums(self, told: Mapping[str, Sequence[float]]) -> None:
        for kind, sums in told.items():
            self._sums[kind] = self._sums.get(kind, 0.0) + np.asarray(sums, np.float64)

    def means(self) -> dict[str, float]:
        """Returns flow and cross entropy of each kind that has such targets, and of all."""
        told: dict[str, float] = {}
        whole = sum(self._sums.values(), np.zeros(4))
        for kind, (entropy, entropy_weight, flow, flow_weight) in [
            ("", whole),
            *sorted(self._sums.items()),
        ]:
            suffix = f"/{kind}" if kind else ""
            if flow_weight > 0:
                told[f"flow{suffix}"] = float(flow / flow_weight)
            if entropy_weight > 0:
                told[f"cross_entropy{suffix}"] = float(entropy / entropy_weight)
        return told


def rows_of(by_example, rows: Sequence[int]) -> tuple:
    """Returns of each array [P, E] of a global batch the packs whose examples a process knows."""
    return tuple(np.asarray(part)[list(rows)] for part in by_example)


def by_time(flow, weight) -> dict[str, float]:
    """Returns the mean flow loss in each of equal parts of the timesteps 0 (clean) to 1 (noise).

    Parts without a target are left out.

    Args:
      flow, weight: float [parts], weighted sums and sums of weights.
    """
    parts = len(flow)
    return {
        f"flow_at/{part / parts:g}-{(part + 1) / parts:g}": float(flow[part] / weight[part])
        for part in range(parts)
        if weight[part] > 0
    }


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Lines that end in a newline; a process killed while writing leaves one that does not."""
    return [line for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]


def drop_after(path: pathlib.Path, step: int) -> None:
    """Removes the records of steps after `step`, in one move."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    beside = path.with_suffix(".part")
    beside.write_text("".join(kept), "utf-8")
    os.replace(beside, path)
