"""One sentence drawn many times: over alpha and beta, over seeds, over the number of timesteps."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from inset_jax.core import page
from inset_jax.core.config import SampleConfig

if TYPE_CHECKING:
    from inset_jax.evaluate.held_out import Sentence
    from inset_jax.sample.api import Generator

ALPHAS = (0.0, 1.0, 2.0, 4.0)
BETAS = (1.0, 2.0, 4.0)
SEEDS = 6
TIMESTEPS = (2, 4, 8, 16, 25, 50)


class Strips(NamedTuple):
    """The drawings of one sentence."""

    sentence: Sentence
    settings: SampleConfig  # what everything but the varied setting is
    scales: dict[tuple[float, float], Image.Image]  # by alpha and beta, from the same noise
    seeds: list[Image.Image]
    timesteps: dict[int, Image.Image]  # from the same noise


def draw(generator: Generator, sentence: Sentence) -> Strips:
    """Draws one sentence in all ways, in as few runs as there are numbers of timesteps.

    The settings of the checkpoint are always among those that are varied.

    Raises:
      ValueError: the model cannot draw the sentence, as `Generator.draw_all` says.
    """
    from inset_jax.evaluate import held_out
    from inset_jax.sample.plan import Picture
    from inset_jax.sample.prompt import start_noise

    prompt = held_out.prompt(sentence, sentence.pieces)
    request, settings = generator.request(prompt)
    own = request.scales
    pairs = [
        (alpha, beta) for alpha in sorted({*ALPHAS, own[0]}) for beta in sorted({*BETAS, own[1]})
    ]
    (first,) = request.pictures
    noise = lambda seed: start_noise(seed, math.prod(first.size), generator.config.model)
    seeds = tuple(Picture(first.size, noise(seed)) for seed in range(SEEDS))
    counts = sorted({*TIMESTEPS, settings.num_timesteps})
    asked = [
        *((request._replace(scales=pair), settings) for pair in pairs),
        (request._replace(pictures=seeds), settings),
        *((request, dataclasses.replace(settings, num_timesteps=count)) for count in counts),
    ]
    drawn = generator.draw_requests(asked)
    single = [pictures[0] for pictures in drawn]
    return Strips(
        sentence,
        settings,
        dict(zip(pairs, single)),
        drawn[len(pairs)],
        dict(zip(counts, single[len(pairs) + 1 :], strict=True)),
    )


def section(strips: Strips) -> page.Section:
    """The strips as a section of the page; its CSS is STYLE."""
    settings = strips.settings
    alphas = list(dict.fromkeys(alpha for alpha, _ in strips.scales))
    betas = list(dict.fromkeys(beta for _, beta in strips.scales))
    usual = (settings.alpha, settings.beta)
    rows = [
        (f"α {alpha:g}", [_tile(strips.scales[alpha, beta], "", (alpha, beta) == usual)
                          for beta in betas])
        for alpha in alphas
    ]  # fmt: skip
    seeds = [_tile(one, f"seed {number}") for number, one in enumerate(strips.seeds)]
    steps = [
        _tile(one, f"{count - 1} step{'s' * (count > 2)}", count == settings.num_timesteps)
        for count, one in strips.timesteps.items()
    ]
    target = _tile(strips.sentence.target, "target")
    body = (
        f"{page.sentence(strips.sentence.pieces)}<div class=sides>"
        f"<div><h3>Guidance: α (text) down, β (sentence) across</h3>"
        f"{_grid([f'β {beta:g}' for beta in betas], rows)}</div>"
        f"<div><h3>Seeds</h3><div class=tiles>{''.join(seeds)}</div>"
        f"<h3>Steps from noise to picture</h3><div class=tiles>{''.join(steps)}</div>"
        f"<h3>What was asked for</h3>{target}</div></div>"
    )
    return page.Section(
        "One sentence, many drawings",
        "α weighs the words against the pictures alone, β the whole sentence against none: at α 0 "
        "the words are gone and the pictures stay, at 1 nothing is weighed up or down. "
        "Every drawing but those of the other seeds starts from the same noise; the outlined ones "
        "have the settings that the model is used with.",
        html=f"<article>{body}</article>",
    )


def _tile(picture: Image.Image, caption: str, usual: bool = False) -> str:
    css = "'tile usual'" if usual else "tile"
    shown = page.image(picture, css, caption or "drawing")
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{shown}{under}</figure>"


def _grid(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{tile}</td>' for tile in own)}</tr>"
        for name, own in rows
    )
    return f"<table class=grid><tr><th></th>{cells}</tr>{lines}</table>"


STYLE = """
h3 { font-size: 14px; margin: 14px 0 6px; opacity: .75; }
.sides { display: flex; flex-wrap: wrap; gap: 8px 32px; }
.sides > div { flex: 1 1 360px; }
.tiles { display: flex; flex-wrap: wrap; gap: 8px; }
.tile { width: 84px; height: auto; display: block; border-radius: 6px;
  image-rendering: pixelated; }
.tiles .tile { width: 70px; }
.usual { outline: 3px solid var(--accent); outline-offset: 1px; }
.grid { margin: 0; }
.grid th, .grid td { border: 0; padding: 3px 6px 3px 0; font-size: 13px; }
"""
