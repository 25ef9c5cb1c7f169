"""The lengths of a data set under a config: all that a plan needs to know of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.core.config import CapacityConfig, Config
from inset_jax.data import columns, dropout, headers, image
from inset_jax.data.columns import Labels, Strings
from inset_jax.data.headers import DRAWS, LOSS, OPENS, TARGET, TEXT, VAE, VIT, Headers
from inset_jax.data.prepare import limits_of
from inset_jax.data.record import Records
from inset_jax.data.text import Tokenizer

COLUMNS = ("und", "gen", "vit", "cross_entropy", "examples")  # fields of CapacityConfig
VERSION = 1
SHRINK_STEP = 5  # percent of a side between two sizes that references are tried at


class Index(NamedTuple):
    """One data set: a row a usable example, a row a segment."""

    name: str  # of the folder, for messages
    source: str  # names the records and the tokenizer
    key: str  # names these and the sizes
    ids: Strings  # [example]
    kinds: Labels  # [example]
    number: np.ndarray  # int64 [example], record in the folder
    start: np.ndarray  # int64 [example + 1], first segment
    tokens: np.ndarray  # int32 [segment, 4], in the columns of COLUMNS but the last
    code: np.ndarray  # int8 [segment], from data.dropout
    opens: np.ndarray  # bool [segment]
    percent: np.ndarray  # uint8 [example], of their side that references are scaled to
    skipped: dict[str, list[str]]  # reason -> ids of examples that cannot be used
    place: str = ""  # folder that holds the columns, if one does

    def __reduce__(self):  # a worker process maps the same files instead of getting a copy
        return (_reopen, (self.place, self.name)) if self.place else (Index, tuple(self))

    def __len__(self) -> int:
        return len(self.ids)

    def segments(self, example: int) -> slice:
        """Returns the rows of an example's segments."""
        return slice(int(self.start[example]), int(self.start[example + 1]))


def capacity_row(capacity: CapacityConfig) -> np.ndarray:
    """Returns the capacities in the order of COLUMNS: int64 [5]."""
    return np.array([getattr(capacity, name) for name in COLUMNS], np.int64)


def rows_of(start: np.ndarray, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the segments of some examples one after the other, and where each example begins.

    Returns:
      int64 [segment], rows of the index; int64 [example + 1].
    """
    count = start[examples + 1] - start[examples]
    own = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return np.repeat(start[examples] - own[:-1], count) + np.arange(own[-1]), own


def sums(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Adds up rows of segments by example: [segment, ...] to [example, ...]; none is empty."""
    if len(start) == 1:
        return np.zeros((0, *values.shape[1:]), values.dtype)
    return np.add.reduceat(values, start[:-1], axis=0)


def measure(headers_: Headers, config: Config) -> Index:
    """Computes what each example takes of a pack.

    An example that is longer than a pack or data.max_example_tokens has its references (the ViT's
    images) scaled down in steps of SHRINK_STEP percent of their sides, at most to
    data.smallest_reference of them. Judged before dropout, so that an example has one size.

    Raises:
      ValueError: no example is usable; the reasons are listed.
    """
    count = len(headers_)
    tokens = _tokens(headers_, np.arange(len(headers_.segment)), headers_.start, 100, config)
    total = sums(tokens, headers_.start)
    percent = np.full(count, 100, np.uint8)
    limits = capacity_row(config.data.capacity)[:4]
    over = lambda total: (
        (total > limits).any(axis=1) | (total[:, :2].sum(axis=1) > config.data.max_example_tokens)
    )
    waiting = np.flatnonzero(over(total))
    for step in shrink_steps(config):
        if not len(waiting):
            break
        rows, start = rows_of(headers_.start, waiting)
        tokens[rows] = _tokens(headers_, rows, start, step, config)
        total[waiting], percent[waiting] = sums(tokens[rows], start), step
        waiting = waiting[over(total[waiting])]
    skipped = _reasons(headers_, total, waiting, config)
    opens = (headers_.flags & OPENS) > 0
    code = _codes(headers_)
    key = columns.digest(VERSION, headers_.key, _facts(config))
    if len(waiting) == count:
        told = [f"{len(ids)}: {reason}" for reason, ids in skipped.items()]
        raise ValueError(f"{headers_.name}: no usable examples ({'; '.join(told)})")
    usable = np.setdiff1d(np.arange(count), waiting)
    ids, kinds, start = headers_.ids, headers_.kinds, headers_.start
    if len(waiting):
        rows, start = rows_of(start, usable)
        tokens, code, opens = tokens[rows], code[rows], opens[rows]
        ids, kinds = ids.take(usable), kinds.take(usable)
    return Index(
        name=headers_.name,
        source=headers_.key,
        key=key,
        ids=ids,
        kinds=kinds,
        number=headers_.number[usable],
        start=start,
        tokens=tokens,
        code=code,
        opens=opens,
        percent=percent[usable],
        skipped=skipped,
    )


def shrink_steps(config: Config) -> list[int]:
    """Returns the percent of their sides that references are tried at, in order, below 100."""
    least = 100 * config.data.smallest_reference - 1e-9
    return [step for step in range(100 - SHRINK_STEP, 0, -SHRINK_STEP) if step >= least]


def _facts(config: Config) -> list:
    """What lengths depend on."""
    data, model = config.data, config.model
    return [
        [vars(limits) for limits in (data.vit_size, data.vae_size)],
        [model.vit.patch, model.latent_stride],
        [vars(data.capacity), data.max_example_tokens, data.smallest_reference],
    ]


def _tokens(
    headers_: Headers, rows: np.ndarray, start: np.ndarray, percent: int, config: Config
) -> np.ndarray:
    """Returns what segments take of und, gen, vit and cross_entropy: int32 [segment, 4].

    Args:
      rows: int [segment], of the headers; start: int [example + 1], where examples begin in them.
    """
    kind, flags = headers_.segment[rows], headers_.flags[rows]
    length = headers_.length[rows]
    has_target = np.logical_or.reduceat(kind == TARGET, start[:-1])
    images = np.add.reduceat((kind == VIT).astype(np.int64), start[:-1])
    sharing = np.repeat(np.where(has_target, 1, np.maximum(images, 1)), np.diff(start))
    area = np.zeros(len(rows), np.int32)
    for codes, name in (((VIT,), "vit"), ((VAE, TARGET), "target")):
        own = np.flatnonzero(np.isin(kind, codes))
        limits, stride = limits_of(name, config)
        width, height = headers_.size[rows[own]].T
        size = image.resized_sizes(width, height, limits, sharing[own])
        shrink = percent if name == "vit" else 100
        columns_, rows_ = (image.shrunk(side // stride, shrink) for side in size)
        area[own] = columns_ * rows_
    is_text, is_vit = kind == TEXT, kind == VIT
    loss, draws = (flags & LOSS) > 0, (flags & DRAWS) > 0
    return np.stack(
        [
            2 + np.where(is_text, length, area * is_vit),
            area * ~is_vit,
            area * is_vit,
            (length + 1) * (loss & is_text) + draws,
        ],
        axis=1,
    ).astype(np.int32)


def _codes(headers_: Headers) -> np.ndarray:
    """Returns what each segment is to condition dropout: int8 [segment]; as `dropout.codes`."""
    has_target = np.logical_or.reduceat(headers_.segment == TARGET, headers_.start[:-1])
    drops = np.repeat(has_target, np.diff(headers_.start)) & ((headers_.flags & LOSS) == 0)
    table = np.zeros(4, np.int8)
    table[[TEXT, VIT, VAE]] = dropout.TEXT, dropout.VIT, dropout.VAE
    return np.where(drops, table[headers_.segment], dropout.NEVER).astype(np.int8)


def _reasons(headers_: Headers, total: np.ndarray, misfits: np.ndarray, config: Config) -> dict:
    """Returns reason -> ids of what cannot be used, unreadable records included."""
    data = config.data
    skipped: dict[str, list[str]] = {}
    for number, reason in headers_.unreadable:
        reason = re.sub(r"record \d+ of", "records of", reason)  # one line a shard
        skipped.setdefault(f"unreadable: {reason}", []).append(f"record {number}")
    for example in misfits:
        reason = f"more tokens than data.max_example_tokens={data.max_example_tokens}"
        if total[example, :2].sum() <= data.max_example_tokens:
            limits = capacity_row(data.capacity)
            name = COLUMNS[int(np.argmax(total[example] > limits[:4]))]
            reason = f"more {name} tokens than data.capacity.{name}={getattr(data.capacity, name)}"
        skipped.setdefault(reason, []).append(headers_.ids[int(example)])
    return skipped


def build_index(records: Records, tokenizer: Tokenizer, config: Config) -> Index:
    """Measures every record of a data set; reads all, decodes no image.

    A record that cannot be read stops the run, or is left out if data.on_bad_record is "replace".

    Raises:
      ValueError: a record cannot be read, or none is usable.
    """
    return measure(headers.read(records, tokenizer, config.data.on_bad_record), config)


def open_index(
    records: Records, tokenizer: Tokenizer, config: Config, folder: Path, workers: int = 0
) -> Index:
    """Returns the index of a data set from a folder that keeps it; makes it first where needed.

    Raises:
      ValueError: as `build_index`.
    """
    on_bad = config.data.on_bad_record
    found = headers.load(records, tokenizer, on_bad, folder, workers)
    place = folder / f"index-{columns.digest(VERSION, found.key, _facts(config))}"
    if columns.load(place) is None:
        _store(measure(found, config), place)
    return _reopen(str(place), found.name)


def _reopen(place: str, name: str) -> Index:
    arrays, meta = columns.load(Path(place))
    ids = Strings(arrays.pop("id"), arrays.pop("id_end"))
    kinds = Labels(meta["kinds"], arrays.pop("kind"))
    facts = {name: meta[name] for name in ("source", "key", "skipped")}
    return Index(name=name, ids=ids, kinds=kinds, place=place, **facts, **arrays)


def _store(index: Index, place: Path) -> None:
    arrays = {n: array for n, array in index._asdict().items() if isinstance(array, np.ndarray)}
    arrays |= {"id": index.ids.data, "id_end": index.ids.end, "kind": index.kinds.code}
    meta = {name: getattr(index, name) for name in ("source", "key", "skipped")}
    meta["kinds"] = index.kinds.names
    columns.save(place, arrays, meta)
