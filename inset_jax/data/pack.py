"""From the items of a few examples to one `Pack`: token order, positions, visibility, losses.

Two steps, both without loops over tokens:

    layout     every token of the pack in reading order (what the reference's packer decides)
    assemble   those tokens divided over the two static streams, padded to capacity

Training, validation and the sampler's contexts all go through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from inset_jax.core.batch import Pack, Visibility
from inset_jax.core.config import CapacityConfig, ModelConfig
from inset_jax.core.visibility import (
    CAUSAL,
    FULL,
    NOISE,
    Segments,
    for_queries,
    reading_intervals,
)
from inset_jax.data import image as images

UND, GEN = 0, 1  # codes of `Layout.stream`, indices into core.batch.STREAMS
KINDS = ("text", "vit", "clean", "target")
_TEXT, _VIT, _CLEAN, _TARGET = range(4)


class Item(NamedTuple):
    """One text or image of an example, ready to be laid out.

    Images need `image` (whose sides are multiples of the stride) or `size`; `size` alone is enough
    for lengths and layouts, and for latents that are written later.
    """

    kind: str  # one of KINDS; "clean" and "target" are VAE images without and with flow loss
    ids: Sequence[int] = ()  # text: token ids without the two that enclose them
    image: np.ndarray | None = None  # [height, width, 3], uint8 or float32 in [-1, 1]
    size: tuple[int, int] | None = None  # rows and columns in patches or latent tokens
    loss: bool = False  # text: its tokens are next-token targets
    special_label: int = -1  # what the item's last token is to predict; -1: nothing
    dropped: bool = False  # by condition dropout: an image keeps its position, a text does not
    frame_delta: int | None = None  # frame of a video: positions from it to the next frame
    opens: bool = True  # False: continues the segment of the image before (later frames)
    timestep: float = 0.0  # target: standard normal draw; of a video its first frame's counts
    noise: np.ndarray | None = None  # target: float32 [tokens, L]
    latent: np.ndarray | None = None  # float32 [tokens, L] if already encoded
    place: np.ndarray | None = None  # int [tokens], rows of the position table; default: its corner


class Layout(NamedTuple):
    """All tokens of a pack in reading order; `token` counts them, `item` the items not dropped."""

    stream: np.ndarray  # int8 [token], UND or GEN
    id: np.ndarray  # int32 [token]; -1 at ViT slots and latents
    is_patch: np.ndarray  # bool [token], ViT slots
    position: np.ndarray  # int32 [A, token]
    example: np.ndarray  # int32 [token]
    segments: Segments  # of attention, covering every token
    ce_index: np.ndarray  # int32 [target], token
    ce_label: np.ndarray  # int32 [target]
    ce_weight: np.ndarray  # float32 [target], 1/sqrt(n) in a text of n targets, 1 for a special one
    flow_index: np.ndarray  # int32 [noisy latent], token
    timestep: np.ndarray  # float32 [latent token], -inf = clean
    place: np.ndarray  # int32 [latent token]
    vit_place: np.ndarray  # int32 [ViT slot]
    vit_items: list[Item]  # in the order of their slots
    gen_items: list[Item]  # in the order of their latents
    vit_length: np.ndarray  # int64 [ViT item], patches
    gen_length: np.ndarray  # int64 [VAE item], latent tokens
    gen_example: np.ndarray  # int64 [VAE item]
    names: list[str]  # of the examples, for messages

    @property
    def gen_row(self) -> np.ndarray:
        """First row of each VAE item in the gen stream: int64 [VAE item]."""
        return np.cumsum(self.gen_length) - self.gen_length


def item_size(item: Item, config: ModelConfig) -> tuple[int, int]:
    """Returns an image item's rows and columns of patches (ViT) or latent tokens (VAE)."""
    if item.size is not None:
        return item.size
    if item.image is None:
        raise ValueError(f"a {item.kind} item needs an image or a size")
    stride = config.vit.patch if item.kind == "vit" else config.latent_stride
    height, width = item.image.shape[:2]
    if height % stride or width % stride:
        raise ValueError(
            f"a {item.kind} image of {width}x{height} pixels: sides must be multiples of {stride}"
        )
    return height // stride, width // stride


class _Rows(NamedTuple):
    """One row per item that was not dropped."""

    kind: np.ndarray
    length: np.ndarray  # tokens, the two enclosing ones included
    position: np.ndarray  # of the first token
    example: np.ndarray
    loss: np.ndarray
    special: np.ndarray
    opens: np.ndarray
    mode: np.ndarray  # CAUSAL, FULL or NOISE
    timestep: np.ndarray


def _rows(examples, config: ModelConfig) -> tuple[_Rows, list[Item]]:
    """Walks over the items once: everything whose value depends on the item before."""
    rows, kept = [], []
    for number, items in enumerate(examples):
        position, timestep, continued = 0, 0.0, False
        for item in items:
            if item.kind not in KINDS:
                raise ValueError(f"item of kind {item.kind!r}; there are {KINDS}")
            kind = KINDS.index(item.kind)
            if item.opens:
                timestep, continued = item.timestep, False
            if item.dropped:
                position += kind != _TEXT
                continue
            if kind == _TEXT:
                inner, mode = len(item.ids), CAUSAL
            else:
                height, width = item_size(item, config)
                inner = height * width
                mode = NOISE if kind == _TARGET and item.frame_delta is None else FULL
            # a frame whose first frame was dropped opens the segment in its place
            opens = item.opens or not continued
            continued = True
            draw = timestep if kind == _TARGET else -np.inf
            rows.append(
                (
                    kind,
                    inner + 2,
                    position,
                    number,
                    item.loss,
                    item.special_label,
                    opens,
                    mode,
                    draw,
                )
            )
            kept.append(item)
            if kind == _TEXT:
                position += inner + 2
            elif item.frame_delta is not None:
                position += item.frame_delta
            else:
                position += kind != _TARGET
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_Rows._fields)
    types = dict(loss=bool, opens=bool, timestep=np.float32)
    arrays = [
        np.asarray(column, types.get(name, np.int64))
        for name, column in zip(_Rows._fields, columns, strict=True)
    ]
    return _Rows(*arrays), kept


def _concatenate(arrays: list, dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _segments(rows: _Rows) -> Segments:
    """Joins the rows that continue a segment to the one that opens it."""
    first = np.flatnonzero(rows.opens)
    length = np.add.reduceat(rows.length, first) if len(first) else rows.length
    return Segments(length, rows.mode[first], rows.example[first])


def layout(
    examples: Sequence[Sequence[Item]], config: ModelConfig, names: Sequence[str] | None = None
) -> Layout:
    """Lays the items of a pack's examples out in reading order, by the reference's rules.

    Args:
      examples: the items of each example, dropped ones included.
      names: what error messages call the examples; default "example 0" and so on.

    Raises:
      ValueError: an unknown kind, an image without a size or with more patches a side than its
        position table has.
    """
    names = list(names) if names is not None else [f"example {i}" for i in range(len(examples))]
    rows, kept = _rows(examples, config)
    number = np.repeat(np.arange(len(rows.length)), rows.length)
    offset = np.arange(len(number)) - np.repeat(np.cumsum(rows.length) - rows.length, rows.length)
    kind = rows.kind[number]
    first, last = offset == 0, offset == rows.length[number] - 1
    inner = ~first & ~last
    is_text = kind == _TEXT

    tokens = config.tokens
    token = np.full(len(number), -1, np.int32)
    token[first] = np.where(is_text[first], tokens.text_start, tokens.image_start)
    token[last] = np.where(is_text[last], tokens.text_end, tokens.image_end)
    texts = [item.ids for item in kept if item.kind == "text" and len(item.ids)]
    token[inner & is_text] = _concatenate(texts, np.int32)

    special = rows.special[number]
    is_ce = np.where(last, special >= 0, is_text & rows.loss[number])
    following = np.append(token[1:], -1)  # text tokens predict the next one
    is_latent = inner & ((kind == _CLEAN) | (kind == _TARGET))
    vit_items = [item for item in kept if item.kind == "vit"]
    gen_items = [item for item in kept if item.kind in ("clean", "target")]
    is_vit_row, is_gen_row = rows.kind == _VIT, rows.kind >= _CLEAN
    place_of = lambda items, side: _concatenate([_place(i, config, side) for i in items], np.int32)
    return Layout(
        stream=np.where(is_latent, GEN, UND).astype(np.int8),
        id=token,
        is_patch=inner & (kind == _VIT),
        position=(rows.position[number] + np.where(is_text, offset, 0)).astype(np.int32)[None],
        example=rows.example[number].astype(np.int32),
        segments=_segments(rows),
        ce_index=np.flatnonzero(is_ce).astype(np.int32),
        ce_label=np.where(last, special, following)[is_ce].astype(np.int32),
        ce_weight=np.where(last, 1.0, (rows.length[number] - 1.0) ** -0.5)[is_ce].astype(
            np.float32
        ),
        flow_index=np.flatnonzero(inner & (kind == _TARGET)).astype(np.int32),
        timestep=rows.timestep[number][is_latent],
        place=place_of(gen_items, config.latents.max_side),
        vit_place=place_of(vit_items, config.vit.side),
        vit_items=vit_items,
        gen_items=gen_items,
        vit_length=rows.length[is_vit_row] - 2,
        gen_length=rows.length[is_gen_row] - 2,
        gen_example=rows.example[is_gen_row],
        names=names,
    )


def _place(item: Item, config: ModelConfig, side: int) -> np.ndarray:
    if item.place is not None:
        return np.asarray(item.place, np.int32)
    return images.place_ids(*item_size(item, config), side)


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
    out = np.full((*values.shape[:-1], size), fill, values.dtype)
    out[..., : values.shape[-1]] = values
    return out


def _visibility(laid: Layout, capacity: CapacityConfig) -> dict[str, Visibility]:
    """Intervals of all keys [und; gen] over the queries of each stream; empty for padding."""
    reading = reading_intervals(laid.segments)
    is_gen = laid.stream == GEN
    result = {}
    for name, is_query in (("und", ~is_gen), ("gen", is_gen)):
        sides = []
        for side in for_queries(reading, is_query):
            side = side.astype(np.int32)
            sides.append(
                np.concatenate(
                    [_padded(side[~is_gen], capacity.und), _padded(side[is_gen], capacity.gen)]
                )
            )
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
            out[row : row + length] = images.patchify(image, config.vit.patch)
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
            np.where(is_patch, np.cumsum(is_patch) - 1, -1).astype(np.int32), capacity.und, -1
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
    return np.stack(nodes)
