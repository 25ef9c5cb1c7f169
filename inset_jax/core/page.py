"""One self-contained HTML page: tables, pictures, sentences with their pictures in place."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

MAGNIFIED = 160  # pixels of a drawing on the page; small pictures keep sharp pixels


class Row(NamedTuple):
    """One sentence and what became of it."""

    pieces: Sequence[str | Image.Image]  # the sentence in reading order
    pictures: Mapping[str, Image.Image]  # caption -> picture, in the order they are shown


class Section(NamedTuple):
    """A part of the page with a heading; each of its contents may be absent."""

    title: str
    text: str = ""  # one paragraph
    facts: Mapping[str, str] = {}  # a table of two columns
    table: Sequence[Sequence[str]] = ()  # the first row is the head
    picture: bytes = b""  # a PNG as wide as the page
    rows: Sequence[Row] = ()
    html: str = ""  # as it is: what people wrote is escaped in it


def render(title: str, lead: str, sections: Sequence[Section], style: str = "") -> str:
    """Returns the page: no script, no file beside it, readable in light and dark.

    Args:
      style: CSS of what stands in `Section.html`.
    """
    body = "\n".join(_section(section) for section in sections)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}{style}</style></head>\n<body><main>\n"
        f"<h1>{html.escape(title)}</h1>\n<p class=lead>{html.escape(lead)}</p>\n{body}\n"
        "</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.facts:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in section.facts.items()
        )
        parts.append(f"<table class=facts>{cells}</table>")
    if section.table:
        parts.append(_table(section.table))
    if section.picture:
        data = base64.b64encode(section.picture).decode()
        alt = html.escape(section.title, quote=True)
        parts.append(f'<img class=wide alt="{alt}" src="data:image/png;base64,{data}">')
    parts += [card(row) for row in section.rows]
    if section.html:
        parts.append(section.html)
    return "\n".join([*parts, "</section>"])


def _table(table: Sequence[Sequence[str]]) -> str:
    line = lambda tag, row: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    head, *rest = table
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rest)
    return f"<div class=scroll><table><tr>{line('th', head)}</tr>{body}</table></div>"


def card(row: Row) -> str:
    """Returns a box with a sentence and its pictures."""
    figures = "".join(
        f"<figure>{image(picture, 'drawing', caption)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in row.pictures.items()
    )
    return f"<article>{sentence(row.pieces)}<div class=strip>{figures}</div></article>"


def sentence(pieces: Sequence[str | Image.Image]) -> str:
    """Returns a paragraph: texts and pictures in reading order."""
    parts = (
        html.escape(piece) if isinstance(piece, str) else image(piece, "inline", "reference")
        for piece in pieces
    )
    return f"<p class=sentence>{''.join(parts)}</p>"


def image(picture: Image.Image, css: str, alt: str) -> str:
    """Returns an <img> that holds a picture."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    alt = html.escape(alt, quote=True)
    return f'<img class={css} alt="{alt}" src="data:image/png;base64,{data}">'


_STYLE = f"""
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #f0147a; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; }}
main {{ max-width: 900px; margin: 0 auto; padding: 32px 20px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0 0 8px; }}
h2 {{ font-size: 20px; margin: 40px 0 8px; }}
.lead {{ font-size: 18px; opacity: .8; margin-top: 0; }}
table {{ border-collapse: collapse; margin: 12px 0; }}
th, td {{ text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line);
  font-weight: normal; font-variant-numeric: tabular-nums; }}
th {{ opacity: .7; }}
.scroll {{ overflow-x: auto; }}
article {{ border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; margin: 14px 0;
  background: var(--soft); }}
.sentence {{ font-size: 20px; margin: 0 0 12px; }}
.inline {{ height: 48px; width: auto; border-radius: 6px; vertical-align: middle;
  margin: 2px 4px; }}
.strip {{ display: flex; flex-wrap: wrap; gap: 14px; }}
figure {{ margin: 0; }}
figcaption {{ font-size: 13px; opacity: .75; }}
.drawing {{ width: {MAGNIFIED}px; height: auto; border-radius: 6px; display: block;
  image-rendering: pixelated; }}
.wide {{ max-width: 100%; border-radius: 8px; }}
"""
