"""One batch of packs: records read, images decoded, tokens laid out, bad records replaced.

Batch `step` is a function of (config, records, step). What goes wrong comes back as a value,
because an exception inside a pipeline could cost a batch in silence.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Pack
from inset_jax.data import prepare
from inset_jax.data.course import Course, Leg
from inset_jax.data.keyed import keyed
from inset_jax.data.pack import Item, assemble, layout, stack, with_tiles
from inset_jax.data.plan import Draw
from inset_jax.data.record import Example
from inset_jax.data.watch import Notes

REPLACEMENTS = 32  # examples tried in place of a bad one


class Picture(NamedTuple):
    """An image whose latents are to be encoded and written into the gen stream."""

    pack: int  # index in the batch
    row: int  # first row in the gen stream
    image: np.ndarray  # uint8 [H, W, 3]
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


class Failure(NamedTuple):
    """Why a batch could not be made."""

    step: int
    message: str
    expected: bool  # a fault of the data, not of the program


class BatchMaker:
    """Makes batch `step`; pickled to worker processes."""

    def __init__(
        self,
        course: Course,
        records: Sequence,
        tokenizer,
        shard: range,
        notes: Notes | None = None,
        deadly: Mapping[tuple[int, int], str] | None = None,
    ):
        """Args:
        records: one a data set, in the order of the plan's indexes.
        shard: which of the packs of a step are this host's.
        notes: where worker processes write down what they are at.
        deadly: (data set, record) that cost worker processes their lives, and how; taken as bad
          records.
        """
        self._course, self._records, self.tokenizer = course, records, tokenizer
        self._shard, self._notes, self._deadly = shard, notes, dict(deadly or {})

    def __call__(self, step: int) -> HostBatch | Failure:
        try:
            return self._batch(int(step))
        except ValueError as error:
            return Failure(int(step), str(error), True)
        except Exception:
            return Failure(int(step), traceback.format_exc(), False)

    def _batch(self, step: int) -> HostBatch:
        packs, pictures, examples, faults = [], [], [], []
        leg, first = self._course.at(step)
        config = leg.config
        for own, number in enumerate(self._shard):
            draws = leg.plan.pack(first + number)
            items, names = self.items(leg, draws, faults)
            laid = layout(items, config.model, [name for name, _ in names])
            reweight = config.loss.cross_entropy_reweighting
            capacity = config.data.capacity
            pack = assemble(laid, capacity, config.model, reweight)
            if capacity.attention_tiles:
                block = config.compute.attention_block
                held = f"{laid.names[0]} and {len(names) - 1} more" if names else "empty"
                name = f"pack {number} ({held})"
                pack = with_tiles(pack, block, capacity.attention_tiles, name)
            packs.append(pack)
            pictures += [
                Picture(own, int(row), item.image, item.posterior_noise)
                for item, row in zip(laid.gen_items, laid.gen_row, strict=True)
                if item.latent is None
            ]
            examples.append(names)
        return HostBatch(stack(packs), pictures, examples, step, faults)

    def items(self, leg: Leg, draws: list[Draw], faults: list[Fault]):
        """Prepares the examples of one pack; bad ones are replaced if the config says so."""
        items, names = [], []
        for place, draw in enumerate(draws):
            index = leg.plan.indexes[draw.data_set]
            try:
                own = self._prepare(leg, draw)
            except ValueError as error:
                if leg.config.data.on_bad_record == "stop":
                    raise
                others = draws[:place] + draws[place + 1 :]
                found = self._replacement(leg, draw, leg.plan.room(others))
                bad, draw, own = index.ids[draw.example], *(found or (None, None))
                faults.append(Fault(bad, str(error), index.ids[draw.example] if draw else ""))
                if draw is None:
                    continue
                draws = [*draws[:place], draw, *draws[place + 1 :]]
            items.append(own)
            names.append((index.ids[draw.example], index.kinds[draw.example]))
        return items, names

    def _replacement(self, leg: Leg, bad: Draw, room: np.ndarray) -> tuple[Draw, list[Item]] | None:
        """Returns another example of the same data set that fits, the same one on every call."""
        index = leg.plan.indexes[bad.data_set]
        random = keyed("replacement", leg.config.run.seed, index.ids[bad.example], bad.epoch)
        for example in random.integers(len(index), size=REPLACEMENTS):
            draw = bad._replace(example=int(example))
            if draw == bad or (leg.plan.lengths(draw) > room).any():
                continue
            try:
                return draw, self._prepare(leg, draw)
            except ValueError:
                continue
        return None

    def _prepare(self, leg: Leg, draw: Draw) -> list[Item]:
        """Reads an example and decodes its images.

        Raises:
          ValueError: the record is damaged, is not the one that was planned, or is deadly.
        """
        index = leg.plan.indexes[draw.data_set]
        place = (draw.data_set, int(index.number[draw.example]))
        if place in self._deadly:
            name = index.ids[draw.example]
            raise ValueError(f"{index.name}: {name}: {self._deadly[place]}")
        if self._notes:
            self._notes.write(*place)
        try:
            example = self._records[draw.data_set][place[1]]  # its errors name the shard
            try:
                return self._filled(leg, draw, example)
            except ValueError as error:
                raise ValueError(f"{index.name}: {error}") from error
        finally:
            if self._notes:
                self._notes.clear()

    def _filled(self, leg: Leg, draw: Draw, example: Example) -> list[Item]:
        index, config = leg.plan.indexes[draw.data_set], leg.config
        percent = int(index.percent[draw.example])
        items = prepare.outline(example, self.tokenizer, config, percent)
        found = [prepare.segment_tokens(item) for item in items]
        planned = index.tokens[index.segments(draw.example)]
        if example.id != index.ids[draw.example] or not np.array_equal(found, planned):
            raise ValueError(
                f"record {index.number[draw.example]} has changed since it was measured: it is "
                f"{example.id!r} with {np.sum(found, axis=0)[:2].tolist()} und and gen tokens, the "
                f"plan has {index.ids[draw.example]!r} with {planned.sum(axis=0)[:2].tolist()}"
            )
        return prepare.fill(example, items, leg.plan.dropped(draw), config, draw.epoch)
