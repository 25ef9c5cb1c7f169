"""Batches of packs for a host, step by step.

    records -> index -> plan -> items -> layout -> pack         (this room)

The state of a loader is one integer, the step: batch n is a function of (config, records, n), with
any number of workers and hosts. Grain reads ahead, in threads or worker processes; its own state is
never used. What goes wrong while a batch is made comes back as a value and is raised or counted
here, because an exception inside a pipeline could cost a batch in silence.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.data import image, prepare, text
from inset_jax.data.index import build_index
from inset_jax.data.keyed import keyed
from inset_jax.data.pack import Item, assemble, layout, stack, with_tiles
from inset_jax.data.plan import Draw, Plan
from inset_jax.data.record import open_records

SPLITS = ("train", "validation")
ENDLESS = 2**40  # steps
REPLACEMENTS = 32  # examples tried in place of a bad one
THREADS = 4  # that make batches where there are no worker processes

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """An image whose latents are to be encoded and written into the gen stream."""

    pack: int  # index in the batch
    row: int  # first row in the gen stream
    image: np.ndarray  # float32 [H, W, 3] in [-1, 1]
    posterior_noise: np.ndarray  # float32 [h, w, c]; zeros for the posterior's mean


class Fault(NamedTuple):
    """A record that could not be used."""

    example: str  # id
    reason: str
    replacement: str  # id of what came in its place; "" for nothing


class HostBatch(NamedTuple):
    """What one host works on in one step."""

    pack: Pack  # [P, ...], this host's packs
    pictures: list[Picture]
    examples: list[list[tuple[str, str]]]  # a pack: (id, kind) of its examples
    step: int
    faults: list[Fault]


class _Failure(NamedTuple):
    """Why a batch could not be made."""

    step: int
    message: str
    expected: bool  # a fault of the data, not of the program


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
        if split not in SPLITS:
            raise ValueError(f"split {split!r}; there are {', '.join(SPLITS)}")
        folders = getattr(config.data, split)
        if not folders:
            raise ValueError(f"data.{split} names no folder of records")
        if config.data.packs % process_count:
            raise ValueError(
                f"data.packs={config.data.packs} cannot be shared by {process_count} hosts: make "
                "the first a multiple of the second"
            )
        tokenizer = _tokenizer(config)
        records = [open_records(folder, split) for folder in folders]
        indexes = [build_index(own, tokenizer, config) for own in records]
        endless = split == "train"
        self.plan = Plan(indexes, config, endless, config.data.dropout if endless else None)
        for folder, reasons in self.plan.skipped.items():
            for reason, ids in reasons.items():
                shown = ", ".join(ids[:5]) + ", ..." * (len(ids) > 5)
                log.warning("%s: %d examples left out: %s: %s", folder, len(ids), reason, shown)
        own = config.data.packs // process_count
        shard = range(process_index * own, (process_index + 1) * own)
        self._make = _BatchMaker(config, self.plan, records, tokenizer, shard)
        self._config, self._endless = config, endless
        self._iterator = None
        self._step = step
        self.faults: list[Fault] = []  # of all batches so far

    @property
    def step(self) -> int:
        """The number of the next batch: the whole state. Setting it goes there."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self.close()
        self._step = step

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
        if self._iterator is None:
            self._iterator = iter(self._pipeline())
        batch = next(self._iterator)
        if isinstance(batch, _Failure):
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
        return self._make.items(self.plan.pack(number), [])

    @property
    def tokenizer(self) -> text.Tokenizer:
        return self._make.tokenizer

    def close(self) -> None:
        """Ends the threads or worker processes; the loader can go on, which starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _pipeline(self):
        import grain  # takes a second

        data = self._config.data
        end = ENDLESS if self._endless else len(self)
        steps = grain.MapDataset.range(self._step, end).map(self._make)
        if not data.workers:
            threads = min(data.prefetch, THREADS)  # 0: no thread at all
            return steps.to_iter_dataset(grain.ReadOptions(threads, data.prefetch))
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers read flags, which a library never parsed
            flags.FLAGS.mark_as_parsed()
        batches = steps.to_iter_dataset(grain.ReadOptions(1, 1))
        return batches.mp_prefetch(
            grain.MultiprocessingOptions(data.workers, per_worker_buffer_size=max(data.prefetch, 1))
        )


def _tokenizer(config: Config) -> text.Tokenizer:
    path = config.data.tokenizer or config.run.init_from
    if not path:
        raise ValueError("data.tokenizer names no tokenizer, and run.init_from no checkpoint")
    return text.load(path, config.model.tokens, config.model.llm.vocab_size)


class _BatchMaker:
    """Makes batch `step`; pickled to worker processes."""

    def __init__(self, config: Config, plan: Plan, records: Sequence, tokenizer, shard: range):
        self._config, self._plan, self._shard = config, plan, shard
        self._records, self.tokenizer = records, tokenizer

    def __call__(self, step: int) -> HostBatch | _Failure:
        try:
            return self._batch(int(step))
        except ValueError as error:
            return _Failure(int(step), str(error), True)
        except Exception:
            return _Failure(int(step), traceback.format_exc(), False)

    def _batch(self, step: int) -> HostBatch:
        packs, pictures, examples, faults = [], [], [], []
        for own, number in enumerate(self._shard):
            draws = self._plan.pack(step * self._config.data.packs + number)
            items, names = self.items(draws, faults)
            laid = layout(items, self._config.model, [name for name, _ in names])
            reweight = self._config.loss.cross_entropy_reweighting
            capacity = self._config.data.capacity
            pack = assemble(laid, capacity, self._config.model, reweight)
            if capacity.attention_tiles:
                block = self._config.compute.attention_block
                name = f"pack {number} ({laid.names[0]} and {len(laid.names) - 1} more)"
                pack = with_tiles(pack, block, capacity.attention_tiles, name)
            packs.append(pack)
            pictures += [
                Picture(own, int(row), image.normalize(item.image), item.posterior_noise)
                for item, row in zip(laid.gen_items, laid.gen_row, strict=True)
                if item.latent is None
            ]
            examples.append(names)
        return HostBatch(stack(packs), pictures, examples, step, faults)

    def items(self, draws: list[Draw], faults: list[Fault]):
        """Prepares the examples of one pack; bad ones are replaced if the config says so."""
        items, names = [], []
        for place, draw in enumerate(draws):
            index = self._plan.indexes[draw.data_set]
            try:
                own = self._prepare(draw)
            except ValueError as error:
                if self._config.data.on_bad_record == "stop":
                    raise
                others = draws[:place] + draws[place + 1 :]
                found = self._replacement(draw, self._plan.room(others))
                bad, draw, own = index.ids[draw.example], *(found or (None, None))
                faults.append(Fault(bad, str(error), index.ids[draw.example] if draw else ""))
                if draw is None:
                    continue
                draws = [*draws[:place], draw, *draws[place + 1 :]]
            items.append(own)
            names.append((index.ids[draw.example], index.kinds[draw.example]))
        return items, names

    def _replacement(self, bad: Draw, room: np.ndarray) -> tuple[Draw, list[Item]] | None:
        """Returns another example of the same data set that fits, the same one on every call."""
        index = self._plan.indexes[bad.data_set]
        random = keyed("replacement", self._config.run.seed, index.ids[bad.example], bad.epoch)
        for example in random.integers(len(index), size=REPLACEMENTS):
            draw = bad._replace(example=int(example))
            if draw == bad or (self._plan.lengths(draw) > room).any():
                continue
            try:
                return draw, self._prepare(draw)
            except ValueError:
                continue
        return None

    def _prepare(self, draw: Draw) -> list[Item]:
        index = self._plan.indexes[draw.data_set]
        example = self._records[draw.data_set][index.number[draw.example]]
        outline = prepare.outline(example, self.tokenizer, self._config)
        dropped = self._plan.dropped(draw)
        try:
            return prepare.fill(example, outline, dropped, self._config, draw.epoch)
        except ValueError as error:
            raise ValueError(f"{index.name}: {error}") from error
