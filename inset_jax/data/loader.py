"""Batches of packs for a host, step by step.

    records -> index -> plan -> items -> layout -> pack         (this room)

The state of a loader is one integer, the step, beside the hash of its plan: batch n is a function
of (config, records, n), with any number of workers and hosts. A run that goes on with other packs a
step has counted otherwise before; then the number of the next pack says where it is. Grain reads
ahead, in threads or worker processes; its own state is never used. A worker process that dies or
hangs is started again; the record that does it to one a second time is a bad record.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from collections import Counter, deque
from pathlib import Path

import numpy as np

from inset_jax.core.config import Config
from inset_jax.data import text
from inset_jax.data.batch import BatchMaker, Failure, Fault, HostBatch, Picture
from inset_jax.data.course import Ahead, Course, open_course
from inset_jax.data.layout import Item
from inset_jax.data.plan import Plan
from inset_jax.data.record import check_split, open_folder, open_records, split_path
from inset_jax.data.watch import Notes, Watch

__all__ = ["SPLITS", "Fault", "HostBatch", "Loader", "Picture"]
SPLITS = ("train", "validation")
ENDLESS = 2**40  # steps
THREADS = 4  # that make batches where there are no worker processes
DEATHS = 4  # of worker processes before one and the same batch is given up
KEPT = 1000  # faults that are remembered
PLANS = "plans"  # folder beside the first records

log = logging.getLogger(__name__)


class Loader:
    """Iterates over the batches of a split; `step` is the number of the next one."""

    def __init__(
        self,
        config: Config,
        split: str = "train",
        process_index: int = 0,
        process_count: int = 1,
        step: int = 0,
    ):
        """Opens the records and measures them.

        Args:
          split: "train" is endless, shuffled and with condition dropout; "validation" is one pass
            over all examples, without dropout, each with fixed noise.
          process_index: this host's number of `process_count`; each gets an equal share of the
            `data.packs` of a step.
          step: where to start.

        Raises:
          ValueError: folders, tokenizer or records that cannot be used; packs that cannot be shared
            equally.
        """
        if config.data.packs % process_count:
            raise ValueError(
                f"data.packs={config.data.packs} cannot be shared by {process_count} hosts: make "
                "the first a multiple of the second"
            )
        self.tokenizer, self._records, self._course = open_data(config, split)
        own = config.data.packs // process_count
        self._shard = range(process_index * own, (process_index + 1) * own)
        self._config, self._endless = config, split == "train"
        self._ahead = Ahead(self._course)
        self._iterator, self._notes = None, None
        self._step = step
        self._deaths: Counter = Counter()  # of worker processes: by batch, and by what they were at
        self._deadly: dict[tuple[int, int], str] = {}  # (data set, record), and what it does
        self._host = f"host {process_index} ({socket.gethostname()})"
        self.faults: deque[Fault] = deque(maxlen=KEPT)  # the last ones, for those who look
        self.restarts = 0  # of worker processes

    @property
    def plan(self) -> Plan:
        """The plan that the next batch belongs to."""
        return self._course.leg(self._step).plan

    @property
    def hash(self) -> str:
        """Names the sequence of packs: equal where data, tokenizer and settings are."""
        return self._course.hash

    @property
    def records_hash(self) -> str:
        """Names the records and their tokenizer alone."""
        return self._course.records_hash

    @property
    def step(self) -> int:
        """The number of the next batch: the whole state. Setting it goes there."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self.close()
        self._step = step

    @property
    def pack(self) -> int:
        """The number of the next batch's first pack, over all hosts, in the plan of its stage.

        Setting it goes there and leaves the step as it is.
        """
        return self._course.at(self._step)[1]

    @pack.setter
    def pack(self, number: int) -> None:
        self.close()
        self._course.go_on(self._step, number)

    def __len__(self) -> int:
        """Number of batches of one pass (validation)."""
        return -(-len(self.plan) // self._config.data.packs)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> HostBatch:
        """Returns the next batch.

        Raises:
          ValueError: a record cannot be used and data.on_bad_record is "stop".
        """
        if not self._endless and self._step >= len(self):
            raise StopIteration
        self._ahead.of(self._step)
        batch = self._next()
        if isinstance(batch, Failure):
            self.close()
            raise (ValueError if batch.expected else RuntimeError)(
                f"batch {batch.step}: {batch.message}"
            )
        assert batch.step == self._step, f"batch {batch.step} came in place of {self._step}"
        for fault in batch.faults:
            log.warning("step %d: %s", batch.step, fault)
        self.faults += batch.faults
        self._step += 1
        return batch

    def items(self, number: int) -> tuple[list[list[Item]], list[tuple[str, str]]]:
        """Prepares pack `number` of the plan: the items of its examples, their ids and kinds.

        Raises:
          ValueError: a record cannot be used and data.on_bad_record is "stop".
        """
        leg = self._course.leg(self._step)
        return self._maker().items(leg, leg.plan.pack(number), [])

    def close(self) -> None:
        """Ends the threads or worker processes; the loader can go on, which starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
        if self._notes is not None:
            self._notes.cleanup()
        self._iterator, self._notes = None, None

    def _next(self) -> HostBatch | Failure:
        """Takes the next batch; starts worker processes again when one has died or hangs."""
        while True:
            if self._iterator is None:
                self._iterator = iter(self._pipeline())
            if not self._config.data.workers:
                return next(self._iterator)
            watch = Watch(Notes(self._notes.name), self._config.data.worker_timeout)
            try:
                with watch:
                    return next(self._iterator)
            except RuntimeError as error:  # Grain's word for a worker process that is gone
                self._bury(error, watch.has_killed)

    def _bury(self, error: RuntimeError, has_hung: bool) -> None:
        """Finds out what the dead worker process was at, or the one that hung and was killed.

        Any death is forgiven at first: the machine may have been short of memory. A record that was
        in work at two of them is deadly, and is from then on a bad record.

        Raises:
          ChildProcessError: worker processes keep dying.
        """
        at_work = Notes(self._notes.name).take()
        died, does = f"died ({error})", "ended the worker process that decoded it"
        if has_hung:
            limit = f"{self._config.data.worker_timeout:g} s (data.worker_timeout)"
            died, does = (
                f"hung for {limit}",
                f"held up the worker process that decoded it for {limit}",
            )
            at_work = dict(list(at_work.items())[:1])  # the others had to die with it
        self.close()
        self.restarts += 1
        places = set(at_work.values())
        self._deaths.update([self._step, *places])
        found = {place for place in places if self._deaths[place] == 2}
        self._deadly |= dict.fromkeys(found, does)
        names = ", ".join(f"{self._name(p)} (process {n})" for n, p in at_work.items())
        told = f"on {self._host}, at work on {names or 'no record'}"
        log.warning(
            "step %d: a worker process %s %s; started again%s",
            *(self._step, died, told, ", without what did this twice" * bool(found)),
        )
        if self._deaths[self._step] >= DEATHS and not found:
            raise ChildProcessError(
                f"batch {self._step}: worker processes died or hung {DEATHS} times; lastly one "
                f"{died} {told}"
            ) from error

    def _name(self, place: tuple[int, int]) -> str:
        """Names a record of a data set: folder, number, and id if the plan knows it."""
        data_set, record = place
        index = self.plan.indexes[data_set]
        ids = [index.ids[int(row)] for row in np.flatnonzero(index.number == record)]
        return f"{self._records[data_set].folder}: record {record}" + f" {ids[0]!r}" * bool(ids)

    def _maker(self, notes: Notes | None = None) -> BatchMaker:
        own = (self._course, self._records, self.tokenizer, self._shard)
        return BatchMaker(*own, notes, self._deadly)

    def _pipeline(self):
        import grain  # takes a second

        data = self._config.data
        end = ENDLESS if self._endless else len(self)
        if data.workers:
            self._notes = tempfile.TemporaryDirectory(prefix="inset-workers-")
        notes = Notes(self._notes.name) if self._notes else None
        steps = grain.MapDataset.range(self._step, end).map(self._maker(notes))
        if not data.workers:
            threads = min(data.prefetch, THREADS)  # 0: no thread at all
            return steps.to_iter_dataset(grain.ReadOptions(threads, data.prefetch))
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers read flags, which a library never parsed
            flags.FLAGS.mark_as_parsed()
        batches = steps.to_iter_dataset(grain.ReadOptions(1, 1))
        options = grain.MultiprocessingOptions(
            data.workers, per_worker_buffer_size=max(data.prefetch, 1)
        )
        return batches.mp_prefetch(options, notes.begin)


def check_folders(config: Config) -> None:
    """Refuses what cannot be read, before weights are: held-out records are opened late in a run.

    Raises:
      ValueError: a folder of data.train or data.validation has no records, or not its split.
    """
    for split in SPLITS:
        for place in getattr(config.data, split):
            folder, named = split_path(place)
            check_split(folder, named or split, open_folder(folder).info.splits)


def course_of(config: Config, split: str, workers: int = 0) -> Course:
    """Measures the records of a split and opens its plans; see `open_data`."""
    return open_data(config, split, workers)[2]


def open_data(config: Config, split: str, workers: int = 0) -> tuple[text.Tokenizer, list, Course]:
    """Returns the tokenizer, the records of a split and the course of their packs.

    Args:
      workers: processes that measure records which have not been measured.

    Raises:
      ValueError: folders, tokenizer or records that cannot be used.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; there are {', '.join(SPLITS)}")
    folders = getattr(config.data, split)
    if not folders:
        raise ValueError(f"data.{split} names no folder of records")
    tokenizer = tokenizer_of(config)
    records = [open_records(folder, split) for folder in folders]
    place = plans_folder(config, folders)
    return (
        tokenizer,
        records,
        open_course(records, tokenizer, config, split == "train", place, workers),
    )


def plans_folder(config: Config, folders: tuple[str, ...]) -> Path:
    """Returns where indexes and plans are kept: data.plans, or beside the first records.

    Records on a read-only disk are measured and planned anew by every run, in a temporary folder.
    """
    if config.data.plans:
        return Path(config.data.plans)
    folder = Path(split_path(folders[0])[0])
    if os.access(folder, os.W_OK):
        return folder / PLANS
    log.warning("%s is not writable: set data.plans to a folder that keeps lengths", folder)
    folder = tempfile.mkdtemp(prefix="inset-plans-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def tokenizer_of(config: Config) -> text.Tokenizer:
    path = config.data.tokenizer or config.run.init_from
    if not path:
        raise ValueError("data.tokenizer names no tokenizer, and run.init_from no checkpoint")
    return text.load(path, config.model.tokens, config.model.llm.vocab_size)
