"""The items of a few examples in reading order: tokens, positions, segments, losses.

What the reference's packer decides is decided here, and only here. No loops over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import NULL_IMAGE, NULL_TEXT
from inset_jax.core.config import ModelConfig
from inset_jax.core.visibility import CAUSAL, FULL, NOISE, Segments
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
    dropped: bool = False  # by condition dropout: an image keeps its position, a text does not;
    # with ModelConfig.null_token either leaves one learned token, at one position
    frame_delta: int | None = None  # frame of a video: positions from it to the next frame
    opens: bool = True  # False: continues the segment of the image just before (later frames)
    timestep: float = 0.0  # target: standard normal draw; of a video its first frame's counts
    noise: np.ndarray | None = None  # target: float32 [tokens, L]
    latent: np.ndarray | None = None  # float32 [tokens, L] if already encoded
    posterior_noise: np.ndarray | None = None  # float32 [h, w, c], for encoding it later
    place: np.ndarray | None = None  # int [tokens], rows of the position table; default: its corner


class Layout(NamedTuple):
    """All tokens of a pack in reading order; `token` counts them, `item` the items not dropped."""

    stream: np.ndarray  # int8 [token], UND or GEN
    id: np.ndarray  # int32 [token]; -1 at ViT slots and latents, NULL_TEXT, NULL_IMAGE
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
    """Returns an image item's rows and columns of patches (ViT) or latent tokens (VAE).

    Raises:
      ValueError: neither image nor size, or sides that are no multiples of the stride.
    """
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


def _image_tokens(item: Item, config: ModelConfig, name: str) -> int:
    """Returns an image's tokens; refuses one that its position table has no place for."""
    side = config.patch_side if item.kind == "vit" else config.latents.max_side
    try:
        rows, columns = item_size(item, config)
        if item.place is not None:
            return rows * columns
        if max(rows, columns) > side:
            images.place_ids(rows, columns, side)  # raises, with the reason
        if item.kind == "vit" and (rows - 1) * side + columns > config.vit.side**2:
            raise ValueError(
                f"an image of {rows}x{columns} (rows x columns) patches, counted in rows of "
                f"model.connector_side={side}, does not fit model.vit.side={config.vit.side}"
            )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return rows * columns


class _Rows(NamedTuple):
    """One row per item that leaves tokens."""

    kind: np.ndarray  # index into KINDS, or a negative code: core.batch.NULL_TEXT, NULL_IMAGE
    length: np.ndarray  # tokens, the two enclosing ones included
    position: np.ndarray  # of the first token
    example: np.ndarray
    loss: np.ndarray
    special: np.ndarray
    opens: np.ndarray
    mode: np.ndarray  # CAUSAL, FULL or NOISE
    timestep: np.ndarray


def _rows(examples, config: ModelConfig, names: list[str]) -> tuple[_Rows, list[Item]]:
    """Walks over the items once: everything whose value depends on the item before.

    Returns:
      one row per item that leaves tokens, and the items that were not dropped.
    """
    rows, kept = [], []
    for number, items in enumerate(examples):
        position, timestep, follows_image = 0, 0.0, False
        for item in items:
            if item.kind not in KINDS:
                raise ValueError(f"{names[number]}: item of kind {item.kind!r}; there are {KINDS}")
            kind = KINDS.index(item.kind)
            if item.opens:
                timestep, follows_image = item.timestep, False
            if item.dropped:
                if config.null_token:
                    null = NULL_TEXT if kind == _TEXT else NULL_IMAGE
                    rows.append((null, 1, position, number, False, -1, True, CAUSAL, 0.0))
                position += config.null_token or kind != _TEXT
                continue
            # a frame whose first frame was dropped opens the segment in its place
            opens, follows_image = not follows_image, kind != _TEXT
            if kind == _TEXT:
                length, mode = len(item.ids) + 2, CAUSAL
            else:
                length = _image_tokens(item, config, names[number]) + 2
                mode = NOISE if kind == _TARGET and item.frame_delta is None else FULL
            draw = timestep if kind == _TARGET else -np.inf
            label = item.special_label
            rows.append((kind, length, position, number, item.loss, label, opens, mode, draw))
            kept.append(item)
            if kind == _TEXT:
                position += length
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


def _check_ids(ids: np.ndarray, example: np.ndarray, names: list[str], config: ModelConfig) -> None:
    """Refuses ids that are no rows of the embedding table; `example` has the number of each."""
    size = config.llm.vocab_size
    bad = np.flatnonzero((ids < 0) | (ids >= size))
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{names[example[first]]}: token {int(ids[first])} is outside the vocabulary of "
            f"model.llm.vocab_size={size}: another tokenizer than the model's?"
        )


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
      ValueError: an unknown kind, a token id outside the vocabulary, an image without a size or
        with more patches a side than its position table has.
    """
    names = list(names) if names is not None else [f"example {i}" for i in range(len(examples))]
    rows, kept = _rows(examples, config, names)
    number = np.repeat(np.arange(len(rows.length)), rows.length)
    offset = np.arange(len(number)) - np.repeat(np.cumsum(rows.length) - rows.length, rows.length)
    kind = rows.kind[number]
    is_null = kind < 0
    first, last = (offset == 0) & ~is_null, (offset == rows.length[number] - 1) & ~is_null
    inner = ~first & ~last & ~is_null
    is_text = kind == _TEXT

    tokens = config.tokens
    token = np.where(is_null, kind, -1).astype(np.int32)
    token[first] = np.where(is_text[first], tokens.text_start, tokens.image_start)
    token[last] = np.where(is_text[last], tokens.text_end, tokens.image_end)
    texts = [item.ids for item in kept if item.kind == "text" and len(item.ids)]
    ids, is_id = _concatenate(texts, np.int64), inner & is_text
    special = rows.special[number]
    owner = rows.example[number]
    _check_ids(ids, owner[is_id], names, config)
    _check_ids(rows.special[rows.special >= 0], rows.example[rows.special >= 0], names, config)
    token[is_id] = ids

    is_ce = np.where(last, special >= 0, is_text & rows.loss[number])
    following = np.append(token[1:], -1)  # text tokens predict the next one
    is_latent = inner & ((kind == _CLEAN) | (kind == _TARGET))
    vit_items = [item for item in kept if item.kind == "vit"]
    gen_items = [item for item in kept if item.kind in ("clean", "target")]
    is_vit_row, is_gen_row = rows.kind == _VIT, rows.kind >= _CLEAN
    place_of = lambda own, side: _concatenate(
        [_place(item, config, side) for item in own], np.int32
    )
    return Layout(
        stream=np.where(is_latent, GEN, UND).astype(np.int8),
        id=token,
        is_patch=inner & (kind == _VIT),
        position=(rows.position[number] + np.where(is_text, offset, 0)).astype(np.int32)[None],
        example=owner.astype(np.int32),
        segments=_segments(rows),
        ce_index=np.flatnonzero(is_ce).astype(np.int32),
        ce_label=np.where(last, special, following)[is_ce].astype(np.int32),
        ce_weight=np.where(last[is_ce], 1.0, (rows.length[number[is_ce]] - 1.0) ** -0.5).astype(
            np.float32
        ),
        flow_index=np.flatnonzero(inner & (kind == _TARGET)).astype(np.int32),
        timestep=rows.timestep[number][is_latent],
        place=place_of(gen_items, config.latents.max_side),
        vit_place=place_of(vit_items, config.patch_side),
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
