"""Worker processes that may die: every death is seen, and no worker outlives its parent.

Each worker has a pipe of its own to the parent. One that dies, even half way through an answer, is
the end of that pipe and of nothing else. (The standard library's pool in Python 3.11 does not watch
the process that it started last until another one has a result: of two workers with an hour's work
each, it sees the death of one after an hour. Its processes live on when the parent is killed.)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

from inset_jax.data import watch

DEATHS = 2  # over one and the same thing, before it is taken to be the reason
PATIENCE = 5.0  # seconds that an idle worker has to end by itself

A, R = TypeVar("A"), TypeVar("R")


class Died(NamedTuple):
    """Comes in place of a result."""

    process: int
    status: int | None  # as of multiprocessing: -9 is signal 9

    def __str__(self) -> str:
        how = f"exit status {self.status}"
        if self.status is not None and self.status < 0:
            how = f"killed by {signal.Signals(-self.status).name}"
        return f"process {self.process} died ({how})"


class _Worker(NamedTuple):
    process: multiprocessing.Process
    pipe: connection.Connection


class Pool:
    """Processes that call one function; entered, and left with nothing running."""

    def __init__(self, function: Callable, workers: int):
        """Args:
        function: can be pickled, as can what it takes, returns and raises.
        workers: processes at most; they start when there is work.
        """
        self._function, self._workers = function, workers
        # not fork: threads of libraries may hold locks
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[connection.Connection, tuple[_Worker, Any]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        for worker, _ in self._busy.values():
            worker.process.kill()
        for worker in self._idle:
            worker.pipe.close()
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()

    @property
    def busy(self) -> int:
        """Number of calls under way."""
        return len(self._busy)

    @property
    def has_room(self) -> bool:
        return self.busy < self._workers

    def start(self, key, *arguments) -> None:
        """Lets a worker that is idle, or a new one, call the function."""
        assert self.has_room, "more calls than workers"
        worker = self._idle.pop() if self._idle else self._new()
        self._busy[worker.pipe] = worker, key
        with contextlib.suppress(ConnectionError):  # a dead one; `wait` says so
            worker.pipe.send(arguments)

    def wait(self) -> tuple[Any, Any]:
        """Waits for a call to end; returns (its key, the result or `Died`).

        Raises:
          whatever the function raises.
        """
        pipe = connection.wait(list(self._busy))[0]
        worker, key = self._busy.pop(pipe)
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):  # the latter half way through a message
            worker.process.join()
            return key, Died(worker.process.pid, worker.process.exitcode)
        self._idle.append(worker)
        is_result, answer = pickle.loads(message)
        if not is_result:
            raise answer
        return key, answer

    def _new(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        with contextlib.suppress(ConnectionError):
            ours.send(self._function)  # not as an argument: who reads it there may be dead
        return _Worker(process, ours)


def _serve(pipe: connection.Connection) -> None:
    """What a worker does: calls the function until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    watch.end_with_parent()
    with contextlib.suppress(EOFError):
        function = pipe.recv()
        while True:
            arguments = pipe.recv()
            try:
                answer = True, function(*arguments)
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = False, error
            pipe.send_bytes(_message(*answer))


def _message(is_result: bool, answer) -> bytes:
    """An answer as the parent reads it; in place of one that it could not read, what went wrong."""
    try:
        message = pickle.dumps((is_result, answer))
        if not is_result:  # errors may be written and not read: their classes want other arguments
            pickle.loads(message)
        return message
    except Exception:
        told = traceback.format_exc() if is_result else "".join(traceback.format_exception(answer))
        return pickle.dumps((False, RuntimeError(told)))


def each(
    function: Callable[[A], R], tasks: Sequence[A], workers: int, name: Callable[[A], str]
) -> Iterator[R]:
    """Yields function(task) of all tasks, in their order, made in processes.

    Args:
      name: says what is done, for the message.

    Raises:
      ChildProcessError: a process died twice at one task.
      whatever the function raises.
    """
    waiting, results, deaths = deque(range(len(tasks))), {}, Counter()
    with Pool(function, min(workers, len(tasks))) as pool:
        for coming in range(len(tasks)):
            while coming not in results:
                while waiting and pool.has_room:
                    number = waiting.popleft()
                    pool.start(number, tasks[number])
                number, result = pool.wait()
                if not isinstance(result, Died):
                    results[number] = result
                    continue
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    raise ChildProcessError(f"{name(tasks[number])}: {result}, the second time")
                waiting.appendleft(number)
            yield results.pop(coming)
