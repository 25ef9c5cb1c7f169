"""Operations of a step on one device, counted from the config, by part.

A product of matrices costs two operations a multiply-add: once forward, once for the gradient of
what enters, once for that of the weights, where these train. `model` is the work that the losses
need, `executed` holds what a remat policy computes twice too. Capacities count as full.
"""

from __future__ import annotations

from typing import NamedTuple

from inset_jax.core.config import Config
from inset_jax.train import optim

# Visible pairs of queries and keys over tokens^2: 165.0M of 30,720^2 in planned packs of inset_7b's
# mix (docs/kernels.md, packs of the planner). From 0.01 with small pictures alone to 0.18.
VISIBLE_SHARE = 0.175
PICTURE_PATCHES = 1369  # of the ViT, a picture of 518 x 518 pixels


class Part(NamedTuple):
    """Operations a step on one device."""

    model: float
    executed: float


def parts(config: Config, devices: int) -> dict[str, Part]:
    """Returns the operations of each part of the model."""
    llm, vit, room = config.model.llm, config.model.vit, config.data.capacity
    packs = config.data.packs * config.optimizer.accumulation / devices  # also parts of one
    trains = _trains(config)
    again = _again(config)
    query, pair = llm.query_heads * llm.head_dim, llm.kv_heads * llm.head_dim
    layer = llm.model_dim * (2 * query + 2 * pair + 3 * llm.mlp_dim)
    tokens = room.und + room.gen
    visible = VISIBLE_SHARE * tokens**2
    vit_layer = 4 * vit.width**2 + 2 * vit.width * vit.mlp_dim
    vit_pairs = room.vit * min(PICTURE_PATCHES, room.vit)
    bridge = room.vit * llm.model_dim * (vit.width + llm.model_dim)
    time = room.gen * llm.model_dim * (256 + llm.model_dim + config.model.latent_dim)
    vit_again = again["dense"] if trains["vit"] else 0
    vit_factor = 3 if trains["vit"] else 1
    counted = {  # multiply-adds forward, passes of the model, passes computed twice
        "und expert": (room.und * llm.layers * layer, 2 + trains["und"], again["dense"]),
        "gen expert": (room.gen * llm.layers * layer, 2 + trains["gen"], again["dense"]),
        "attention": (2 * visible * query * llm.layers, 3, again["attention"]),
        "ViT": (
            room.vit * (vit.layers * vit_layer + vit.patch_dim * vit.width),
            vit_factor,
            vit_again,
        ),
        "ViT attention": (
            2 * vit_pairs * vit.width * vit.layers,
            vit_factor,
            again["attention"] if trains["vit"] else 0,
        ),
        "connector, time, latents": (bridge + time, 3, 0),
        "cross entropy": (
            room.cross_entropy * llm.model_dim * llm.vocab_size,
            3,
            int(config.compute.cross_entropy_chunk < room.cross_entropy),
        ),
        "flow loss": (room.gen * llm.model_dim * config.model.latent_dim, 3, 0),
    }
    # the backward pass of attention forms scores a second time: five products for two
    backward = {"attention": 0.5, "ViT attention": 0.5}
    return {
        name: Part(
            2 * packs * adds * passes,
            2 * packs * adds * (passes + twice + backward.get(name, 0) * (passes > 1)),
        )
        for name, (adds, passes, twice) in counted.items()
    }


def total(found: dict[str, Part]) -> Part:
    """Sums over all parts."""
    return Part(*(sum(column) for column in zip(*found.values(), strict=True)))


def words(config: Config) -> list[str]:
    """What was assumed, in sentences."""
    room = config.data.capacity
    return [
        f"both streams are full: {room.und:,} und and {room.gen:,} gen tokens a pack, "
        f"{room.vit:,} ViT patches, {room.cross_entropy:,} next-token targets",
        f"visible pairs of queries and keys: {VISIBLE_SHARE} x tokens^2 a pack, as in the "
        "planner's packs of inset_7b's mix",
        f"pictures of {PICTURE_PATCHES:,} ViT patches",
        "the autoencoder, which encodes targets between steps, is not counted",
    ]


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
        "dense": int(remat in ("full", "attention")),
        "attention": int(remat == "full"),
    }
