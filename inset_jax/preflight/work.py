"""Operations of a step on one device whose packs are full, as nothing is known of them yet.

`train.work` counts them; a run that knows its packs counts what they hold.
"""

from __future__ import annotations

from inset_jax.core.config import Config
from inset_jax.train import work
from inset_jax.train.work import Part, total

__all__ = ["PICTURE_PATCHES", "VISIBLE_SHARE", "Part", "parts", "total", "words"]
# Visible pairs of queries and keys over tokens^2: 165.0M of 30,720^2 in planned packs of inset_7b's
# mix (docs/kernels.md, packs of the planner). From 0.01 with small pictures alone to 0.18.
VISIBLE_SHARE = 0.175
PICTURE_PATCHES = 1369  # of the ViT, a picture of 518 x 518 pixels


def parts(config: Config, devices: int) -> dict[str, Part]:
    """Returns the operations of each part of the model."""
    room = config.data.capacity
    packs = config.data.packs * config.optimizer.accumulation / devices  # also parts of one
    load = work.Load(
        und=room.und,
        gen=room.gen,
        vit=room.vit,
        targets=room.cross_entropy,
        pairs=VISIBLE_SHARE * (room.und + room.gen) ** 2,
        vit_pairs=room.vit * min(PICTURE_PATCHES, room.vit),
    )
    return work.parts(config, work.Load(*(packs * number for number in load)))


def words(config: Config) -> list[str]:
    """What was assumed, in sentences."""
    room, host = config.data.capacity, to_host(config)
    return [
        f"both streams are full: {room.und:,} und and {room.gen:,} gen tokens a pack, "
        f"{room.vit:,} ViT patches, {room.cross_entropy:,} next-token targets",
        f"visible pairs of queries and keys: {VISIBLE_SHARE} x tokens^2 a pack, as in the "
        "planner's packs of inset_7b's mix",
        f"pictures of {PICTURE_PATCHES:,} ViT patches",
        "the autoencoder, which encodes targets between steps, is not counted",
        *[f"{host / 1e9:,.0f} GB of layers' inputs of all devices go to the hosts' memory"]
        * bool(host),
    ]


def to_host(config: Config) -> float:
    """Bytes of layers' inputs of all devices that go to the hosts' memory in a step, and back."""
    if config.compute.remat != "offload":
        return 0.0
    room, model = config.data.capacity, config.model
    inputs = model.llm.layers * (room.und + room.gen) * model.llm.model_dim
    inputs += model.vit.layers * room.vit * model.vit.width
    packs = config.data.packs * config.optimizer.accumulation
    return float(inputs * packs * (2 if config.compute.dtype == "bfloat16" else 4))
