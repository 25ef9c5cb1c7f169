"""Looks at every record of a folder: what is wrong with it, and what there is.

A shard is a job; its records are decoded one by one, so that a damaged one costs itself alone.
What only shows between records (two that are the same, a held-out picture in the training split) is
found afterwards from their fingerprints, and confirmed on the pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from inset_jax.core.config import Config
from inset_jax.data import image, jobs, layout, prepare, record, shards, text
from inset_jax.data.fingerprint import Fingerprint, alike, fingerprint, near_pairs
from inset_jax.data.index import COLUMNS, shrink_steps
from inset_jax.data.record import Example
from inset_jax.data.sentence import PLACE

# what stands in a sentence of some format where a picture should be by now
PLACEHOLDER = re.compile(r"<image>|<img>|<\|image_pad\|>|<\|vision_start\|>")
DECODED = 64  # pictures kept for comparisons


class Picture(NamedTuple):
    """One image segment."""

    kind: str
    width: int
    height: int
    size: int  # bytes
    print: Fingerprint


class Finding(NamedTuple):
    """What was seen of one record."""

    split: str
    number: int  # in the split
    shard: str
    reasons: tuple[str, ...]  # why it is bad; () if it is good
    id: str = ""
    kind: str = ""
    source: str = ""
    licence: str = ""
    lesson: str = ""  # digest of kinds and texts: two of one lesson and equal pictures are the same
    pictures: tuple[Picture, ...] = ()
    tokens: tuple[int, ...] | None = None  # of und, gen, vit and cross_entropy
    warnings: tuple[str, ...] = ()  # what a person should look at; it may be good


class Rejected(NamedTuple):
    """A line of the file of rejects, or a warning."""

    split: str
    record: int | None  # None: a whole shard
    shard: str
    id: str
    reason: str

    def __str__(self) -> str:
        which = self.shard if self.record is None else f"{self.split}[{self.record}] {self.id}"
        return f"{which}: {self.reason}"


class Lost(NamedTuple):
    """A shard that cannot be opened, or ends early."""

    shard: shards.Shard
    reason: str


class Validated(NamedTuple):
    """All that was seen."""

    findings: list[Finding]
    lost: list[Lost]

    @property
    def rejects(self) -> list[Rejected]:
        whole = [Rejected(own.shard.split, None, str(own.shard.path), "", own.reason)
                 for own in self.lost]  # fmt: skip
        return whole + [
            Rejected(own.split, own.number, own.shard, own.id, reason)
            for own in self.findings
            for reason in ["; ".join(own.reasons)]
            if reason
        ]

    @property
    def warnings(self) -> list[Rejected]:
        return [
            Rejected(own.split, own.number, own.shard, own.id, warning)
            for own in self.findings
            for warning in own.warnings
        ]


class _Job(NamedTuple):
    shard: shards.Shard
    config: Config | None
    tokenizer: text.Tokenizer | None


def validate(
    folder: str,
    scratch: Path,
    config: Config | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Validated:
    """Looks at all records of a folder, or of the split that `FOLDER#SPLIT` names.

    Args:
      scratch: an existing folder for small files while it works.
      config: of a training, to measure tokens by; with its tokenizer.
      workers: processes; 0 works in this one.

    Raises:
      ValueError: not a folder of records, or the tokenizer is not the config's.
    """
    found = shards.list_shards(folder)
    tokenizer = None
    if config is not None:
        tokenizer = text.load(
            config.data.tokenizer or config.run.init_from,
            config.model.tokens,
            config.model.llm.vocab_size,
        )
    pending = {number: _Job(shard, config, tokenizer) for number, shard in enumerate(found)}
    results: dict[int, tuple[list[Finding], str]] = {}
    name = lambda number: f"{found[number].path}: validating"
    for number, result in jobs.run(_look, pending, workers, scratch, name):
        results[number] = result
        progress(len(results), len(found))
    findings = [finding for number in sorted(results) for finding in results[number][0]]
    lost = [Lost(found[n], results[n][1]) for n in sorted(results) if results[n][1]]
    return Validated(_compared(folder, findings), lost)


def _look(job: _Job, skip: jobs.Skip, diary: Path | None) -> tuple[list[Finding], str]:
    """Looks at one shard; returns its findings and why it, or its end, is lost."""
    shard, findings, seen = job.shard, [], 0
    try:
        with jobs.diary(diary) as at:
            reader = shards.ShardReader(shard.path)
            for seen in range(len(reader)):
                at(seen)
                read = partial(_skipped, skip[seen]) if seen in skip else partial(reader.raw, seen)
                findings.append(_finding(job, shard.first + seen, reader, read))
            reader.close()
            count = len(reader)
    except ValueError as error:
        return findings, f"{error}; {shard.count - len(findings)} records are lost"
    if count != shard.count:
        return findings, f"{count} records, dataset_info.json says {shard.count}"
    return findings, ""


def _skipped(reason: str) -> bytes:
    raise ValueError(reason)


def _finding(job: _Job, number: int, reader, read: Callable[[], bytes]) -> Finding:
    where = (job.shard.split, number, job.shard.path.name)
    try:
        example = reader.parse(read())
    except ValueError as error:
        return Finding(*where, (str(error),))
    problems, pictures, tokens = list(_texts(example)), [], None
    try:
        record.check(example)
    except ValueError as error:
        problems.append(str(error).removeprefix(f"{example.id}: "))
    problems += _pictures(example, pictures)
    if job.config is not None:
        tokens, wrong = _tokens(example, job.tokenizer, job.config)
        problems += wrong
    facts = (example.id, example.kind, example.source, example.licence, _lesson(example))
    return Finding(*where, tuple(problems), *facts, tuple(pictures), tokens, _doubts(example))


def _texts(example: Example) -> Iterator[str]:
    texts = [(n, segment) for n, segment in enumerate(example.segments) if segment.kind == "text"]
    if not texts:
        yield "no text"
    for number, segment in texts:
        if not segment.text.strip():
            yield f"segment {number}: an empty text"
        if place := PLACEHOLDER.search(segment.text):
            yield f"segment {number}: {place.group()!r} in the text, a picture is missing there"
    if not any(s.loss or s.kind == "target" for s in example.segments):
        yield "nothing to learn: no target and no answer"


def _doubts(example: Example) -> tuple[str, ...]:
    """What a sentence may say on purpose: `\\[img:` stands for the characters themselves."""
    found = ((n, PLACE.search(segment.text)) for n, segment in enumerate(example.segments))
    return tuple(
        f"segment {number}: {place.group()!r} in the text: is a picture meant?"
        for number, place in found
        if place
    )


def _pictures(example: Example, pictures: list[Picture]) -> Iterator[str]:
    """Decodes all pictures; appends what they are, yields what is wrong with them."""
    seen: dict[int, tuple] = {}  # one that several segments show is decoded once
    for number, segment in enumerate(example.segments):
        if segment.kind == "text":
            continue
        if id(segment.image) not in seen:
            try:
                decoded = image.load(segment.image, f"image of segment {number}")
                seen[id(segment.image)] = (decoded.size, fingerprint(decoded))
            except ValueError as error:
                yield str(error)
                continue
        size, print = seen[id(segment.image)]
        if size != (segment.width, segment.height):
            found, said = "{}x{}".format(*size), f"{segment.width}x{segment.height}"
            yield f"image of segment {number} is {found}, the record says {said}"
        pictures.append(Picture(segment.kind, *size, len(segment.image), print))


def _tokens(
    example: Example, tokenizer: text.Tokenizer, config: Config
) -> tuple[tuple[int, ...] | None, list[str]]:
    """Returns what an example takes of und, gen, vit and cross_entropy, and what does not fit."""
    try:
        items = prepare.outline(example, tokenizer, config)
        layout.layout([items], config.model, [example.id])  # position tables
    except ValueError as error:
        return None, [str(error).removeprefix(f"{example.id}: ")]
    total = _total(items)
    wrong = list(_misfits(total, config))
    if wrong:  # references of long examples are scaled down, as far as the config allows
        smallest = prepare.outline(example, tokenizer, config, (100, *shrink_steps(config))[-1])
        wrong = list(_misfits(_total(smallest), config))
    return total, wrong


def _total(items: Sequence[layout.Item]) -> tuple[int, ...]:
    rows = map(prepare.segment_tokens, items)
    return tuple(int(sum(column)) for column in zip(*rows, strict=True))


def _misfits(total: Sequence[int], config: Config) -> Iterator[str]:
    data = config.data
    if total[0] + total[1] > data.max_example_tokens:
        yield f"{total[0] + total[1]} tokens, data.max_example_tokens is {data.max_example_tokens}"
    for name, own in zip(COLUMNS, total, strict=False):
        if own > getattr(data.capacity, name):
            limit = getattr(data.capacity, name)
            yield f"{own} {name} tokens, data.capacity.{name} is {limit}"


def _lesson(example: Example) -> str:
    parts = [(s.kind, " ".join(s.text.lower().split()), s.loss) for s in example.segments]
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _compared(folder: str, findings: list[Finding]) -> list[Finding]:
    """Adds what only shows between records: taken ids, records twice, leaks between splits.

    Of two that are the same the first stays; of a leak the one that is held out. Bad records are
    compared with none.
    """
    bad: dict[int, str] = {}
    order = [n for n, own in enumerate(findings) if not own.reasons]
    first: dict[tuple[str, str], Finding] = {}
    for number in order:
        own = findings[number]
        other = first.setdefault((own.split, own.id), own)
        if other is not own:
            bad[number] = f"its id is taken by {other.split}[{other.number}]"
    same = _Same(folder)
    for one, other in _suspects(findings, order):
        if one in bad or other in bad:
            continue
        if reason := same.why(findings[one], findings[other]):
            which, kept = (one, other) if findings[other].split != "train" and (
                findings[one].split == "train") else (other, one)  # fmt: skip
            bad[which] = f"{reason} {findings[kept].split}[{findings[kept].number}]"
            bad[which] += f" ({findings[kept].id})"
    return [
        own._replace(reasons=(bad[number],)) if number in bad else own
        for number, own in enumerate(findings)
    ]


def _suspects(findings: Sequence[Finding], order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of good records, the first one first, that may be the same or a leak."""
    texts: dict[str, int] = {}
    entries: list[tuple[int, Fingerprint]] = []
    for number in order:
        own = findings[number]
        targets = [picture for picture in own.pictures if picture.kind == "target"]
        entries += [(number, picture.print) for picture in targets or own.pictures[:1]]
        if not own.pictures:
            other = texts.setdefault(own.lesson, number)
            if other != number:
                yield other, number
    pairs = {
        (min(entries[i][0], entries[j][0]), max(entries[i][0], entries[j][0]))
        for i, j in near_pairs([print for _, print in entries])
    }
    yield from sorted(pair for pair in pairs if pair[0] != pair[1])


class _Same:
    """Confirms on the pixels that two records are the same, or leak."""

    def __init__(self, folder: str):
        self._folder = record.split_path(folder)[0]
        self._open = lru_cache(None)(lambda split: record.open_records(self._folder, split))
        self._pictures = lru_cache(DECODED)(self._decode)

    def why(self, one: Finding, other: Finding) -> str:
        """Returns "the same as" or "its target is that of", or "" if neither is so."""
        if one.lesson == other.lesson and len(one.pictures) == len(other.pictures):
            pairs = zip(*(self._pictures(own.split, own.number) for own in (one, other)))
            if all(alike(ours, theirs) for (_, ours), (_, theirs) in pairs):
                return "the same as"
        if one.split == other.split:
            return ""
        ours, theirs = (
            [picture for kind, picture in self._pictures(own.split, own.number) if kind == "target"]
            for own in (one, other)
        )
        if any(alike(a, b) for a in ours for b in theirs):
            return "leak between splits: its target is that of"
        return ""

    def _decode(self, split: str, number: int) -> list[tuple[str, image.Image.Image]]:
        segments = self._open(split)[number].segments
        return [(s.kind, image.load(s.image)) for s in segments if s.kind != "text"]


def shown(validated: Validated, each: int) -> dict[str, list[Finding]]:
    """Chooses up to `each` good records of every kind, spread over the whole."""
    kinds: dict[str, list[Finding]] = {}
    for own in validated.findings:
        if not own.reasons:
            kinds.setdefault(own.kind or "(no kind)", []).append(own)
    return {kind: own[:: max(1, len(own) // each)][:each] for kind, own in sorted(kinds.items())}


def say_progress(done: int, shards: int) -> None:
    """Prints one line a shard that has been looked at, where there are several."""
    if shards > 1:
        print(f"shard {done} of {shards}")
