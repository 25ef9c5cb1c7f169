"""Measured tables for people: figures with bars behind them, intervals beside them."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping, Sequence

from inset_jax.core import page
from inset_jax.engine.judge import chance
from inset_jax.evaluate import table
from inset_jax.evaluate.held_out import AS_WRITTEN
from inset_jax.evaluate.table import Estimate, Row


def section(path: pathlib.Path) -> page.Section:
    """The table that tools.judge wrote, as a section of the page; its CSS is STYLE.

    Raises:
      ValueError: not such a file.
    """
    try:
        told = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        rows = table.from_json(told["rows"])
        sentences, seeds, candidates = (told[n] for n in ("sentences", "seeds", "candidates"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a table of tools.judge: {error!r}") from error
    left_out = "".join(
        f" Left out: {row}, {reason}." for row, reason in told.get("left_out", {}).items()
    )
    return page.Section(
        "What the shipped model's drawings are worth",
        f"Measured at length: {sentences} sentences of each kind, each drawn from {seeds} seeds, "
        f"objects never seen in training. Identity: at its place, the right one of {candidates} "
        "objects explains the drawing best, pixel by pixel; sharp identity does not forgive blur. "
        "Relation: for each two objects, half by chance; where one stands in front of the other, "
        "their places and what hides what, a quarter. "
        "In brackets 95% intervals. Below the line the controls: what remains when the pictures "
        "in a sentence are taken away or exchanged, another sentence's target stands in for the "
        f"drawing, or the weights are random.{left_out}",
        html=lines(rows, chance(candidates)),
    )


def lines(rows: Sequence[Row], chance: Mapping[str, float | None]) -> str:
    """A table as HTML: what was drawn as written, then the controls, then what chance gives.

    Args:
      chance: by column, in the order in which they are shown; columns without a value are left out.
    """
    columns = [n for n in (*chance, table.PSNR) if any(n in row.columns for row in rows)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("sentences", "drawn", *columns))
    plain = [row for row in rows if row.condition.startswith(AS_WRITTEN)]  # also before training on
    others = [row for row in rows if row not in plain]
    shares = [chance.get(name) for name in columns]
    told = "".join(f"<td>{'' if share is None else f'{share:.1%}'}</td>" for share in shares)
    return (
        f"<div class=scroll><table class=figures><tr>{head}</tr>"
        f"{''.join(_line(row, columns) for row in plain)}"
        f"<tbody class=controls>{''.join(_line(row, columns) for row in others)}"
        f"<tr><td></td><td>chance</td>{told}</tr></tbody></table></div>"
    )


def _line(row: Row, columns: Sequence[str]) -> str:
    cells = "".join(_cell(row.columns.get(name), name == table.PSNR) for name in columns)
    return f"<tr><td>{html.escape(row.name)}</td><td>{html.escape(row.condition)}</td>{cells}</tr>"


def _cell(found: Estimate | None, decibels: bool) -> str:
    if found is None:
        return "<td></td>"
    value, _, interval = table.spell(found, decibels).partition(" (")
    text = f"{value} <small>({html.escape(interval)}</small>"
    if decibels:
        return f"<td>{text}</td>"
    return f'<td class=share style="--share:{found.mean:.1%}">{text}</td>'


STYLE = """
.figures { font-size: 14px; }
.figures td, .figures th { padding: 4px 12px 4px 6px; white-space: nowrap; }
.figures small { opacity: .65; }
.share { background: linear-gradient(90deg, color-mix(in srgb, var(--accent) 32%, transparent)
  var(--share), transparent var(--share)); }
.controls { border-top: 3px double var(--line); }
"""
