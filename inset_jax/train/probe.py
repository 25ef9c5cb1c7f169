"""How fast each chip is by itself: in a step all wait for the slowest, so no clock of a step tells.

Between two steps, with nothing else to do, every device makes the same products of matrices. A chip
that is throttled, or whose memory corrects errors all the time, then stands out.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

SLOW = 0.1  # of the middle one's time that a device takes longer: it is named
SIDE, ROUNDS, TIMES = 4096, 16, 3  # 2.2 TFLOP: 2.4 ms on a v6e, 4.8 ms on a v5p, at their peak
SMALL = 64  # side on CPUs, for tests


class Probe:
    """Times the devices of this process, one after the other."""

    def __init__(self):
        side = SMALL if jax.default_backend() == "cpu" else SIDE
        # a permutation: numbers stay what they are
        kernel = np.eye(side)[::-1].astype(jnp.bfloat16)
        self._work = [jax.device_put(kernel, device) for device in jax.local_devices()]

    def own(self) -> dict[str, Any]:
        """Returns what this process found, as JSON can hold it: best seconds by device's number."""
        seconds = {}
        for kernel in self._work:
            (device,) = kernel.devices()
            with jax.set_mesh(Mesh(np.array([device]), ("alone",))):  # not that of the run
                _products(kernel).block_until_ready()  # compiles, the first time
                seconds[str(device.id)] = min(_timed(kernel) for _ in range(TIMES))
        return {"host": socket.gethostname(), "seconds": seconds}


def figures(told: Sequence[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """Returns metrics of all processes' findings, and a sentence about a slow device, or "".

    "chips/skew" is the share of the middle device's time that the slowest takes longer,
    "chips/slowest" its number.
    """
    found = {
        int(device): (seconds, number, one["host"])
        for number, one in enumerate(told)
        for device, seconds in one["seconds"].items()
    }
    middle = float(np.median([seconds for seconds, *_ in found.values()]))
    slowest = max(found, key=lambda device: found[device][0])
    seconds, process, host = found[slowest]
    skew = seconds / middle - 1
    values = {"chips/skew": skew, "chips/slowest": float(slowest)}
    if skew < SLOW:
        return values, ""
    return values, (
        f"device {slowest} (process {process}, {host}) takes {1 + skew:.2f} times as long as the "
        "middle one for the same products; all others wait for it in every step"
    )


@jax.jit
def _products(kernel: jax.Array) -> jax.Array:
    body = lambda _, x: jnp.dot(x, kernel)
    return jax.lax.fori_loop(0, ROUNDS, body, kernel)


def _timed(kernel: jax.Array) -> float:
    began = time.perf_counter()
    _products(kernel).block_until_ready()
    return time.perf_counter() - began
