"""From a layout to one `Pack`: two static streams, padded to capacity.

    layout     every token of the pack in reading order (data.layout)
    assemble   those tokens divided over the two streams
    with_tiles the tiles of the mask that hold anything, where the config bounds their number
    stack      several packs with P in front

Training, validation and the sampler's contexts all go through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inset_jax.core.batch import STREAMS, Pack, Visibility
from inset_jax.core.config import CapacityConfig, ModelConfig
from inset_jax.core.visibility import for_queries, listed, reading_intervals
from inset_jax.data import image as images
from inset_jax.data.layout import GEN, KINDS, UND, Item, Layout, item_size, layout

__all__ = ["GEN", "KINDS", "UND", "Item", "Layout", "assemble", "item_size", "layout", "stack"]


def _check_capacity(laid: Layout, capacity: CapacityConfig) -> None:
    """Raises ValueError naming the first example that no longer fits."""
    is_gen = laid.stream == GEN
    used = {
        "und": (laid.example[~is_gen], capacity.und),
        "gen": (laid.example[is_gen], capacity.gen),
        "vit": (laid.example[laid.is_patch], capacity.vit),
        "cross_entropy": (laid.example[laid.ce_index], capacity.cross_entropy),
        "examples": (np.arange(len(laid.names)), capacity.examples),
    }
    for name, (example, limit) in used.items():
        if len(example) > limit:
            number = int(example[limit])
            own = int(np.sum(example == number))
            unit = "examples" if name == "examples" else f"{name} tokens"
            raise ValueError(
                f"{laid.names[number]} does not fit the pack: it has {own} {unit}, "
                f"{int(np.sum(example < number))} are taken, capacity.{name} is {limit}"
            )


def _padded(values: np.ndarray, size: int, fill=0) -> np.ndarray:
    """Pads the last dimension."""
    length = values.shape[-1]
    out = np.empty((*values.shape[:-1], size), values.dtype)
    out[..., :length], out[..., length:] = values, fill
    return out


def _visibility(laid: Layout, capacity: CapacityConfig) -> dict[str, Visibility]:
    """Intervals of all keys [und; gen] over the queries of each stream; empty for padding."""
    reading = reading_intervals(laid.segments)
    is_gen = laid.stream == GEN
    row = np.cumsum(is_gen)  # of each token among the keys
    row = np.where(is_gen, capacity.und - 1 + row, np.arange(len(row)) - row)
    result = {}
    for name, is_query in (("und", ~is_gen), ("gen", is_gen)):
        sides = np.zeros((2, capacity.und + capacity.gen), np.int32)
        for own, side in zip(sides, for_queries(reading, is_query), strict=True):
            own[row] = side
        result[name] = Visibility(*sides)
    return result


def _patches(laid: Layout, capacity: CapacityConfig, config: ModelConfig) -> np.ndarray:
    """Pixels of every ViT slot; uint8 if all images are, else float32 in [-1, 1]."""
    pixels = [item.image for item in laid.vit_items if item.image is not None]
    dtype = np.uint8 if all(image.dtype == np.uint8 for image in pixels) else np.float32
    out = np.zeros((capacity.vit, config.vit.patch_dim), dtype)
    row = 0
    for item, length in zip(laid.vit_items, laid.vit_length, strict=True):
        if item.image is not None:
            image = item.image if dtype == np.uint8 else images.normalize(item.image)
            images.patchify(image, config.vit.patch, out[row : row + length])
        row += length
    return out


def _latents(laid: Layout, capacity: CapacityConfig, config: ModelConfig):
    """Clean latents and noise of the gen stream; zeros where an item has none (yet)."""
    latent = np.zeros((capacity.gen, config.latent_dim), np.float32)
    noise = np.zeros_like(latent)
    for item, row, length in zip(laid.gen_items, laid.gen_row, laid.gen_length, strict=True):
        for array, value, name in ((latent, item.latent, "latent"), (noise, item.noise, "noise")):
            if value is None:
                continue
            if value.shape != (length, config.latent_dim):
                raise ValueError(
                    f"{name} of shape {value.shape} for a {item.kind} image of {length} tokens of "
                    f"{config.latent_dim}"
                )
            array[row : row + length] = value
    return latent, noise


def assemble(
    laid: Layout, capacity: CapacityConfig, config: ModelConfig, reweight: bool = False
) -> Pack:
    """Divides a layout over the two streams and pads them: one `Pack` without P.

    Padding has the latent timestep -inf (clean), whose flow weight is 0.

    Args:
      reweight: next-token targets weigh 1/sqrt(n) in a text of n (loss.cross_entropy_reweighting);
        otherwise all weigh 1.

    Raises:
      ValueError: an example exceeds a capacity, or a latent or noise has another shape.
    """
    _check_capacity(laid, capacity)
    is_gen = laid.stream == GEN
    und, gen = np.flatnonzero(~is_gen), np.flatnonzero(is_gen)
    is_patch = laid.is_patch[und]
    latent, noise = _latents(laid, capacity, config)
    is_target = np.zeros(len(is_gen), bool)
    is_target[laid.flow_index] = True
    end = np.repeat(np.cumsum(laid.vit_length), laid.vit_length)
    start = end - np.repeat(laid.vit_length, laid.vit_length)
    vit = lambda values, fill=0: _padded(values.astype(np.int32), capacity.vit, fill)
    ce = lambda values, fill=0: _padded(values, capacity.cross_entropy, fill)
    und_row = np.cumsum(~is_gen) - 1
    return Pack(
        und_token=_padded(np.maximum(laid.id[und], 0), capacity.und),
        und_patch=_padded(
            np.where(is_patch, np.cumsum(is_patch) - 1, np.minimum(laid.id[und], -1)).astype(
                np.int32
            ),
            capacity.und,
            -1,
        ),
        und_position=_padded(laid.position[:, und], capacity.und),
        und_example=_padded(laid.example[und], capacity.und, -1),
        gen_latent=latent,
        gen_noise=noise,
        gen_timestep=_padded(laid.timestep, capacity.gen, -np.inf),
        gen_place=_padded(laid.place, capacity.gen),
        gen_position=_padded(laid.position[:, gen], capacity.gen),
        gen_example=_padded(laid.example[gen], capacity.gen, -1),
        gen_weight=_padded(is_target[gen].astype(np.float32), capacity.gen),
        visibility=_visibility(laid, capacity),
        vit_patch=_patches(laid, capacity, config),
        vit_place=vit(laid.vit_place),
        vit_visibility=Visibility(vit(start), vit(end)),
        ce_index=ce(und_row[laid.ce_index].astype(np.int32)),
        ce_label=ce(laid.ce_label),
        ce_weight=ce(laid.ce_weight if reweight else np.ones_like(laid.ce_weight)),
        ce_example=ce(laid.example[laid.ce_index], -1),
    )


def with_tiles(pack: Pack, block: tuple[int, int], capacity: int, name: str) -> Pack:
    """Adds to both streams the list of tiles that the attention kernels will visit.

    Args:
      block: queries and keys of a tile, as the kernels will cut them (compute.attention_block).
      capacity: most tiles of a stream, data.capacity.attention_tiles.
      name: of the pack, for messages.

    Raises:
      ValueError: a stream has more visible tiles than `capacity`.
    """
    lengths = dict(zip(STREAMS, (len(pack.und_token), len(pack.gen_latent)), strict=True))
    visibility = dict(pack.visibility)
    for stream, length in lengths.items():
        if not length:
            continue
        try:
            visibility[stream] = listed(pack.visibility[stream], length, block, capacity)
        except ValueError as error:
            raise ValueError(f"{name}, {stream} stream: {error}") from error
    return pack._replace(visibility=visibility)


def stack(packs: Sequence[Pack]) -> Pack:
    """Puts P in front. Patches become float32 if those of any pack are."""
    if len({pack.vit_patch.dtype for pack in packs}) > 1:
        packs = [pack._replace(vit_patch=images.normalize(pack.vit_patch)) for pack in packs]
    return _stack(list(packs))


def _stack(nodes: list[Any]):
    first = nodes[0]
    if isinstance(first, dict):
        return {key: _stack([node[key] for node in nodes]) for key in first}
    if isinstance(first, tuple):
        return type(first)(*(_stack(list(column)) for column in zip(*nodes, strict=True)))
    if len(nodes) == 1:
        return first[None]  # no copy
    return np.stack(nodes)
