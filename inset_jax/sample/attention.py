"""What a picture's tokens attend to while they are drawn: weights of every layer and head.

The sampler's kernels never write them down. One forward pass returns what entered each layer and
the keys it brought; from these the weights are computed again, for the latent tokens alone.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from inset_jax.core.batch import Kept
from inset_jax.core.config import ComputeConfig, ModelConfig
from inset_jax.data.layout import GEN, Item, layout
from inset_jax.model import inset, int8, layers
from inset_jax.sample.cache import bucket
from inset_jax.sample.plan import Request, Step, plan
from inset_jax.sample.sampler import Sampler, embed


class Attended(NamedTuple):
    """The attention of one picture's latent tokens; each row of weights sums to 1."""

    # float32 [layer, head, latent token, token]: tokens in reading order, the sentence and then the
    # picture itself between its two markers
    weight: np.ndarray
    spans: list[slice]  # of each item of the sentence, its tokens without the two that enclose it
    picture: slice  # the picture's own latent tokens


def attended(sampler: Sampler, request: Request, state: np.ndarray, t: float) -> Attended:
    """Looks into one evaluation of the conditional branch.

    Args:
      request: one sentence and one picture; its scales do not matter.
      state: float32 [rows * columns, L], x_t, such as `trace.draw` remembers.
      t: in [0, 1].

    Raises:
      ValueError: several pictures, an item that was dropped, or a state of another shape.
    """
    if len(request.pictures) != 1 or any(item.dropped for item in request.items):
        raise ValueError(
            f"attention is shown of one picture and a whole sentence, not of "
            f"{len(request.pictures)} pictures and {sum(i.dropped for i in request.items)} "
            "dropped items"
        )
    (picture,) = request.pictures
    if state.shape != picture.noise.shape:
        raise ValueError(f"state {state.shape} of a picture of {picture.noise.shape}")
    config = sampler.config
    laid = plan([request._replace(scales=(1.0, 1.0))], "none", config)
    latents = np.zeros_like(laid.state)
    latents[0, : len(state)] = state
    arrays = jax.device_put(laid.plain)
    found = _program(config, sampler.compute, int8.is_shrunk(sampler.params["model"]))(
        sampler.params["model"], sampler.keep(laid.still), arrays, latents, np.float32(t)
    )
    items = list(request.items) + ([request.plan] if request.plan is not None else [])
    target = Item("target", size=picture.size)
    order = _reading_order(items, target, laid.plain, config)
    weight = np.asarray(found)[:, 0, :, : math.prod(picture.size)][..., order]
    spans, at = [], 0
    for item in [*items, target]:
        length = len(layout([[item]], config).id)
        spans.append(slice(at + 1, at + length - 1))
        at += length
    return Attended(weight, spans[:-1], spans[-1])


def weights(
    model: inset.Inset,
    kept: Kept | None,
    arrays: Step,
    state: jax.Array,
    t: jax.Array,
    compute: ComputeConfig,
) -> jax.Array:
    """The weights of a step's latent tokens over the keys [kept; own und; own gen].

    Arguments as `sampler.velocity`. The scores are those of `kernels.attend`.

    Returns:
      float32 [layer, P, H, G, key]; a row that sees nothing is zero.
    """
    streams, _, _ = embed(model, arrays, state, t, compute)
    decoded = model.decode(
        streams, arrays.position, arrays.visibility, compute, kept, ("kept", "residuals")
    )
    entered = jnp.concatenate([streams["gen"][None], decoded.residuals["gen"][:-1]])
    config = model.config.llm
    cos_sin = layers.rotary(arrays.position["gen"], config.head_dim, config.rope_theta)
    definition, stacked = nnx.split(model.llm.layers)
    row = jnp.arange(streams["gen"].shape[1])[:, None]
    seen = arrays.visibility["gen"]
    mask = ((seen.low[:, None] <= row) & (row < seen.high[:, None]))[:, None]  # [P, 1, G, key]

    def body(_, layer):
        params, before, own, x = layer
        expert = nnx.merge(definition, params).gen
        query = expert.attention.project(expert.input_norm(x), cos_sin)[0].astype(jnp.float32)
        key = own if before is None else jnp.concatenate([before.astype(own.dtype), own], axis=1)
        key = jnp.repeat(key.astype(jnp.float32), query.shape[2] // key.shape[2], axis=2)
        score = jnp.einsum("pghd,pkhd->phgk", query, key, precision=jax.lax.Precision.HIGHEST)
        return _, jax.nn.softmax(score * query.shape[-1] ** -0.5, where=mask)

    before = None if kept is None else kept.key
    found = jax.lax.scan(body, None, (stacked, before, decoded.kept.key, entered))[1]
    return jnp.where(mask, found, 0.0)


@functools.cache
def _program(config: ModelConfig, compute: ComputeConfig, is_int8: bool):
    definition, _ = inset.abstract(config, is_int8)

    def run(params, kept, arrays, state, t):
        return weights(inset.bind(definition, params), kept, arrays, state, t, compute)

    return jax.jit(run)


def _reading_order(items, target: Item, arrays: Step, config: ModelConfig) -> np.ndarray:
    """Of each token of sentence and picture, in reading order, its number among the keys."""
    own_und, own_gen = arrays.token.shape[1], arrays.source.shape[1]
    kept = arrays.visibility["gen"].low.shape[1] - own_und - own_gen
    is_gen = layout([items], config).stream == GEN
    # the still pack is [und; gen], each padded; its sizes are those of `cache.still_pack`
    und = bucket(int(np.sum(~is_gen)))
    context = np.where(is_gen, und + np.cumsum(is_gen) - 1, np.cumsum(~is_gen) - 1)
    latents = kept + own_und + np.arange(math.prod(target.size))
    return np.concatenate([context, [kept], latents, [kept + 1]]).astype(np.int64)
