"""One pack for people: which token is what, where it stands, whom it sees, what it is to learn.

`look` gathers it of a layout and its pack; `data.pack_picture` and `data.pack_page` draw it. The
mask is computed from the intervals of the pack itself, as attention reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.data.pack import GEN, Item, Layout, assemble, layout
from inset_jax.data.text import SPECIAL, Tokenizer

TEXT, LEARNED, MARKER, PATCH, CLEAN, NOISY, NULL, PADDING = range(8)
NAMES = ("text", "text, learned", "marker", "ViT patch", "clean latent", "noisy latent",
         "null token", "padding")  # fmt: skip
COLOURS = np.array(
    [
        (84, 132, 208),
        (62, 160, 88),
        (70, 74, 86),
        (96, 196, 206),
        (150, 108, 196),
        (236, 148, 54),
        (214, 74, 96),
        (232, 233, 237),
    ],
    np.uint8,
)
MARKS = {"text_start": "‹text", "text_end": "text›", "image_start": "‹image", "image_end": "image›"}


class Span(NamedTuple):
    """An item of an example and the tokens that it left, in reading order."""

    item: Item
    start: int
    end: int  # start: it was dropped


class View(NamedTuple):
    """A pack with what its tokens mean."""

    title: str
    laid: Layout
    pack: Pack  # without P
    kind: np.ndarray  # int [token in reading order], index of NAMES
    row: np.ndarray  # int [token], in its stream
    examples: list[tuple[str, str, list[Span]]]  # id, kind, items in order
    tokenizer: Tokenizer
    config: Config


def of(loader, split: str, number: int, config: Config) -> View:
    """Gathers pack `number` of a `data.loader.Loader`'s plan.

    Raises:
      ValueError: a record of it cannot be used.
    """
    items, names = loader.items(number)
    if not names:
        raise ValueError(f"pack {number}: the plan of split {split!r} ends before it")
    laid = layout(items, config.model, [name for name, _ in names])
    reweight = config.loss.cross_entropy_reweighting
    pack = assemble(laid, config.data.capacity, config.model, reweight)
    title = f"Pack {number} of {split}"
    return look(title, items, names, (laid, pack), loader.tokenizer, config)


def look(
    title: str,
    items: Sequence[Sequence[Item]],
    names: Sequence[tuple[str, str]],
    packed: tuple[Layout, Pack],
    tokenizer: Tokenizer,
    config: Config,
) -> View:
    """Gathers a view.

    Args:
      items: of each example, dropped ones included.
      names: id and kind of each.
      packed: the layout of these items, and the pack that `assemble` made of it.
    """
    laid, pack = packed
    is_gen = laid.stream == GEN
    row = np.where(is_gen, np.cumsum(is_gen), np.cumsum(~is_gen)) - 1
    examples, at = [], 0
    for (name, kind), own in zip(names, items, strict=True):
        spans = []
        for item in own:
            length = _length(item, config)
            spans.append(Span(item, at, at + length))
            at += length
        examples.append((name, kind, spans))
    assert at == len(laid.stream), "the items are not those of the layout"
    return View(title, laid, pack, _kinds(laid, config), row, examples, tokenizer, config)


def _length(item: Item, config: Config) -> int:
    if item.dropped:
        return int(config.model.null_token)
    return (len(item.ids) if item.kind == "text" else item.size[0] * item.size[1]) + 2


def _kinds(laid: Layout, config: Config) -> np.ndarray:
    kind = np.full(len(laid.stream), TEXT)
    kind[laid.ce_index] = LEARNED
    kind[np.isin(laid.id, [getattr(config.model.tokens, name) for name in SPECIAL])] = MARKER
    kind[laid.is_patch] = PATCH
    kind[laid.stream == GEN] = CLEAN
    kind[laid.flow_index] = NOISY
    kind[laid.id < -1] = NULL
    return kind


def fill(view: View) -> dict[str, tuple[int, int]]:
    """Returns what is used of each capacity, and the capacity."""
    capacity, laid = view.config.data.capacity, view.laid
    gen = int((laid.stream == GEN).sum())
    used = {
        "und": len(laid.stream) - gen,
        "gen": gen,
        "vit": int(laid.is_patch.sum()),
        "cross_entropy": len(laid.ce_index),
        "examples": len(view.examples),
    }
    return {name: (count, getattr(capacity, name)) for name, count in used.items()}


def timestep(view: View, item: Item) -> float:
    """The share of noise in a target."""
    shift = view.config.loss.timestep_shift
    t = 1 / (1 + np.exp(-item.timestep))
    return float(shift * t / (1 + (shift - 1) * t))


def token_text(view: View, token: int) -> str:
    """Returns how a token of the und stream is written."""
    number = int(view.laid.id[token])
    for name, mark in MARKS.items():
        if number == getattr(view.config.model.tokens, name):
            return mark
    return id_text(view, number) if number >= 0 else "null"


def id_text(view: View, number: int) -> str:
    for name, mark in MARKS.items():
        if number == getattr(view.config.model.tokens, name):
            return mark
    return view.tokenizer.decode([number]).replace(" ", "·").replace("\n", "¶") or f"#{number}"


def describe(view: View, span: Span) -> str:
    """One line about an item: what it is, where it stands."""
    item, laid = span.item, view.laid
    what = {"vit": "ViT", "clean": "clean", "target": "target"}.get(item.kind, "text")
    if item.size:
        what += f" {item.size[0]}×{item.size[1]}"
    if item.dropped:
        return f"{what}: dropped" + ("" if item.kind == "text" else ", keeps its position")
    positions = laid.position[0][span.start : span.end]
    low, high = int(positions.min()), int(positions.max())
    where = f"position {low}" + (f"–{high}" if high > low else "")
    if item.kind == "target":
        return f"{what} · {where} · t {timestep(view, item):.2f}"
    return f"{what} · {where}"


def mask(view: View, tokens: np.ndarray) -> np.ndarray:
    """Who sees whom among some tokens in reading order: bool [query, key]."""
    laid, pack, row = view.laid, view.pack, view.row[tokens]
    is_gen = laid.stream[tokens] == GEN
    key = np.where(is_gen, len(pack.und_token) + row, row)
    seen = np.zeros((len(tokens), len(tokens)), bool)
    for stream, queries in (("und", ~is_gen), ("gen", is_gen)):
        low, high = (np.asarray(side)[key] for side in pack.visibility[stream])
        own = row[queries][:, None]
        seen[queries] = (low <= own) & (own < high)
    return seen


def losses(view: View) -> list[list[str]]:
    """A table: what each example is to learn."""
    pack, laid = view.pack, view.laid
    rows = [["example", "next-token targets", "their weight", "noisy latents", "share of noise",
             "the first targets"]]  # fmt: skip
    for number, (name, _, spans) in enumerate(view.examples):
        own = np.asarray(pack.ce_example) == number
        flow = np.asarray(pack.gen_example) == number
        noisy = np.asarray(pack.gen_weight)[flow]
        targets = [span.item for span in spans if span.item.kind == "target"]
        shares = ", ".join(f"{timestep(view, item):.2f}" for item in targets)
        mine = np.flatnonzero(laid.example[laid.ce_index] == number)[:4]
        pairs = [
            f"{token_text(view, laid.ce_index[n])} → {id_text(view, int(laid.ce_label[n]))}"
            for n in mine
        ]
        weight = np.asarray(pack.ce_weight)[own].sum()
        cells = [f"{own.sum()}", f"{weight:.4g}", f"{int((noisy > 0).sum())}", shares or "–"]
        rows.append([name, *cells, ", ".join(pairs) or "–"])
    return rows


def padding(view: View) -> str:
    """A sentence about the padding, as it is found in the pack."""
    pack = view.pack
    is_padding = np.concatenate([pack.und_example, pack.gen_example]) < 0
    widths = [
        (np.asarray(v.high) - np.asarray(v.low))[is_padding] for v in pack.visibility.values()
    ]
    seen = sum(int((own > 0).sum()) for own in widths)
    return (
        f"{int(is_padding.sum())} slots of padding; {seen or 'none'} of them "
        f"{'are' if seen else 'is'} seen by any token."
    )


def lead(view: View) -> str:
    """One line about the whole."""
    parts = [f"{used:,} of {most:,} {name}" for name, (used, most) in fill(view).items()]
    return " · ".join(parts)
