"""Text decoding: one token a step for several contexts, appended to the cache of the still part.

The cache has a static capacity, laid out [kept; step 0; step 1; ...], each step one key for every
context. A context's query sees its own kept keys and its own keys of earlier steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.core.batch import Kept, Pack, Visibility
from inset_jax.core.config import ComputeConfig, ModelConfig
from inset_jax.data.layout import Item, layout
from inset_jax.model.inset import Inset


class Writing(NamedTuple):
    """What was written in one context."""

    ids: list[int]  # without the token that starts a text and the one that ends it
    ended: bool  # False: the limit cut it off


class Lines(NamedTuple):
    """The contexts of a batch as the queries of a decoding step; E contexts a pack, padded."""

    position: np.ndarray  # int32 [P, E], rotary position of the first token
    key: np.ndarray  # uint32 [P, E, 2], of the random draws
    kept: Visibility  # [P, kept] into E: each context's own keys


class Turn(NamedTuple):
    """The numbers that change from token to token."""

    token: Any  # int32 [P, E], what is read
    index: Any  # int32 [], steps taken
    temperature: Any  # float32 []


def lines(
    contexts: Sequence[Sequence[Sequence[Item]]],
    pack: Pack,
    seeds: Sequence[Sequence[int]],
    config: ModelConfig,
) -> Lines:
    """Prepares the contexts (and the seed of each) of every pack; `pack` is their still pack."""
    wide = max(len(own) for own in contexts)
    wide = 1 << (wide - 1).bit_length()  # few compiled shapes, and no more cache than needed
    position = np.zeros((len(contexts), wide), np.int32)
    key = np.zeros((len(contexts), wide, 2), np.uint32)
    for row, (own, draws) in enumerate(zip(contexts, seeds, strict=True)):
        # a text appended to each context would start where the written one does
        laid = layout([[*items, Item("text")] for items in own], config)
        last = np.searchsorted(laid.example, np.arange(len(own)), side="right") - 2
        position[row, : len(own)] = laid.position[0, last]
        for column, seed in enumerate(draws):
            key[row, column] = np.asarray([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    example = np.concatenate([pack.und_example, pack.gen_example], axis=1)
    kept = Visibility(np.maximum(example, 0), example + 1)
    return Lines(position, key, kept)


def room(kept: Kept, queries: int, steps: int) -> Kept:
    """Appends room for `steps` steps of `queries` contexts."""
    space = ((0, 0), (0, 0), (0, queries * steps), (0, 0), (0, 0))
    return Kept(jnp.pad(kept.key, space), jnp.pad(kept.value, space))


def step(
    model: Inset, kept: Kept, batch: Lines, turn: Turn, greedy: bool, compute: ComputeConfig
) -> tuple[jax.Array, jax.Array, jax.Array, Kept]:
    """Reads one token of each context and predicts the next.

    Returns:
      the next tokens int32 [P, E], their logits float32 [P, E, vocab], the hidden states behind
      them [P, E, M], and the longer cache.
    """
    packs, queries = turn.token.shape
    still = batch.kept.low.shape[1]
    # appended keys: which context's, and whether already written
    slot = jnp.arange(kept.key.shape[2] - still)
    appended = Visibility(slot % queries, slot % queries + (slot // queries < turn.index))
    own = Visibility(jnp.arange(queries), jnp.arange(queries) + 1)
    spread = lambda side: jnp.broadcast_to(side, (packs, side.shape[-1]))
    seen = Visibility(
        *(
            jnp.concatenate([spread(part) for part in parts], axis=1).astype(jnp.int32)
            for parts in zip(batch.kept, appended, own, strict=True)
        )
    )
    decoded = model.decode(
        {"und": model.embed_und(turn.token, jnp.full_like(turn.token, -1), None, compute)},
        {"und": (batch.position + turn.index)[:, None]},
        {"und": seen},
        compute,
        kept,
        ("kept",),
    )
    hidden = decoded.hidden["und"]
    logits = model.logits(hidden)
    at = still + turn.index * queries
    longer = Kept(
        *(
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=2)
            for old, new in zip(kept, decoded.kept, strict=True)
        )
    )
    if greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32), logits, hidden, longer
    draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, turn.index), row)
    token = jax.vmap(jax.vmap(draw))(batch.key, logits / turn.temperature)
    return token.astype(jnp.int32), logits, hidden, longer
