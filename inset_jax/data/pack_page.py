"""A view of a pack as one HTML page: words can be searched, a token tells its place."""

from __future__ import annotations

import html
import io

import numpy as np
from PIL import Image

from inset_jax.core import page, sheet
from inset_jax.data import pack_picture as pictures
from inset_jax.data.layout import GEN
from inset_jax.data.pack_view import (
    COLOURS,
    NAMES,
    Span,
    View,
    describe,
    lead,
    losses,
    padding,
    token_text,
)

SIDE = 110  # pixels of a picture
WIDE = 860


def to_html(view: View, most: int) -> str:
    """Returns the page; `most` examples are written out."""
    shown = view.examples[:most]
    rest = len(view.examples) - len(shown)
    cards = "\n".join(_card(view, number) for number in range(len(shown)))
    cards += f"<p>and {rest} more</p>" if rest else ""
    streams = sheet.column([pictures.strip(view, 0, WIDE), pictures.strip(view, GEN, WIDE)], 14)
    masks = [pictures.mask_picture(view, np.arange(len(view.kind)), 410)]
    if view.examples:
        masks.append(pictures.mask_picture(view, pictures.shortened(view, 0), 410))
    sections = [
        page.Section("Colours", html=_legend()),
        page.Section(
            "The two streams",
            "Above und (text, markers, ViT patches), below gen (latents). " + padding(view),
            picture=_png(streams),
        ),
        page.Section("Examples", html=cards),
        page.Section(
            "Rotary positions in reading order", picture=_png(pictures.positions(view, WIDE))
        ),
        page.Section(
            "Who sees whom",
            "Row: a query. Column: a key, in its colour where it is seen. Left the pack, right "
            + pictures.FIRST
            + ".",
            picture=_png(sheet.row(masks, 20)),
        ),
        page.Section("Losses", table=losses(view)),
    ]
    return page.render(view.title, lead(view), sections, _STYLE)


def _legend() -> str:
    swatches = (
        f"<span class=swatch><i class=k{code}></i>{name}</span>" for code, name in enumerate(NAMES)
    )
    return f"<p>{''.join(swatches)}</p>"


def _card(view: View, number: int) -> str:
    name, kind, spans = view.examples[number]
    body = "".join(_span(view, span) for span in spans)
    title = html.escape(f"{number} · {name} · {kind or 'no kind'}")
    return f"<article><p class=id>{title}</p><p class=tokens>{body}</p></article>"


def _span(view: View, span: Span) -> str:
    item, told = span.item, html.escape(describe(view, span), quote=True)
    if item.kind == "text" and item.dropped:
        return f'<s title="{told}">{html.escape(view.tokenizer.decode(item.ids))}</s>'
    if item.kind == "text":
        return "".join(_token(view, token) for token in range(span.start, span.end))
    code = {"vit": 3, "clean": 4, "target": 5}[item.kind]
    if item.image is None:
        drawn = "<span class=gone></span>"
    else:
        drawn = page.image(sheet.thumbnail(Image.fromarray(item.image), SIDE), f"b{code}", told)
    tag = "s" if item.dropped else "span"
    return f'<{tag} class=box title="{told}">{drawn}<small>{told}</small></{tag}>'


def _token(view: View, token: int) -> str:
    place = f"position {view.laid.position[0][token]}, und {view.row[token]}"
    text = html.escape(token_text(view, token))
    return f'<span class="token k{view.kind[token]}" title="{place}">{text}</span>'


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _colours() -> str:
    rules = []
    for code, colour in enumerate(COLOURS.tolist()):
        strong = "rgb({}, {}, {})".format(*colour)
        pale = "rgba({}, {}, {}, .25)".format(*colour)
        rules.append(f".token.k{code} {{ background: {pale}; border-bottom: 3px solid {strong}; }}")
        rules.append(f".swatch .k{code} {{ background: {strong}; }}")
        rules.append(f".b{code} {{ border: 4px solid {strong}; }}")
    return "\n".join(rules)


_STYLE = """
.id { font-size: 13px; opacity: .65; margin: 0 0 8px; }
.tokens { line-height: 2.1; margin: 0; }
.token { padding: 1px 3px; margin: 1px; border-radius: 3px 3px 0 0; }
.box { display: inline-block; vertical-align: middle; margin: 4px; text-align: center; }
.box img { display: block; border-radius: 4px; }
.box small { display: block; font-size: 10px; line-height: 1.3; max-width: 130px; opacity: .7; }
.gone { display: inline-block; width: 64px; height: 64px; background: var(--line); }
s { opacity: .45; }
.swatch { margin-right: 18px; white-space: nowrap; }
.swatch i { display: inline-block; width: 14px; height: 14px; margin-right: 6px;
  border-radius: 3px; vertical-align: -2px; }
""" + _colours()
