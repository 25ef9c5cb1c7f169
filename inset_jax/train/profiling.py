"""Traces of some steps for XProf or Perfetto, asked for by config or by touching a file.

    run.profile_steps=(first, last)    these steps
    touch <workdir>/profile_now        the next few steps; the file goes away when they begin

The trace lies in <workdir>/profile/<first step>/, in a folder a process where there are several.
"""

from __future__ import annotations

import pathlib
import time

import jax

from inset_jax.core.config import RunConfig

ASK = "profile_now"
FOLDER = "profile"
STEPS = 3  # of a trace that was asked for by the file
PAUSE = 2.0  # seconds between two looks for the file, which may lie on a slow disk


class Profiler:
    """Starts and ends traces between the steps of one process."""

    def __init__(self, run: RunConfig, workdir: pathlib.Path):
        self._workdir = workdir
        self._plans = [run.profile_steps] if run.profile_steps else []  # first and last steps
        self._last: int | None = None  # step that the trace on the way ends with
        self._began = -1
        self._looked = float("-inf")

    def asked(self) -> bool:
        """Whether the file is there; of process 0, which tells the others."""
        if jax.process_index() or time.monotonic() - self._looked < PAUSE:
            return False
        self._looked = time.monotonic()
        return (self._workdir / ASK).exists()

    def ask(self, step: int) -> None:
        """Plans a trace from `step` on; called by all processes in the same round."""
        # what was asked for in the round before may still be on its way
        if self._last is not None or step <= self._began + 1:
            return
        if jax.process_index() == 0:
            (self._workdir / ASK).unlink(missing_ok=True)
        self._plans.append((step, step + STEPS - 1))

    def before(self, step: int) -> None:
        """Starts the trace that begins with this step, unless another is on its way."""
        due = [plan for plan in self._plans if plan[0] <= step <= plan[1]]
        if not due or self._last is not None:
            return
        self._plans.remove(due[0])
        self._began, self._last = step, due[0][1]
        jax.profiler.start_trace(str(self._folder(step)))

    def after(self, step: int, result) -> None:
        """Ends the trace that ends with this step, when the device is done with it.

        Args:
          result: arrays that the step makes.
        """
        if step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace on the way, if there is one."""
        if self._last is None:
            return
        self._last = None
        jax.profiler.stop_trace()
        print(f"trace from step {self._began} on: {self._folder(self._began)}", flush=True)

    def _folder(self, step: int) -> pathlib.Path:
        folder = self._workdir / FOLDER / str(step)
        return folder / str(jax.process_index()) if jax.process_count() > 1 else folder
