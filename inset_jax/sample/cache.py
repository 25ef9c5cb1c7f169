"""The still part of a drawing: contexts that never see what is drawn, computed once and kept.

Contexts are assembled like training examples and run through the same forward pass; what is kept
are the keys and values of every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from inset_jax.core.batch import Kept, Pack, Visibility
from inset_jax.core.config import CapacityConfig, ComputeConfig, ModelConfig
from inset_jax.core.mesh import constrain
from inset_jax.data.layout import GEN, Item, Layout, layout
from inset_jax.data.pack import assemble, stack
from inset_jax.model.inset import Inset

KEPT = ("layer", "pack", "key", "kv_heads", "head_dim")  # dimensions of what is kept
FLOOR = 16  # smallest static size; keeps the number of compiled programs low


def bucket(size: int) -> int:
    """Rounds a size up to one of four values an octave, so that programs are compiled seldom."""
    if not size:
        return 0
    step = max(FLOOR, 2 ** math.ceil(math.log2(size)) // 8)
    return -(-size // step) * step


def still_pack(
    contexts: Sequence[Sequence[Sequence[Item]]], config: ModelConfig
) -> tuple[Pack | None, tuple[int, int]]:
    """Assembles the still part of a batch: the items of each context of each pack.

    An image that several contexts hold (the same `Item`) goes through the ViT once.

    Returns:
      the pack [P, ...] (None if there is nothing still) and the sizes of its two streams.
    """
    laid = [layout(own, config) for own in contexts]
    is_gen = [own.stream == GEN for own in laid]
    und = bucket(max(int(np.sum(~gen)) for gen in is_gen))
    gen = bucket(max(int(np.sum(gen)) for gen in is_gen))
    if not und:
        return None, (0, 0)
    patches = max(int(np.sum(own.is_patch)) for own in laid)
    capacity = CapacityConfig(und, gen, patches, 0, max(len(own) for own in contexts))
    shared = [_share_images(assemble(own, capacity, config), own) for own in laid]
    vit = bucket(max(len(rows) for _, rows in shared))
    return stack([_take_patches(pack, rows, vit) for pack, rows in shared]), (und, gen)


def keep(model: Inset, pack: Pack, compute: ComputeConfig) -> Kept:
    """Runs the still contexts; returns their keys and values, laid out [und; gen]."""
    streams, _ = model.embed(pack, 1.0, compute)
    positions = {"und": pack.und_position, "gen": pack.gen_position}
    kept = model.decode(streams, positions, pack.visibility, compute, None, ("kept",)).kept
    return Kept(*(constrain(array, KEPT) for array in kept))


def in_reading_order(
    kept: Kept, contexts: Sequence[Sequence[Sequence[Item]]], config: ModelConfig
) -> list[list[Kept]]:
    """Takes a kept batch apart: of each pack, of each context, [layer, token, N, D] (NumPy)."""
    key, value = np.asarray(kept.key), np.asarray(kept.value)
    _, (und, _) = still_pack(contexts, config)
    result = []
    for pack, own in enumerate(contexts):
        laid = layout(own, config)
        is_gen = laid.stream == GEN
        slot = np.where(is_gen, und + np.cumsum(is_gen) - 1, np.cumsum(~is_gen) - 1)
        slots = [slot[laid.example == number] for number in range(len(own))]
        result.append([Kept(key[:, pack, s], value[:, pack, s]) for s in slots])
    return result


def _share_images(pack: Pack, laid: Layout) -> tuple[Pack, np.ndarray]:
    """Points equal images of a pack at one set of patches.

    Returns:
      the pack, whose `und_patch` counts the distinct images' patches, and those patches' old rows.
    """
    start = np.cumsum(laid.vit_length) - laid.vit_length
    where: dict[int, int] = {}  # item -> its first new row
    rows, new = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for item, old, length in zip(laid.vit_items, start, laid.vit_length, strict=True):
        if id(item) not in where:
            where[id(item)] = sum(map(len, rows))
            rows.append(old + np.arange(length))
        new.append(where[id(item)] + np.arange(length))
    lookup = np.concatenate(new)
    und_patch = pack.und_patch.copy()
    is_patch = und_patch >= 0
    und_patch[is_patch] = lookup[und_patch[is_patch]]
    rows = np.concatenate(rows)
    border = np.asarray([*sorted(where.values()), len(rows)])
    image = np.searchsorted(border, np.arange(len(rows)), side="right")
    seen = Visibility(border[image - 1].astype(np.int32), border[image].astype(np.int32))
    return pack._replace(und_patch=und_patch, vit_visibility=seen), rows


def _take_patches(pack: Pack, rows: np.ndarray, size: int) -> Pack:
    """Keeps these rows of the ViT's patches, padded to `size`."""
    return pack._replace(
        vit_patch=pad(pack.vit_patch[rows].T, size).T,
        vit_place=pad(pack.vit_place[rows], size),
        vit_visibility=Visibility(*(pad(side, size) for side in pack.vit_visibility)),
    )


def pad(values: np.ndarray, size: int, fill=0) -> np.ndarray:
    """Pads the last dimension to `size`."""
    out = np.full((*values.shape[:-1], size), fill, values.dtype)
    out[..., : values.shape[-1]] = values
    return out
