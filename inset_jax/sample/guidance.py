"""Guidance: formulas and named data, nothing else.

Every guidance here is one function of three velocities, the conditional `v` and two branches that
saw less, `a` and `b`:

    v1 = a + s1 (v  - a)      optionally renormalised to |v| ("text_channel")
    v2 = b + s2 (v1 - b)      optionally renormalised to |v| ("global", "channel")

INSET (section 3.3): a is the visual-only branch, b the null branch, s1 = alpha, s2 = beta. BAGEL
(inferencer): a lacks the last text, b lacks the images, s1 is its text scale, s2 its image scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inset_jax.core.config import SampleConfig

RENORMS = ("none", "global", "channel", "text_channel")
NORM_EPS = 1e-8

# The roles a piece of a sentence can have: "text", "plan" (text that the model wrote before
# drawing), "vit", "clean". Each branch says which pieces stay; what is removed leaves no position.
BRANCHES: dict[str, Callable[[Sequence[str]], list[bool]]] = {
    "full": lambda roles: [True for _ in roles],
    "visual": lambda roles: [role in ("vit", "clean") for role in roles],
    "null": lambda roles: [False for _ in roles],
    "text": lambda roles: [role == "text" for role in roles],
    "without_last_text": lambda roles: [  # BAGEL: nothing goes if an image comes after that text
        role != "plan" and not (role == "text" and set(roles[i + 1 :]) <= {"plan"})
        for i, role in enumerate(roles)
    ],
}


class Mode(NamedTuple):
    """One guidance: which branches its stages start from, and when a stage acts."""

    first: str  # a name in BRANCHES
    second: str
    acts: Callable[[float, float], tuple[bool, bool]]  # (s1, s2) -> does each stage do anything


MODES: dict[str, Mode] = {
    # both stages whatever the scales; a scale of exactly 1 is the identity and costs no branch
    "inset": Mode("visual", "null", lambda s1, s2: (s1 != 1, s2 != 1)),
    # BAGEL returns v unchanged without a text scale above 1, even if the image scale asks for more
    "bagel": Mode("without_last_text", "text", lambda s1, s2: (s1 > 1, s1 > 1 and s2 > 1)),
    "none": Mode("full", "full", lambda s1, s2: (False, False)),
}

# What each mode is used with, by task, where the caller says nothing. INSET: section 4.1; no
# renormalisation or interval is reported, so none and whole. BAGEL: app.py's text_to_image and
# edit_image; its image scale of 1.5 acts on sentences without images too (there b = v).
PRESETS: dict[tuple[str, str], SampleConfig] = {
    ("inset", "image"): SampleConfig(),
    ("inset", "edit"): SampleConfig(),
    ("bagel", "image"): SampleConfig(
        guidance="bagel", interval=(0.4, 1.0), renorm="global", text_only_beta=1.5
    ),
    ("bagel", "edit"): SampleConfig(guidance="bagel", beta=2.0, renorm="text_channel"),
    ("none", "image"): SampleConfig(guidance="none"),
    ("none", "edit"): SampleConfig(guidance="none"),
}


class Scales(NamedTuple):
    """The two scales of every latent token, and the picture that the token belongs to."""

    first: jax.Array  # float32 [P, R]
    second: jax.Array  # float32 [P, R]
    picture: jax.Array  # int32 [P, R], number of the picture in its pack; -1 for padding


def check(settings: SampleConfig) -> None:
    """Raises ValueError, naming the setting, for values that no guidance understands."""
    if settings.guidance not in MODES:
        raise ValueError(f"guidance {settings.guidance!r}: it is one of {sorted(MODES)}")
    if settings.renorm not in RENORMS:
        raise ValueError(f"renorm {settings.renorm!r}: it is one of {RENORMS}")
    low, high = settings.interval
    if not low < high:
        raise ValueError(f"interval {low} to {high}: guidance acts where low < t <= high")
    if not 0 <= settings.renorm_min <= 1:
        raise ValueError(f"renorm_min {settings.renorm_min}: it lies between 0 and 1")
    if settings.num_timesteps < 2:
        raise ValueError(
            f"num_timesteps={settings.num_timesteps}: N points are N - 1 evaluations, so at least 2"
        )
    if settings.shift <= 0:
        raise ValueError(f"shift {settings.shift}: it is above 0")


def acts_at(settings: SampleConfig, t: float) -> bool:
    """Whether guidance acts at the (shifted) time t."""
    low, high = settings.interval
    return low < t <= high


def combine(
    v: jax.Array, a: jax.Array, b: jax.Array, scales: Scales, renorm: str, renorm_min: float
) -> jax.Array:
    """The guided velocity, float32 [P, R, L].

    Args:
      v, a, b: float32 [P, R, L], velocities of the conditional branch and of the two others. A
        stage that does not act has a scale of 1 (and then any branch, such as v itself).
      scales: per token; norms are taken within a token or a picture, never across pictures.
      renorm: a name in RENORMS.
      renorm_min: the smallest factor that renormalisation may shrink by.
    """
    v1 = a + scales.first[..., None] * (v - a)
    if renorm == "text_channel":
        v1 = v1 * shrink(_channel_norm(v), _channel_norm(v1), renorm_min)
    v2 = b + scales.second[..., None] * (v1 - b)
    if renorm == "channel":
        v2 = v2 * shrink(_channel_norm(v), _channel_norm(v2), renorm_min)
    if renorm == "global":
        norms = (_picture_norm(x, scales.picture) for x in (v, v2))
        v2 = v2 * shrink(*norms, renorm_min)
    return v2


def shrink(norm: jax.Array, guided_norm: jax.Array, renorm_min: float) -> jax.Array:
    """The factor that takes a guided norm back to the unguided one, between renorm_min and 1."""
    return jnp.clip(norm / (guided_norm + NORM_EPS), renorm_min, 1.0)


def _channel_norm(v: jax.Array) -> jax.Array:
    """Norm of each token: [P, R, L] -> [P, R, 1]."""
    return jnp.linalg.norm(v, axis=-1, keepdims=True)


def _picture_norm(v: jax.Array, picture: jax.Array) -> jax.Array:
    """Norm of the whole picture that each token belongs to: [P, R, L] -> [P, R, 1]."""
    square = jnp.sum(v * v, axis=-1)
    # a picture has at least one token, so numbers below R name them all
    total = jax.vmap(lambda s, n: jax.ops.segment_sum(s, n, num_segments=s.shape[0]))(
        square, jnp.where(picture < 0, picture.shape[-1], picture)
    )
    return jnp.sqrt(jnp.take_along_axis(total, jnp.maximum(picture, 0), axis=1))[..., None]
