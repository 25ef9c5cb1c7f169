"""The lengths of a data set: all that a plan needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.config import Config
from inset_jax.data import dropout
from inset_jax.data.layout import Item
from inset_jax.data.prepare import outline
from inset_jax.data.record import Records
from inset_jax.data.text import Tokenizer

COLUMNS = ("und", "gen", "vit", "cross_entropy", "examples")  # fields of CapacityConfig


class Index(NamedTuple):
    """One data set: a row a segment, and where the segments of each example start."""

    name: str  # of the folder, for messages
    ids: list[str]  # [example]
    kinds: list[str]  # [example]
    number: np.ndarray  # int64 [example], record in the folder
    start: np.ndarray  # int64 [example + 1], first segment
    tokens: np.ndarray  # int64 [segment, 4], in the columns of COLUMNS but the last
    code: np.ndarray  # int8 [segment], from data.dropout
    opens: np.ndarray  # bool [segment]
    skipped: dict[str, list[str]]  # reason -> ids of examples that cannot be used

    def __len__(self) -> int:
        return len(self.ids)


def segment_tokens(item: Item) -> tuple[int, int, int, int]:
    """Returns what an item takes of und, gen, vit and cross_entropy."""
    special = int(item.special_label >= 0)
    if item.kind == "text":
        own = len(item.ids)
        return own + 2, 0, 0, (own + 1) * item.loss + special
    own = item.size[0] * item.size[1]
    if item.kind == "vit":
        return own + 2, 0, own, special
    return 2, own, 0, special


class IndexWriter:
    """Collects the examples of one data set and leaves out those that fit no pack."""

    def __init__(self, name: str, config: Config):
        self._name, self._config = name, config
        self._rows: list[tuple] = []  # id, kind, number, tokens, code, opens
        self._skipped: dict[str, list[str]] = {}

    def add(self, number: int, example, items: Sequence[Item]) -> None:
        """Adds record `number`: a data.record.Example and its outline."""
        tokens = np.array([segment_tokens(item) for item in items], np.int64).reshape(-1, 4)
        if reason := self._misfit(tokens.sum(axis=0)):
            self.skip(example.id, reason)
            return
        code = dropout.codes(example.segments)
        opens = np.array([item.opens for item in items], bool)
        self._rows.append((example.id, example.kind, number, tokens, code, opens))

    def skip(self, name: str, reason: str) -> None:
        self._skipped.setdefault(reason, []).append(name)

    def _misfit(self, total: np.ndarray) -> str:
        """Judged before dropout: else a long example would be seen in its dropped forms only."""
        data = self._config.data
        if total[0] + total[1] > data.max_example_tokens:
            return f"more tokens than data.max_example_tokens={data.max_example_tokens}"
        for name, own in zip(COLUMNS, total, strict=False):
            limit = getattr(data.capacity, name)
            if own > limit:
                return f"more {name} tokens than data.capacity.{name}={limit}"
        return ""

    def finish(self) -> Index:
        """Returns the index.

        Raises:
          ValueError: no example is left; the reasons are listed.
        """
        if not self._rows:
            reasons = [f"{len(ids)}: {reason}" for reason, ids in self._skipped.items()]
            raise ValueError(f"{self._name}: no usable examples ({'; '.join(reasons) or 'empty'})")
        ids, kinds, number, tokens, code, opens = zip(*self._rows, strict=True)
        start = np.cumsum([0, *(len(own) for own in tokens)])
        join = np.concatenate
        return Index(
            self._name,
            list(ids),
            list(kinds),
            np.array(number, np.int64),
            start,
            join(tokens),
            join(code),
            join(opens),
            self._skipped,
        )


def build_index(records: Records, tokenizer: Tokenizer, config: Config) -> Index:
    """Measures every record of a data set; reads all, decodes no image.

    A record that cannot be read stops the run, or is left out if data.on_bad_record is "replace".

    Raises:
      ValueError: a record cannot be read, or none is usable.
    """
    writer = IndexWriter(records.folder, config)
    for number in range(len(records)):
        try:
            example = records[number]
            items = outline(example, tokenizer, config)
        except ValueError as error:
            if config.data.on_bad_record == "stop":
                raise
            writer.skip(f"record {number}", f"unreadable: {error}")
            continue
        writer.add(number, example, items)
    return writer.finish()
