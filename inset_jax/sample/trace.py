"""Drawings and texts with everything in between, for comparison with another implementation.

Inputs are what such a comparison stores: items with normalised pictures, all noise given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Kept
from inset_jax.core.config import SampleConfig
from inset_jax.data.layout import Item
from inset_jax.sample import cache, guidance
from inset_jax.sample.plan import Request, plan
from inset_jax.sample.sampler import Now, Sampler


class Trace(NamedTuple):
    """One picture's way from noise to pixels."""

    t: np.ndarray  # float32 [evaluation]
    state: np.ndarray  # float32 [evaluation, tokens, L], what each evaluation read
    velocity: np.ndarray  # float32 [evaluation, tokens, L], after guidance
    latent: np.ndarray  # float32 [tokens, L], the last state
    image: np.ndarray  # uint8 [H, W, 3]


class Words(NamedTuple):
    """A greedy text."""

    token: np.ndarray  # int32 [step], predicted
    logits: np.ndarray  # float32 [step, vocab]
    hidden: np.ndarray  # [step, M], after the final norm


def clean_item(sampler: Sampler, image: np.ndarray, noise: np.ndarray | None) -> Item:
    """A clean VAE copy of a picture: float32 [H, W, 3] in [-1, 1], posterior noise [h, w, c]."""
    stride = sampler.config.latent_stride
    size = (image.shape[0] // stride, image.shape[1] // stride)
    return Item("clean", size=size, latent=sampler.encode(image, noise))


def kept(sampler: Sampler, contexts: Sequence[Sequence[Item]]) -> list[Kept]:
    """Keys (normed, rotated) and values of contexts computed together, in reading order.

    Returns:
      of each context, float32 [layer, token, N, D].
    """
    pack, _ = cache.still_pack([contexts], sampler.config)
    return cache.in_reading_order(sampler.keep(pack), [contexts], sampler.config)[0]


def draw(sampler: Sampler, request: Request, settings: SampleConfig) -> Trace:
    """Draws the one picture of a request and remembers every evaluation."""
    (picture,) = request.pictures
    rows = slice(len(picture.noise))
    moments: list[tuple] = []
    watch = lambda moment: moments.append((moment.t, *map(np.asarray, moment[3:])))
    (latent,) = sampler.draw([request], settings, watch).latents
    t, state, velocity = (np.stack(column) for column in zip(*moments, strict=True))
    return Trace(
        t.astype(np.float32),
        state[:, 0, rows],
        velocity[:, 0, rows],
        latent,
        sampler.decode(latent, picture.size),
    )


def velocities(
    sampler: Sampler, request: Request, settings: SampleConfig, drawn: Trace
) -> np.ndarray:
    """What a model predicts where the drawing of another one passes.

    Args:
      drawn: the other's drawing of the same request with the same settings.

    Returns:
      float32 [evaluation, tokens, L], after guidance.
    """
    laid = plan([request], settings.guidance, sampler.config)
    kept, rows = sampler.keep(laid.still), drawn.state.shape[1]
    found = []
    for t, state in zip(drawn.t, drawn.state, strict=True):
        arrays = laid.guided if guidance.acts_at(settings, t) else laid.plain
        padded = np.zeros_like(laid.state)
        padded[0, :rows] = state
        now = Now(t, np.float32(0), np.float32(settings.renorm_min))
        model = sampler.params["model"]
        found.append(sampler.programs.step(model, kept, arrays, padded, now, settings.renorm)[1])
    return np.stack([np.asarray(v)[0, :rows] for v in found])


def write(sampler: Sampler, items: Sequence[Item], steps: int) -> Words:
    """Continues a context greedily by `steps` tokens, past its end, and remembers all."""
    words: list[tuple] = []
    watch = lambda word: words.append(
        (word.token[0, 0], np.asarray(word.logits)[0, 0], np.asarray(word.hidden)[0, 0])
    )
    sampler.write([items], steps, watch=watch, to_the_limit=True)
    return Words(*(np.stack(column) for column in zip(*words, strict=True)))
