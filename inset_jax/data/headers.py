"""What the records of a data set say about their sizes: read once, nothing decoded, kept on disk.

It depends on the records and the tokenizer alone. What it takes of a pack at some resolution is
computed from it (`data.index`), so changing a resolution or a capacity reads no record again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.data import columns
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
    ids, kinds, numbers, counts, rows = [], [], [], [], []
    unreadable: list[tuple[int, str]] = []
    for number, found in enumerate(_each(records, tokenizer, workers)):
        if isinstance(found, str):
            if on_bad_record == "stop":
                raise ValueError(found)
            unreadable.append((number, found))
            continue
        name, kind, own = found
        ids.append(name)
        kinds.append(kind)
        numbers.append(number)
        counts.append(len(own))
        rows += own
    if not ids:
        raise ValueError(f"{records.folder}: no usable examples (all {len(unreadable)} unreadable)")
    table = np.array(rows, np.int32)
    return Headers(
        str(records.folder),
        key_of(records, tokenizer),
        Strings.of(ids),
        Labels.of(kinds),
        np.array(numbers, np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
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


class _Reader:
    """Reads some records; pickled to worker processes."""

    def __init__(self, records: Records, tokenizer: Tokenizer):
        self._records, self._tokenizer = records, tokenizer

    def __call__(self, numbers: Iterable[int]) -> list:
        """Returns (id, kind, rows) of each record, or why it cannot be read."""
        found = []
        for number in numbers:
            try:
                example = self._records[number]
                rows = of_example(example, self._tokenizer)
                found.append((example.id, example.kind, rows))
            except ValueError as error:
                found.append(str(error))
        return found


def _each(records: Records, tokenizer: Tokenizer, workers: int):
    reader = _Reader(records, tokenizer)
    batches = [
        range(first, min(first + BATCH, len(records))) for first in range(0, len(records), BATCH)
    ]
    if not workers:
        for batch in batches:
            yield from reader(batch)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for found in pool.map(reader, batches):
            yield from found
