"""What the tokens of a drawing attend to, drawn over the sentence and its pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from inset_jax.core import page

if TYPE_CHECKING:
    from inset_jax.engine.world import Scene
    from inset_jax.sample.api import Generator

FULLEST = 0.65  # opacity of the largest share
GROUND = "the rest"

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Read(NamedTuple):
    """The share of attention that one region of a drawing pays to each part of the sentence."""

    box: Box | None  # None: what no object covers
    shares: list[np.ndarray]  # of each item: [token], or [row, column] of a picture
    itself: float  # to the drawing's own tokens


class Where(NamedTuple):
    """When and where attention was read; numbers count from 1."""

    t: float
    evaluation: int
    layer: int


class Look(NamedTuple):
    """One sentence, its drawing and what each region of it attended to."""

    pieces: list[list[str] | Image.Image]  # of each item: its word pieces, or its picture
    drawing: Image.Image
    where: Where
    regions: dict[str, Read]  # name -> shares; names are nouns of the objects


def look(generator: Generator, scene: Scene) -> Look:
    """Draws a scene's sentence and reads attention halfway, averaged over heads.

    The layer is the one whose attention to the pictures in the sentence is the largest.

    Raises:
      ValueError: the model cannot draw the sentence, as `Generator.draw_all` says.
    """
    from inset_jax.data.layout import item_size
    from inset_jax.evaluate import held_out
    from inset_jax.sample import attention, trace
    from tools import judging

    sentence, model = judging.sentence(scene), generator.config.model
    request, settings = generator.request(held_out.prompt(sentence, sentence.pieces))
    drawn = trace.draw(generator.sampler, request, settings)
    step = len(drawn.t) // 2
    t = float(drawn.t[step])
    seen = attention.attended(generator.sampler, request, drawn.state[step], t)
    weights = seen.weight.mean(1)  # [layer, latent token, token]
    spans = [s for s, item in zip(seen.spans, request.items, strict=True) if item.kind != "text"]
    layer = int(np.argmax(sum(weights[..., span].sum((1, 2)) for span in spans))) if spans else 0
    pieces, shapes = [], []
    for item in request.items:
        if item.kind == "text":
            pieces.append([generator.tokenizer.decode([number]) for number in item.ids])
            shapes.append((len(item.ids),))
        else:
            pieces.append(_shown(item))
            shapes.append(item_size(item, model))
    (picture,) = request.pictures
    regions = {}
    for name, (box, inside) in shares_of_regions(scene, picture.size, model.latent_stride).items():
        paid = inside.ravel() @ weights[layer] / max(inside.sum(), 1e-9)
        shares = [paid[span].reshape(shape) for span, shape in zip(seen.spans, shapes)]
        regions[name] = Read(box, shares, float(paid[seen.picture].sum()))
    where = Where(t, step + 1, layer + 1)
    return Look(pieces, Image.fromarray(drawn.image), where, regions)


def shares_of_regions(
    scene: Scene, size: tuple[int, int], stride: int
) -> dict[str, tuple[Box | None, np.ndarray]]:
    """Of each object of a scene, and of the rest, where it stands.

    Returns:
      by noun (with a number from the second of a kind on): its box, and the share of each latent
      token's cell that the box covers, float [row, column].
    """
    regions: dict[str, tuple[Box | None, np.ndarray]] = {}
    for place in scene.places:
        left, top = place.x - place.side // 2, place.y - place.side // 2
        box = (left, top, left + place.side, top + place.side)
        across, down = (
            _overlaps(count, stride, low, high)
            for count, low, high in ((size[1], box[0], box[2]), (size[0], box[1], box[3]))
        )
        inside = np.outer(down, across)
        noun = scene.things[place.thing].noun
        copies = sum(name.split(" #")[0] == noun for name in regions)
        regions[f"{noun} #{copies + 1}" if copies else noun] = (box, inside)
    covered = np.max([inside for _, inside in regions.values()], axis=0)
    return {**regions, GROUND: (None, 1 - covered)}


def _overlaps(count: int, stride: int, low: int, high: int) -> np.ndarray:
    """The share of each of `count` cells in a row that lies in [low, high): float [count]."""
    start = stride * np.arange(count)
    return np.clip(np.minimum(start + stride, high) - np.maximum(start, low), 0, None) / stride


def _shown(item) -> Image.Image:
    """The picture of an item as the model reads it."""
    pixels = item.image
    if pixels.dtype != np.uint8:
        pixels = np.clip((pixels + 1) * 127.5, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def section(looks: Sequence[Look]) -> page.Section:
    """The looks as a section of the page; its CSS is STYLE."""
    return page.Section(
        "What the drawing looks at",
        "The tokens in the outlined part of a drawing share their attention among the words and "
        "the patches of the pictures in the sentence: the stronger the colour, the larger the "
        "share; in each line words have one scale and patches another, and the sums stand below. "
        "Patches in one even colour are looked at all alike. Read halfway from noise to picture, "
        "in the layer that looks at the pictures most, as the mean over its heads.",
        html="".join(_article(own) for own in looks),
    )


def _article(own: Look) -> str:
    lines = "".join(_line(own, name, read) for name, read in own.regions.items())
    where = f"Layer {own.where.layer}, evaluation {own.where.evaluation}, t = {own.where.t:.2f}."
    return f"<article>{lines}<p class=told>{where}</p></article>"


def _line(own: Look, name: str, read: Read) -> str:
    # apart: the end of a sentence draws more attention than any single patch, whatever is drawn
    most = {True: 1e-9, False: 1e-9}
    for share in read.shares:
        most[share.ndim == 1] = max(most[share.ndim == 1], float(share.max()))
    parts = []
    for piece, share in zip(own.pieces, read.shares, strict=True):
        scaled = share / most[share.ndim == 1]
        if isinstance(piece, list):
            parts += [_word(word, value) for word, value in zip(piece, scaled, strict=True)]
        else:
            parts.append(_heat(piece, scaled))
    box = "" if read.box is None else _outline(read.box, own.drawing)
    shown = page.image(own.drawing, "drawing", "drawing")
    return (
        f"<div class=look><figure><span class=seen>{shown}{box}</span>"
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        f"<div><p class=sentence>{''.join(parts)}</p>"
        f"<p class=told>{_told(own, read)}</p></div></div>"
    )


def _told(own: Look, read: Read) -> str:
    """Sums: of the words, of each picture, of the drawing itself."""
    pictures = [
        f"{share.sum():.0%}"
        for piece, share in zip(own.pieces, read.shares, strict=True)
        if not isinstance(piece, list)
    ]
    words = sum(
        s.sum() for p, s in zip(own.pieces, read.shares, strict=True) if isinstance(p, list)
    )
    named = " and ".join(pictures) if pictures else "nothing"
    return f"words {words:.0%}, pictures {named}, the drawing itself {read.itself:.0%}"


def _word(word: str, share: float) -> str:
    return f'<span class=piece style="--share:{FULLEST * share:.0%}">{html.escape(word)}</span>'


def _heat(picture: Image.Image, share: np.ndarray) -> str:
    """A picture, and the same with a colour over each patch."""
    cells = "".join(f'<i style="opacity:{FULLEST * value:.2f}"></i>' for value in share.flat)
    columns = f"grid-template-columns:repeat({share.shape[1]},1fr)"
    plain = page.image(picture, "heated", "reference")
    return (
        f'<span class=pair>{plain}<span class=seen>{plain}<span class=heat style="{columns}">'
        f"{cells}</span></span></span>"
    )


def _outline(box: Box, drawing: Image.Image) -> str:
    """A frame around a part of a drawing."""
    left, top, right, bottom = (
        100 * min(max(side, 0), length) / length
        for side, length in zip(box, drawing.size * 2, strict=True)
    )
    return (
        f'<b style="left:{left:.1f}%;top:{top:.1f}%;width:{right - left:.1f}%;'
        f'height:{bottom - top:.1f}%"></b>'
    )


STYLE = """
.look { display: flex; gap: 18px; align-items: center; margin: 10px 0; }
.look .drawing { width: 120px; }
.look .sentence { line-height: 2.1; margin: 0; }
.told { font-size: 13px; opacity: .75; margin: 4px 0 0; }
.seen { position: relative; display: inline-block; vertical-align: middle; }
.seen b { position: absolute; box-sizing: border-box; border: 3px solid var(--accent);
  border-radius: 4px; box-shadow: 0 0 0 1px #fff; }
.piece { background: color-mix(in srgb, var(--accent) var(--share), transparent);
  border-radius: 4px; padding: 2px 0; white-space: pre-wrap; }
.pair { display: inline-flex; gap: 3px; vertical-align: middle; margin: 2px 6px; }
.heated { height: 56px; width: auto; display: block; border-radius: 6px;
  image-rendering: pixelated; }
.heat { position: absolute; inset: 0; display: grid; border-radius: 6px; overflow: hidden; }
.heat i { background: var(--accent); }
@media (max-width: 600px) { .look { flex-direction: column; align-items: flex-start; } }
"""
