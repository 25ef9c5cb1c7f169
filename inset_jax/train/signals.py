"""A clean stop: SIGINT and SIGTERM are noted, and the run leaves when it is ready."""

from __future__ import annotations

import signal

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


class Agreement:
    """Makes all processes stop after the same step, whichever of them got a signal, and when.

    Every step carries each process's wish over the mesh; it is read one step later, when it has
    arrived, so nobody waits for it.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._largest = jax.jit(jnp.max, out_shardings=everywhere)
        self._size, self._on_the_way = mesh.size, None

    def __call__(self, wish: int | None) -> int | None:
        """Takes this process's signal, if any; returns the one that all stop for, if any.

        A process by itself stops at once.
        """
        if jax.process_count() == 1:
            return wish
        arrived, own = self._on_the_way, np.array([wish or 0], np.int32)
        wishes = jax.make_array_from_callback((self._size,), self._split, lambda part: own)
        self._on_the_way = self._largest(wishes)
        return (int(arrived) or None) if arrived is not None else None
