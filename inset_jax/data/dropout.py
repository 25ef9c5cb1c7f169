"""Condition dropout: which segments of an example vanish, so that guidance has its branches.

First one draw an example (all texts, all images, or both), then one a segment, as BAGEL does.
BAGEL's own rule is `example_* = 0`: in a sentence of n texts all of them then vanish with
probability p^n only.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Draws which segments are dropped: bool [segment].

    Args:
      code: int [segment], from `codes`.
      opens: bool [segment]; a frame that continues a video goes with its first frame.
      name: the example's id.
    """
    segment_chance = np.array([0, config.segment_text, config.segment_vit, config.segment_vae])
    ends = np.cumsum([config.example_both, config.example_text, config.example_images])
    if not segment_chance.any() and not ends[-1]:
        return np.zeros(len(code), bool)
    random = keyed("dropout", seed, name, epoch).random(len(code) + 1)
    whole = np.searchsorted(ends, random[0], side="right")  # 0 both, 1 text, 2 images, 3 nothing
    is_image = code >= VIT
    gone = [code != NEVER, code == TEXT, is_image, np.zeros(len(code), bool)][whole]
    own = random[1:] < segment_chance[code]
    opener = np.maximum.accumulate(np.where(opens, np.arange(len(code)), 0))
    return gone | own[opener]
