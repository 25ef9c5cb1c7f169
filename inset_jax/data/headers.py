"""What the records of a data set say about their sizes: read once, nothing decoded, kept on disk.

It depends on the records and the tokenizer alone. What it takes of a pack at some resolution is
computed from it (`data.index`), so changing a resolution or a capacity reads no record again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.data import columns, pool
from inset_jax.data.columns import Labels, Strings
from inset_jax.data.record import SEGMENT_KINDS, Example, Records
from inset_jax.data.text import Tokenizer

VERSION = 1
TEXT, VIT, VAE, TARGET = range(len(SEGMENT_KINDS))  # codes of `Headers.segment`
LOSS, DRAWS, OPENS = 1, 2, 4  # bits of `Headers.flags`
ENDS = 1 << 16  # bytes at either end of a shard that its fingerprint covers
BATCH = 256  # records a worker process reads at a time


class Headers(NamedTuple):
    """One data set: a row a readable example, a row a segment."""

    name: str  # of the folder, for messages
    key: str  # names records and tokenizer
    ids: Strings  # [example]
    kinds: Labels  # [example]
    number: np.ndarray  # int64 [example], record in the folder
    start: np.ndarray  # int64 [example + 1], first segment
    segment: np.ndarray  # int8 [segment], index into SEGMENT_KINDS
    length: np.ndarray  # int32 [segment], ids of a text
    size: np.ndarray  # int32 [segment, 2], width and height of an image; 1 of a text
    flags: np.ndarray  # uint8 [segment], sum of LOSS, DRAWS, OPENS
    unreadable: list[tuple[int, str]]  # record, reason

    def __len__(self) -> int:
        return len(self.ids)


def fingerprint(records: Records) -> str:
    """Names the content of a split by its shards: names, sizes and both ends of each file.

    An ArrayRecord file ends in an index of its chunks, so whatever moves a record shows; bytes that
    change in place do not. The loader compares each record with the plan once more.

    Raises:
      ValueError: a shard is missing; it is named.
    """
    rows = []
    for path, length in zip(records.files, records.lengths, strict=True):
        try:
            with open(path, "rb") as file:
                head = file.read(ENDS)
                size = file.seek(0, 2)
                file.seek(max(size - ENDS, 0))
                ends = hashlib.blake2b(head + file.read(ENDS), digest_size=8).hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: shard cannot be read: {error.strerror}") from error
        rows.append((path.name, length, size, ends))
    return columns.digest(records.split, rows)


def of_example(example: Example, tokenizer: Tokenizer) -> list[tuple]:
    """Returns a row a segment: code, ids, width, height, flags."""
    rows = []
    for segment in example.segments:
        is_text = segment.kind == "text"
        flags = LOSS * segment.loss + DRAWS * segment.draws + OPENS * segment.opens
        ids = len(tokenizer.encode(segment.text)) if is_text else 0
        size = (1, 1) if is_text else (segment.width, segment.height)
        rows.append((SEGMENT_KINDS.index(segment.kind), ids, *size, flags))
    return rows


def read(
    records: Records, tokenizer: Tokenizer, on_bad_record: str = "stop", workers: int = 0
) -> Headers:
    """Reads every record of a split; decodes no image.

    Args:
      on_bad_record: "stop", or "replace" to leave out records that cannot be read.
      workers: processes that read; 0 reads in this one. The result is the same.

    Raises:
      ValueError: a record cannot be read, or none can; all reasons are counted.
    """
    parts = []
    for part in _each(records, tokenizer, workers):
        if part.unreadable and on_bad_record == "stop":
            raise ValueError(part.unreadable[0][1])
        parts.append(part)
    unreadable = [row for part in parts for row in part.unreadable]
    parts = [part for part in parts if len(part.ids)]
    if not parts:
        first = f"; the first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(
            f"{records.folder}: no usable examples ({len(unreadable)} records unreadable{first})"
        )
    table = np.concatenate([part.table for part in parts])
    counts = np.concatenate([part.count for part in parts])
    return Headers(
        str(records.folder),
        key_of(records, tokenizer),
        Strings.join([part.ids for part in parts]),
        Labels.join([part.kinds for part in parts]),
        np.concatenate([part.number for part in parts]),
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        table[:, 0].astype(np.int8),
        table[:, 1],
        table[:, 2:4],
        table[:, 4].astype(np.uint8),
        unreadable,
    )


def key_of(records: Records, tokenizer: Tokenizer) -> str:
    return columns.digest(VERSION, fingerprint(records), tokenizer.inner.to_str())


def load(records: Records, tokenizer: Tokenizer, on_bad_record: str, folder: Path, workers=0):
    """Returns the headers that the folder holds; reads them first if it does not.

    Raises:
      ValueError: as `read`.
    """
    place = folder / f"headers-{key_of(records, tokenizer)}"
    stored = columns.load(place)
    if stored is None:
        _store(read(records, tokenizer, on_bad_record, workers), place)
        stored = columns.load(place)
    arrays, meta = stored
    unreadable = [tuple(row) for row in meta["unreadable"]]
    if unreadable and on_bad_record == "stop":
        raise ValueError(unreadable[0][1])
    ids = Strings(arrays.pop("id"), arrays.pop("id_end"))
    kinds = Labels(meta["kinds"], arrays.pop("kind"))
    name = str(records.folder)
    return Headers(name, meta["key"], ids, kinds, unreadable=unreadable, **arrays)


def _store(headers: Headers, place: Path) -> None:
    arrays = {
        name: array for name, array in headers._asdict().items() if isinstance(array, np.ndarray)
    }
    arrays |= {"id": headers.ids.data, "id_end": headers.ids.end, "kind": headers.kinds.code}
    meta = {"key": headers.key, "kinds": headers.kinds.names, "unreadable": headers.unreadable}
    columns.save(place, arrays, meta)


class _Part(NamedTuple):
    """What is in some records, packed tightly: a data set may have tens of millions."""

    ids: Strings
    kinds: Labels
    number: np.ndarray
    count: np.ndarray  # int64 [example], segments
    table: np.ndarray  # int32 [segment, 5], rows of `of_example`
    unreadable: list[tuple[int, str]]


class _Reader:
    """Reads some records; pickled to worker processes."""

    def __init__(self, records: Records, tokenizer: Tokenizer):
        self._records, self._tokenizer = records, tokenizer

    def __call__(self, numbers: range) -> _Part:
        ids, kinds, read, counts, table, unreadable = [], [], [], [], [], []
        for number in numbers:
            try:
                example = self._records[number]
                rows = of_example(example, self._tokenizer)
            except ValueError as error:
                unreadable.append((number, str(error)))
                continue
            ids.append(example.id)
            kinds.append(example.kind)
            read.append(number)
            counts.append(len(rows))
            table += rows
        return _Part(
            Strings.of(ids),
            Labels.of(kinds),
            np.array(read, np.int64),
            np.array(counts, np.int64),
            np.array(table, np.int32).reshape(-1, 5),
            unreadable,
        )


def _each(records: Records, tokenizer: Tokenizer, workers: int):
    reader = _Reader(records, tokenizer)
    batches = [
        range(first, min(first + BATCH, len(records))) for first in range(0, len(records), BATCH)
    ]
    if not workers:
        yield from map(reader, batches)
        return
    name = lambda numbers: f"{records.folder}: reading records {numbers[0]} to {numbers[-1]}"
    yield from pool.each(reader, batches, workers, name)
