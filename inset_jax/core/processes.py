"""The processes of one run: how they find one another, and what ends them when one is lost.

JAX's own service joins them. Beside it, every process writes a beat into the service's table and
reads those of the others, so that a run whose process was killed ends within a bounded time, with a
sentence that names the process; a collective would wait for it for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from inset_jax.core import host as hosts

JOIN_SECONDS = 1800  # for all hosts to come: images are pulled and slices start one after another
LOST_SECONDS = 60  # without a beat
LOST = 75  # exit status: another process is gone, the same command may be started again
AUTO = "auto"
IF_ANY = "if any"  # as AUTO, but a host that knows of no others runs by itself
BEATS = "inset/beat/"
OUTCOMES = "inset/outcome/"


class Shared(ValueError):
    """An error in something that all processes do together: another one may have caused it."""


class Place(NamedTuple):
    """Which process this is."""

    coordinator: str  # HOST:PORT of process 0; AUTO asks the machine (TPU VMs, GKE, Slurm)
    count: int
    index: int


def place(options: Mapping[str, str | None], environment: Mapping[str, str]) -> Place | None:
    """Returns what flags or the environment say; None for a process by itself.

    Args:
      options: "coordinator", "processes", "process", as flags; each falls back on
        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      ValueError: one of the three is missing or no number.
    """
    names = {
        "coordinator": "JAX_COORDINATOR_ADDRESS",
        "processes": "JAX_NUM_PROCESSES",
        "process": "JAX_PROCESS_ID",
    }
    found = {flag: options.get(flag) or environment.get(name) for flag, name in names.items()}
    coordinator = found["coordinator"]
    if coordinator == AUTO:
        return Place(AUTO, 0, 0)
    if not any(found.values()):
        return Place(IF_ANY, 0, 0) if _on_tpu_host(environment) else None
    for flag, value in found.items():
        if not value:
            raise ValueError(f"--{flag} is missing (or {names[flag]}): a run of several processes")
    try:
        count, index = int(found["processes"]), int(found["process"])
    except ValueError as error:
        raise ValueError(f"--processes and --process are whole numbers: {error}") from error
    if not 0 <= index < count:
        raise ValueError(f"--process={index}: expected 0 to {count - 1} of --processes={count}")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(f"--coordinator={coordinator}: expected HOST:PORT of process 0")
    return Place(coordinator, count, index) if count > 1 else None


def _on_tpu_host(environment: Mapping[str, str]) -> bool:
    """Whether this host has TPU chips that JAX will use; nothing is asked over a network."""
    wanted = environment.get("JAX_PLATFORMS", "tpu").split(",")[0]
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return wanted == "tpu" and bool(chips)


def join(where: Place | None, lost_seconds: float = LOST_SECONDS) -> Group | None:
    """Returns the group of this process; None for a process by itself.

    Raises:
      ValueError: the others did not come within JOIN_SECONDS.
    """
    if where is None:
        return None
    try:
        return Group(where, lost_seconds)
    except LookupError:
        if where.coordinator == IF_ANY:
            return None
        raise ValueError(
            f"--coordinator={AUTO}: this machine knows of no other processes; name HOST:PORT"
        ) from None


@contextlib.contextmanager
def joined(where: Place | None, lost_seconds: float = LOST_SECONDS) -> Iterator[Group | None]:
    """The group of this process for the length of a block, None for a process by itself.

    An error or a signal in the block ends this process, after it has said why, and so the others; a
    process by itself gets the error as it is.

    Raises:
      ValueError: the others did not come within JOIN_SECONDS.
    """
    group = join(where, lost_seconds)
    if group is None:
        yield None
        return
    try:
        yield group
    except (Exception, KeyboardInterrupt, hosts.Terminated) as error:
        _say(group.index, error)
        group.fail(error)
    group.leave()


def _say(index: int, error: BaseException) -> None:
    if not isinstance(error, Exception):
        print(f"process {index}: interrupted", file=sys.stderr)
        return
    if not isinstance(error, ValueError | OSError):
        traceback.print_exc()
    for line in str(error).splitlines()[:20]:
        print(f"error: process {index}: {line}", file=sys.stderr)


class Group:
    """This process among the others, from `join` to `leave`."""

    def __init__(self, where: Place, lost_seconds: float = LOST_SECONDS):
        """Joins the others and starts to watch them.

        Raises:
          LookupError: the machine was to know of the others, and does not.
          ValueError: the others did not come within JOIN_SECONDS.
        """
        import jax

        named = {}
        if where.coordinator not in (AUTO, IF_ANY):
            named = {
                "coordinator_address": where.coordinator,
                "num_processes": where.count,
                "process_id": where.index,
            }
        # its handler takes SIGTERM for good, and every command here has an answer of its own
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                **named,
                initialization_timeout=JOIN_SECONDS,
                # ours comes first, and says whom it misses
                heartbeat_timeout_seconds=max(100, round(3 * lost_seconds)),
                shutdown_timeout_seconds=max(100, round(3 * lost_seconds)),
            )
        except ValueError as error:
            raise LookupError(str(error)) from error
        except RuntimeError as error:
            raise ValueError(f"the processes did not come together: {error}") from error
        from jax._src.distributed import global_state  # the only way to the service's table

        self.index, self.count = global_state.process_id, global_state.num_processes
        self._client = global_state.client
        self._lost_seconds = lost_seconds
        self._stop = threading.Event()
        self._told: dict[int, dict] = {}
        self._write("runs")
        self._coordinator = global_state.coordinator_address
        self._on_abort = _handler_of_aborts(self._aborting)
        self._watcher = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._watcher.start()

    def leave(self) -> None:
        """Waits for all to come to their end and lets go."""
        import jax

        self._stop.set()
        self._watcher.join()
        self._write("left")
        jax.distributed.shutdown()

    def fail(self, error: BaseException) -> None:
        """Ends this process after an error or a signal, and so the others; does not return.

        When another process is killed, collectives and saves fail here with messages that name
        nobody. So an error of the device, or of what all do together (`Shared`), waits until the
        watcher has had time to find out who is missing.
        """
        signalled = isinstance(error, KeyboardInterrupt | hosts.Terminated)
        own = isinstance(error, ValueError | OSError) and not isinstance(error, Shared)
        if not (own or signalled):
            time.sleep(1.5 * self._lost_seconds)  # the watcher may end the process here
        self._stop.set()
        self._watcher.join()  # which writes into the same row of the table
        self._write("failed", f"{type(error).__name__}: {error}"[:2000])
        time.sleep(self._pause() * 2.5)  # for the others to read it while there is a table
        self._end(None, hosts.status(error) if signalled else 1)

    def _pause(self) -> float:
        return min(5.0, self._lost_seconds / 4)

    def _write(self, state: str, message: str = "") -> None:
        value = {
            "state": state,
            "message": message,
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            self._client.key_value_set(f"{BEATS}{self.index}", json.dumps(value), True)
        except Exception:
            if state == "runs":
                raise

    def _watch(self) -> None:
        began = answered = time.monotonic()
        changed = dict.fromkeys(range(self.count), began)
        while not self._stop.wait(self._pause()):
            now = time.monotonic()
            try:
                self._write("runs")
                table = self._client.key_value_dir_get(BEATS)
                answered = now
            except Exception as error:
                if now - answered > self._lost_seconds:
                    self._end(f"{self._name(0)}, the coordinator, does not answer: {error}", LOST)
                continue
            for key, text in table:
                number, value = int(key.rpartition("/")[2]), json.loads(text)
                if value != self._told.get(number):
                    self._told[number], changed[number] = value, now
            self._judge(now, changed)

    def _judge(self, now: float, changed: Mapping[int, float]) -> None:
        for number, value in self._told.items():
            if value["state"] == "failed" and number != self.index:
                self._end(f"{self._name(number)} failed: {value['message']}", 1)
        late = [
            number
            for number, last in changed.items()
            if number != self.index
            and now - last > self._lost_seconds
            and self._told.get(number, {}).get("state") != "left"
        ]
        if late:
            names = ", ".join(self._name(number) for number in late)
            self._end(
                f"{names}: not heard of for {self._lost_seconds:g} s; the same command goes on "
                "from the last complete checkpoint",
                LOST,
            )

    def _name(self, number: int) -> str:
        known = self._told.get(number)
        where = f" (host {known['host']}, pid {known['pid']})" if known else ""
        return f"process {number} of {self.count}{where}"

    def _aborting(self) -> None:
        """JAX aborts the process at once when process 0 is gone, and does not say so."""
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
        except OSError:
            message = (
                f"{self._name(0)}, the coordinator, is gone; the same command goes on from the "
                "last complete checkpoint"
            )
            os.write(2, f"error: {message}\n".encode())
            os._exit(LOST)

    def _end(self, message: str | None, status: int) -> None:
        """Leaves at once: a thread of the device may wait for ever for those that are gone."""
        if message is not None:
            print(f"error: {message}", file=sys.stderr, flush=True)
            if self.index == 0:  # it has the table: the others read it first
                time.sleep(self._pause() * 2.5)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _handler_of_aborts(act: Callable[[], None]):
    """Calls a function when the process aborts; if it returns, the abort goes on.

    Python's own handlers run in the main thread, which an aborting one never reaches.

    Returns:
      what must be kept for as long as the handler is needed.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: act())
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    return handler


def settle(name: str, failure: str, seconds: float = LOST_SECONDS) -> None:
    """Tells the others how something went that all do together; "" stands for well.

    No collective: those of the others may wait for a process that failed before its own. One that
    failed waits until all have come to the end of it, and then goes on with them.

    Args:
      name: of this very occasion; never used twice in the life of the processes.
      seconds: that one which failed waits.

    Raises:
      ValueError: this one failed, and another has not come to the end: it waits for this one.
    """
    from jax._src.distributed import global_state

    client, index, count = global_state.client, global_state.process_id, global_state.num_processes
    if client is None:
        return
    client.key_value_set(f"{OUTCOMES}{name}/{index}", failure or "done")
    until = time.monotonic() + seconds
    for number in range(count) if failure else ():
        left = max(1, round(1000 * (until - time.monotonic())))
        try:
            client.blocking_key_value_get(f"{OUTCOMES}{name}/{number}", left)
        except Exception as error:
            raise ValueError(
                f"{failure} (process {number} is still waiting for this one)"
            ) from error


def gather(value) -> list:
    """Returns every process's value (what JSON can hold), in the order of their numbers.

    All processes call it at the same place.
    """
    import jax

    if jax.process_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]
