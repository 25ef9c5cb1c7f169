"""Operations of a step, counted from the config and from what its packs hold, by part.

A product of matrices costs two operations a multiply-add: once forward, once for the gradient of
what enters, once for that of the weights, where these train. `model` is the work that the losses
need, `executed` holds what a remat policy computes twice too.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Pack, Visibility
from inset_jax.core.config import Config
from inset_jax.train import optim


class Load(NamedTuple):
    """What packs hold: all that the work of a step depends on, and linearly."""

    und: float = 0.0  # tokens of the und stream
    gen: float = 0.0
    vit: float = 0.0  # patches
    targets: float = 0.0  # next-token targets
    pairs: float = 0.0  # visible pairs of a query and a key
    vit_pairs: float = 0.0


class Part(NamedTuple):
    """Operations."""

    model: float
    executed: float


def held(packs: Pack) -> Load:
    """Counts what packs hold, NumPy arrays with any dimensions in front; padding is nothing."""
    seen = lambda v: np.maximum(v.high.astype(np.int64) - v.low, 0)
    pairs = sum(int(seen(v).sum()) for v in packs.visibility.values())
    own: Visibility = packs.vit_visibility
    return Load(
        und=float(np.sum(packs.und_example >= 0)),
        gen=float(np.sum(packs.gen_example >= 0)),
        vit=float(np.sum(own.high > own.low)),
        targets=float(np.sum(packs.ce_weight > 0)),
        pairs=float(pairs),
        vit_pairs=float(seen(own).sum()),
    )


def parts(config: Config, load: Load) -> dict[str, Part]:
    """Returns the operations of each part of the model for a step on this load."""
    llm, vit = config.model.llm, config.model.vit
    trains = _trains(config)
    again = _again(config)
    query, pair = llm.query_heads * llm.head_dim, llm.kv_heads * llm.head_dim
    layer = llm.model_dim * (2 * query + 2 * pair + 3 * llm.mlp_dim)
    vit_layer = 4 * vit.width**2 + 2 * vit.width * vit.mlp_dim
    bridge = load.vit * llm.model_dim * (vit.width + llm.model_dim)
    time = load.gen * llm.model_dim * (256 + llm.model_dim + config.model.latent_dim)
    vit_again = again["dense"] if trains["vit"] else 0
    vit_factor = 3 if trains["vit"] else 1
    counted = {  # multiply-adds forward, passes of the model, passes computed twice
        "und expert": (load.und * llm.layers * layer, 2 + trains["und"], again["dense"]),
        "gen expert": (load.gen * llm.layers * layer, 2 + trains["gen"], again["dense"]),
        "attention": (2 * load.pairs * query * llm.layers, 3, again["attention"]),
        "ViT": (
            load.vit * (vit.layers * vit_layer + vit.patch_dim * vit.width),
            vit_factor,
            vit_again,
        ),
        "ViT attention": (
            2 * load.vit_pairs * vit.width * vit.layers,
            vit_factor,
            again["attention"] if trains["vit"] else 0,
        ),
        "connector, time, latents": (bridge + time, 3, 0),
        "cross entropy": (
            load.targets * llm.model_dim * llm.vocab_size,
            3,
            int(config.compute.cross_entropy_chunk < config.data.capacity.cross_entropy),
        ),
        "flow loss": (load.gen * llm.model_dim * config.model.latent_dim, 3, 0),
    }
    # the backward pass of attention forms scores a second time: five products for two
    backward = {"attention": 0.5, "ViT attention": 0.5}
    return {
        name: Part(
            2.0 * adds * passes,
            2.0 * adds * (passes + twice + backward.get(name, 0) * (passes > 1)),
        )
        for name, (adds, passes, twice) in counted.items()
    }


def total(found: dict[str, Part]) -> Part:
    """Sums over all parts."""
    return Part(*(sum(column) for column in zip(*found.values(), strict=True)))


def each(config: Config) -> Load:
    """Returns the model's operations for one of each entry of a load."""
    ones = np.eye(len(Load._fields))
    return Load(*(total(parts(config, Load(*row))).model for row in ones.tolist()))


@functools.cache  # building the model's shapes takes a second
def _trains(config: Config) -> dict[str, bool]:
    """Whether the weights of an expert, or any weight of the ViT, train."""
    from flax.traverse_util import flatten_dict

    from inset_jax.model import inset

    trained, _ = optim.split(inset.abstract(config.model)[1], config.optimizer.frozen)
    paths = flatten_dict(trained, sep="/")
    has = lambda start: any(path.startswith(start) for path in paths)
    return {
        "und": has("llm/layers/und/mlp"),
        "gen": has("llm/layers/gen/mlp"),
        "vit": has("vit/layers"),
    }


def _again(config: Config) -> dict[str, int]:
    """Forward passes that the backward pass makes once more, by remat policy."""
    remat = config.compute.remat
    return {
        "dense": int(remat in ("full", "offload", "attention")),
        "attention": int(remat in ("full", "offload")),
    }
