"""A clean stop: SIGINT and SIGTERM are noted, and the run leaves when it is ready."""

from __future__ import annotations

import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Signals:
    """Notes SIGINT and SIGTERM instead of dying; a second one does what it always does."""

    def __enter__(self) -> Signals:
        self.received: int | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame) -> None:
        self.received = number
        print(f"{signal.Signals(number).name}: saving after this step; once more to leave at once")
        signal.signal(number, self._before[number])

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Asked(NamedTuple):
    """What a process asks for between two steps, 0 for nothing; or what all of them have agreed."""

    signal: int = 0  # to stop
    save: int = 0  # 1: a checkpoint is overdue
    profile: int = 0  # 1: a trace is asked for


class Agreement:
    """Makes all processes do the same after the same step, whichever of them asks for it, and when.

    Every step carries what each process asks for over the mesh; it is read one step later, when it
    has arrived, so nobody waits for it. What is asked for until it is done can therefore come
    again in the round after that.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._largest = jax.jit(lambda asked: jnp.max(asked, 0), out_shardings=everywhere)
        self._size, self._on_the_way = mesh.size, None

    def __call__(self, asked: Asked) -> Asked:
        """Takes what this process asks for; returns what all do now.

        A process by itself does at once what it asks for.
        """
        if jax.process_count() == 1:
            return asked
        arrived, own = self._on_the_way, np.array([asked], np.int32)
        rows = jax.make_array_from_callback((self._size, len(asked)), self._split, lambda part: own)
        self._on_the_way = self._largest(rows)
        return Asked() if arrived is None else Asked(*np.asarray(arrived).tolist())
