"""Condition dropout: which segments of an example vanish, so that guidance has its branches.

First one draw an example (all texts, all images, or both), then one a segment, as BAGEL does.
BAGEL's own rule is `example_* = 0`: in a sentence of n texts all of them then vanish with
probability p^n only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from inset_jax.core.config import DropoutConfig
from inset_jax.data.keyed import keyed

NEVER, TEXT, VIT, VAE = range(4)  # what a segment is to condition dropout


def codes(segments: Sequence) -> np.ndarray:
    """Returns the code of each segment (data.record.Segment) of an example: int8 [segment].

    Conditions of a drawing may drop: texts and images without loss. Where nothing is drawn there is
    no guidance, so nothing drops.
    """
    if not any(segment.kind == "target" for segment in segments):
        return np.zeros(len(segments), np.int8)
    code = {"text": TEXT, "vit": VIT, "vae": VAE, "target": NEVER}
    return np.array([NEVER if s.loss else code[s.kind] for s in segments], np.int8)


def draw(
    code: np.ndarray, opens: np.ndarray, config: DropoutConfig, seed: int, name: str, epoch: int
) -> np.ndarray:
    """Draws which segments of one example are dropped: bool [segment]; see `draw_many`."""
    return draw_many(code, opens, np.array([0, len(code)]), config, seed, [(name, epoch)])


def draw_many(
    code: np.ndarray,
    opens: np.ndarray,
    start: np.ndarray,
    config: DropoutConfig,
    seed: int,
    names: Iterable[tuple[str, int]],
) -> np.ndarray:
    """Draws which segments are dropped: bool [segment].

    Args:
      code: int [segment], from `codes`.
      opens: bool [segment]; a frame that continues a video goes with its first frame.
      start: int [example + 1], where the segments of each example begin.
      names: each example's id and epoch, on which alone its draw depends.
    """
    segment_chance, ends = _chances(config)
    if not segment_chance.any() and not ends[-1]:
        return np.zeros(len(code), bool)
    count = np.diff(start)
    draws = [  # one for the example, then one a segment
        keyed("dropout", seed, name, epoch).random(own + 1)
        for (name, epoch), own in zip(names, count, strict=True)
    ]
    drawn = np.concatenate([np.zeros(0), *draws])
    first = start[:-1] + np.arange(len(count))
    whole = np.searchsorted(ends, drawn[first], side="right")  # 0 both, 1 text, 2 images, 3 nothing
    mode = np.repeat(whole, count)
    gone = (code != NEVER) & (
        (mode == 0) | (mode == 1) & (code == TEXT) | (mode == 2) & (code >= VIT)
    )
    is_own = np.ones(len(drawn), bool)
    is_own[first] = False
    own = drawn[is_own] < segment_chance[code]
    opener = np.where(opens, np.arange(len(code)), 0)
    opener[start[:-1]] = start[:-1]
    return gone | own[np.maximum.accumulate(opener)]


@functools.cache
def _chances(config: DropoutConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chance of each code, and where both, text and images of the example end."""
    segment = np.array([0, config.segment_text, config.segment_vit, config.segment_vae])
    return segment, np.cumsum([config.example_both, config.example_text, config.example_images])
