"""How fast a run is: tokens by stream, work against what the chips could do, hosts, memory.

Each process counts its own packs; when a line is due all tell what they know (`own`), and every one
puts the whole together (`figures`). Seconds are those of the stopwatch, so what lies between two
steps (checkpoints, held-out losses, pictures) slows no rate.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from inset_jax.core import chips
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.train import work
from inset_jax.train.stopwatch import Stopwatch

STREAMS = ("und", "gen", "vit")  # whose tokens are counted; und holds a slot for every ViT token
SLOW = 0.2  # of a step that the slowest host lags behind the middle one: it is named
GIB = chips.GIB


class Throughput:
    """Counts of one process since the last line."""

    def __init__(self, config: Config, watch: Stopwatch, counts: bool):
        """counts: whether no process of a lower number has the same packs."""
        self._config, self._watch, self._counts = config, watch, counts
        self._each = np.asarray(work.each(config))
        self._chip = chips.of_kind(jax.devices()[0].device_kind)
        self._load = np.zeros(len(work.Load._fields))
        self._last = self._load  # of the last step alone
        self._room = dict.fromkeys(STREAMS, 0)  # tokens that the last step's packs could hold
        self._steps, self._seconds = 0, dict(watch.seconds)

    def add(self, packs: Sequence[Pack]) -> None:
        """Counts a step, by the packs [P, ...] of its batches."""
        self._last = np.sum([work.held(pack) for pack in packs], axis=0)
        self._load = self._load + self._last
        # of the packs, not of the config: a curriculum may change their sizes
        slots = lambda pack: (pack.und_example, pack.gen_example, pack.vit_place)
        self._room = dict(
            zip(STREAMS, (sum(x.size for x in own) for own in zip(*map(slots, packs))))
        )
        self._steps += 1

    def forget(self) -> None:
        """Starts the count anew: what has been counted is in no rate."""
        self._load = np.zeros(len(self._last))
        self._steps, self._seconds = 0, dict(self._watch.seconds)

    def own(self) -> dict[str, Any]:
        """Returns what this process knows, as JSON can hold it, and starts the count anew."""
        lasted = {
            kind: seconds - self._seconds.get(kind, 0.0)
            for kind, seconds in self._watch.seconds.items()
        }
        told = {
            "load": (self._load * self._counts).tolist(),
            "last": (self._last * self._counts).tolist(),
            "room": [size * self._counts for size in self._room.values()],
            "steps": self._steps,
            "seconds": {kind: seconds for kind, seconds in lasted.items() if seconds > 0},
            "memory": _memory(),
            "host": socket.gethostname(),
        }
        self.forget()
        return told

    def figures(self, told: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Returns the metrics of the whole run since the last line.

        Args:
          told: what each process knows; index 0 is process 0, whose clock counts.
        """
        first, steps = told[0]["seconds"], told[0]["steps"]
        last = work.Load(*np.sum([one["last"] for one in told], axis=0))
        room = np.sum([one["room"] for one in told], axis=0)
        values = {
            f"fill/{stream}": getattr(last, stream) / float(size)
            for stream, size in zip(STREAMS, room, strict=True)
            if size
        }
        kinds = ("data", "step", "bad")
        if steps:
            values |= {f"time/{k}": first.get(k, 0.0) / steps for k in kinds[:2]}
        values |= {
            f"time/{k}": s for k, s in first.items() if k in ("save", "held_out", "pictures")
        }
        seconds = sum(first.get(kind, 0.0) for kind in kinds)
        if not steps or seconds <= 0:
            return values
        load = np.sum([one["load"] for one in told], axis=0)
        whole = work.Load(*load)
        values["steps_per_second"] = steps / seconds
        values["tokens_per_second"] = (whole.und + whole.gen) / seconds
        for stream in STREAMS:
            values[f"tokens_per_second/{stream}"] = getattr(whole, stream) / seconds
        per_chip = self._chip.devices if self._chip else 1
        rate = float(load @ self._each) / seconds * per_chip / jax.device_count()
        values["tflops_per_chip"] = rate / 1e12
        if self._chip:
            values["mfu"] = rate / self._chip.flops
        return values | _hosts(told) | _fullest(told)


def slow_host(told: Sequence[dict[str, Any]], values: dict[str, float]) -> str:
    """Returns a sentence about a host that the others wait for; "" where there is none."""
    seconds = values.get("hosts/skew", 0.0)
    if not seconds or seconds < SLOW / values["steps_per_second"]:
        return ""
    number = int(values["hosts/slowest"])
    return (
        f"process {number} ({told[number]['host']}) needs {seconds:.2f} s a step more than the "
        "middle one for its data; the others wait for it"
    )


def _hosts(told: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The skew of the hosts: how much longer than the middle one the slowest readies its data.

    Steps end everywhere at once, because collectives wait for all; what differs is the time that a
    host takes before it can begin one.
    """
    if len(told) == 1:
        return {}
    own = [one["seconds"].get("data", 0.0) / max(one["steps"], 1) for one in told]
    return {
        "hosts/skew": float(max(own) - np.median(own)),
        "hosts/slowest": float(np.argmax(own)),
    }


def _memory() -> list[float]:
    """GiB in use and at the most, of this process's fullest device; [] where devices do not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = ("bytes_in_use", "peak_bytes_in_use")
    found = [[own[name] / GIB for name in names] for own in stats if set(names) <= own.keys()]
    return np.max(found, axis=0).tolist() if found else []


def _fullest(told: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = [one["memory"] for one in told if one["memory"]]
    if not found:
        return {}
    in_use, peak = np.max(found, axis=0)
    return {"hbm/gib": float(in_use), "hbm/peak_gib": float(peak)}
