"""What `validate` has seen, for people: one HTML page and one PNG of the same.

Counts, sizes and lengths, what was rejected and why, and samples of every kind as a reader would
see them: the sentence with its pictures in place.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from inset_jax.core import page, sheet
from inset_jax.data import image, record
from inset_jax.data.record import Example, Segment
from inset_jax.data.validate import Finding, Validated, shown

WIDTH = 1160  # pixels of the PNG within its margin
EACH = 6  # samples of a kind
REFERENCE, TARGET = 84, 150  # pixels of pictures in a sentence and after it
SIDES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
COLOURS = {
    "vit": sheet.BLUE,
    "vae": sheet.PURPLE,
    "target": sheet.ORANGE,
    "answer": sheet.GREEN,
}
CALLED = {
    "vit": "reference (ViT patches)",
    "vae": "clean latents",
    "target": "target (drawn)",
    "answer": "text that is learned",
}


class Chart(NamedTuple):
    """Bars."""

    title: str
    bins: list[tuple[str, int]]
    colour: sheet.Colour = sheet.BLUE


class Report(NamedTuple):
    """Everything that is shown, before it is drawn."""

    title: str
    lead: str
    tables: dict[str, list[list[str]]]  # heading -> rows, the first one the head
    charts: list[Chart]
    samples: dict[str, list[tuple[str, Example]]]  # kind -> caption and example


def make(validated: Validated, folder: str, each: int = EACH) -> Report:
    """Gathers the report; the samples are read again."""
    good = [own for own in validated.findings if not own.reasons]
    rejects = validated.rejects
    lost = sum(own.shard.count for own in validated.lost)
    lead = f"{len(validated.findings):,} records read, {len(good):,} good, {len(rejects):,} rejects"
    if validated.lost:
        names = ", ".join(own.shard.path.name for own in validated.lost)
        lead += f"; of {len(validated.lost)} shards with {lost:,} records some are lost: {names}"
    found = record.split_path(folder)[0]
    samples = {}
    for kind, chosen in shown(validated, each).items():
        opened = {own.split: record.open_records(found, own.split) for own in chosen}
        samples[kind] = [(_caption(own), opened[own.split][own.number]) for own in chosen]
    tables = {
        "Records": _counts(good),
        "Where they are from": _origins(good),
        "Rejects": _reasons(rejects, "rejects"),
        "Warnings": _reasons(validated.warnings, "warnings"),
    }
    tables = {name: rows for name, rows in tables.items() if len(rows) > 1}
    return Report(f"Records of {folder}", lead, tables, _charts(good), samples)


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes report.html and report.png into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "report.html", folder / "report.png"
    paths[0].write_text(to_html(report), encoding="utf-8")
    to_png(report).save(paths[1], optimize=True)
    return paths


def to_html(report: Report) -> str:
    """Returns the page."""
    sections = [page.Section(name, table=rows) for name, rows in report.tables.items()]
    for chart in report.charts:
        drawn = sheet.bars("", chart.bins, 860, 150, chart.colour)
        sections.append(page.Section(chart.title, picture=_png(drawn)))
    for kind, samples in report.samples.items():
        cards = "\n".join(_card_html(caption, example) for caption, example in samples)
        sections.append(page.Section(f"Samples: {kind}", html=cards))
    return page.render(report.title, report.lead, sections, _STYLE)


def to_png(report: Report) -> Image.Image:
    """Returns the same as one picture."""
    head = lambda text: sheet.word(text, 21)
    parts = [sheet.paragraph(report.title, WIDTH, 27), sheet.paragraph(report.lead, WIDTH, 16)]
    tables = [
        sheet.column([head(name), sheet.table(_short(rows))], 8)
        for name, rows in report.tables.items()
    ]
    parts += [sheet.flow(tables, WIDTH, 60, 24)] if tables else []
    third = (WIDTH - 80) // 3
    charts = [sheet.bars(c.title, c.bins, third, 180, c.colour) for c in report.charts]
    parts += [sheet.flow(charts, WIDTH, 40, 24)] if charts else []
    parts.append(_legend())
    half = (WIDTH - 28) // 2
    for kind, samples in report.samples.items():
        cards = [_card_png(caption, example, half) for caption, example in samples]
        pairs = [sheet.row(cards[n : n + 2], 28, at=0) for n in range(0, len(cards), 2)]
        parts += [head(f"Samples: {kind}"), *pairs]
    return sheet.column(parts, 22, 36)


def _counts(good: Iterable[Finding]) -> list[list[str]]:
    counts: dict[str, Counter] = {}
    pictures: dict[str, Counter] = {}
    for own in good:
        kind = own.kind or "(no kind)"
        counts.setdefault(kind, Counter())[own.split] += 1
        pictures.setdefault(kind, Counter()).update(p.kind for p in own.pictures)
    splits = sorted({split for own in counts.values() for split in own})
    shown = ("vit", "vae", "target")
    rows = [["kind", *splits, *(f"{name} pictures" for name in shown)]]
    for kind in sorted(counts):
        own = [counts[kind][split] for split in splits] + [pictures[kind][n] for n in shown]
        rows.append([kind, *(f"{count:,}" for count in own)])
    return rows


def _origins(good: Iterable[Finding]) -> list[list[str]]:
    found = Counter((own.source or "(none)", own.licence or "(none)") for own in good)
    rows = [[*origin, f"{count:,}"] for origin, count in found.most_common(12)]
    return [["source", "licence", "records"], *rows]


def _reasons(rejects: Sequence, name: str) -> list[list[str]]:
    """Reasons that differ in numbers and names alone are one."""
    alike = lambda reason: re.sub(r"\d+|'[^']*'|\(.*\)|\S*/\S*", "…", reason)
    found: dict[str, list] = {}
    for reject in rejects:
        found.setdefault(alike(reject.reason), []).append(reject)
    most = sorted(found.values(), key=len, reverse=True)[:12]
    rows = [[f"{len(own):,}", own[0].reason, _where(own[0])] for own in most]
    return [[name, "reason (of the first)", "the first"], *rows]


def _where(reject) -> str:
    if reject.record is None:
        return Path(reject.shard).name
    return f"{reject.split}[{reject.record}] {reject.id}"


def _charts(good: Sequence[Finding]) -> list[Chart]:
    charts = []
    for kind in ("vit", "vae", "target"):
        sides = [max(p.width, p.height) for own in good for p in own.pictures if p.kind == kind]
        if sides:
            title = f"Longest side, {CALLED[kind]}, px"
            charts.append(Chart(title, _by_side(sides), COLOURS[kind]))
    names = ("und tokens", "gen tokens", "ViT patches", "learned text tokens")
    measured = [own.tokens for own in good if own.tokens is not None]
    for column, name in enumerate(names):
        values = [own[column] for own in measured]
        if any(values):
            charts.append(Chart(f"{name} of a record", histogram(values), sheet.GREEN))
    return charts


def _by_side(sides: Iterable[int]) -> list[tuple[str, int]]:
    found = Counter(next((n for n, most in enumerate(SIDES) if s <= most), len(SIDES))
                    for s in sides)  # fmt: skip
    names = [f"≤{side}" for side in SIDES] + [f">{SIDES[-1]}"]
    used = [n for n in range(len(names)) if found[n]]
    return [(names[n], found[n]) for n in range(used[0], used[-1] + 1)]


def histogram(values: Sequence[int], bins: int = 16) -> list[tuple[str, int]]:
    """Counts values in bins of one round width, each named by its lower end."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bins))
    unit = 10 ** max(0, len(str(width)) - 1)
    width = -(-width // unit) * unit
    first = low // width
    found = Counter(value // width for value in values)
    return [(f"{n * width:,}", found[n]) for n in range(first, high // width + 1)]


def _caption(own: Finding) -> str:
    tokens = "" if own.tokens is None else f" · {own.tokens[0]} und, {own.tokens[1]} gen tokens"
    facts = " · ".join(filter(None, (own.source, own.licence)))
    return f"{own.split}[{own.number}] {own.id}{tokens}" + (f" · {facts}" if facts else "")


class _Shown(NamedTuple):
    """A part of a card: a text, or a picture and how often in a row it stands there."""

    segment: Segment
    times: int = 1


def _parts(example: Example) -> tuple[list[_Shown], list[_Shown]]:
    """The sentence, and the pictures to be drawn at its end."""
    shown: list[_Shown] = []
    for segment in example.segments:
        before = shown[-1] if shown else None
        if before and segment.kind != "text" and _is_again(before.segment, segment):
            shown[-1] = _Shown(segment, before.times + 1)
        else:
            shown.append(_Shown(segment))
    end = len(shown)
    while end and shown[end - 1].segment.kind == "target":
        end -= 1
    return shown[:end], shown[end:]


def _is_again(one: Segment, other: Segment) -> bool:
    """Whether two segments are the same; latents apart, which one picture has one of."""
    return replace(one, moments=None) == replace(other, moments=None)


def _picture(segment: Segment) -> Image.Image:
    side = TARGET if segment.kind == "target" else REFERENCE
    return sheet.thumbnail(image.load(segment.image), side)


def _card_html(caption: str, example: Example) -> str:
    def part(own: _Shown) -> str:
        segment, text = own.segment, html.escape(own.segment.text)
        if segment.kind == "text":
            return f"<span class=learned>{text}</span>" if segment.loss else text
        drawn = page.image(_picture(segment), f"shown {segment.kind}", CALLED[segment.kind])
        return drawn + (f" ×{own.times}" if own.times > 1 else "")

    sentence, targets = (" ".join(map(part, own)) for own in _parts(example))
    caption = f"<p class=id>{html.escape(caption)}</p>"
    return f"<article><p class=words>{sentence}</p>{targets}{caption}</article>"


def _card_png(caption: str, example: Example, width: int) -> Image.Image:
    def parts(own: _Shown) -> list[Image.Image]:
        if own.segment.kind == "text":
            ink = sheet.GREEN if own.segment.loss else sheet.INK
            return sheet.words(own.segment.text, ink=ink)
        drawn = [sheet.frame(_picture(own.segment), COLOURS[own.segment.kind])]
        return drawn + ([sheet.word(f"×{own.times}", 13, sheet.FAINT)] if own.times > 1 else [])

    inner = width - 26
    lines = [[p for own in line for p in parts(own)] for line in _parts(example)]
    body = [sheet.flow(line, inner) for line in lines if line]
    small = sheet.paragraph(caption, inner, 11, sheet.FAINT)
    return sheet.frame(sheet.wide(sheet.column([*body, small], 8), inner), sheet.LINE, 1, 12)


def _legend() -> Image.Image:
    parts = []
    for kind, colour in COLOURS.items():
        swatch = Image.new("RGB", (15, 15), colour)
        parts.append(sheet.row([swatch, sheet.word(CALLED[kind], 13, sheet.FAINT)], 6))
    return sheet.flow(parts, WIDTH, 24)


def _short(rows: Sequence[Sequence[str]], most: int = 70) -> list[list[str]]:
    return [[cell if len(cell) <= most else cell[: most - 1] + "…" for cell in row] for row in rows]


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _hex(colours: Mapping[str, sheet.Colour]) -> dict[str, str]:
    return {name: "#{:02x}{:02x}{:02x}".format(*own) for name, own in colours.items()}


_STYLE = """
.words {{ font-size: 18px; margin: 0 0 6px; }}
.id {{ font-size: 12px; opacity: .65; margin: 0; }}
.shown {{ vertical-align: middle; border-radius: 5px; margin: 3px; border: 3px solid {vit}; }}
.vae {{ border-color: {vae}; }}
.target {{ border-color: {target}; }}
.learned {{ color: {answer}; }}
""".format(**_hex(COLOURS))
