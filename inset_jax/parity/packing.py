"""Replay of packed layouts, and the way from a reference's plan to our items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from inset_jax.core import visibility
from inset_jax.core.config import ModelConfig, TokenConfig, edit
from inset_jax.data import layout as layouts
from inset_jax.data.layout import GEN, Item, Layout
from inset_jax.parity.report import Arrays, Golden

KINDS = {"text": "text", "vit_image": "vit", "vae_image": "clean"}
DROPOUT_NAMES = {"text": "text", "vit": "vit_image", "vae": "vae_image"}


def items_of(
    plan: Sequence[Mapping], config: ModelConfig, dropped: Sequence[str] = ()
) -> list[Item]:
    """Turns one sample of a reference's sequence plan into items.

    Args:
      dropped: plan types whose every item that may be dropped is dropped.
    """
    items = []
    for entry in plan:
        is_target = entry["type"] == "vae_image" and entry["loss"] == 1
        kind = "target" if is_target else KINDS[entry["type"]]
        label = entry["special_token_label"] if entry["special_token_loss"] else None
        stride = config.vit.patch if kind == "vit" else config.latent_stride
        items.append(
            Item(
                kind=kind,
                ids=entry.get("text_ids", ()),
                size=tuple(n // stride for n in entry["image_hw"]) if kind != "text" else None,
                loss=entry["loss"] == 1,
                special_label=-1 if label is None else label,
                dropped=entry["enable_cfg"] == 1 and entry["type"] in dropped,
                frame_delta=entry.get("frame_delta"),
                opens=entry.get("split_start", True),
            )
        )
    return items


def packed(laid: Layout) -> dict[str, np.ndarray]:
    """A layout under the reference's names."""
    segments, is_latent = laid.segments, laid.stream == GEN
    samples = np.unique(segments.example)
    return {
        "sequence_length": np.asarray(len(laid.stream)),
        "sample_lens": np.asarray([segments.length[segments.example == n].sum() for n in samples]),
        "splits_per_sample": np.asarray([(segments.example == n).sum() for n in samples]),
        "split_lens": segments.length,
        "attn_modes": segments.kind,
        "packed_position_ids": laid.position[0],
        "packed_text_ids": laid.id[laid.id >= 0],
        "packed_text_indexes": np.flatnonzero(laid.id >= 0),
        "packed_vit_token_indexes": np.flatnonzero(laid.is_patch),
        "packed_vae_token_indexes": np.flatnonzero(is_latent),
        # the reference lists the texts and markers of the und expert before its ViT slots
        "packed_und_token_indexes": np.concatenate(
            [np.flatnonzero(laid.id >= 0), np.flatnonzero(laid.is_patch)]
        ),
        "packed_gen_token_indexes": np.flatnonzero(is_latent),
        "packed_vit_position_ids": laid.vit_place,
        "packed_latent_position_ids": laid.place,
        "vit_token_seqlens": laid.vit_length,
        "packed_timesteps": laid.timestep,
        "mse_loss_indexes": laid.flow_index,
        "ce_loss_indexes": laid.ce_index,
        "packed_label_ids": laid.ce_label,
        "ce_loss_weights": laid.ce_weight,
        "patchified_vae_latent_shapes": np.asarray([item.size for item in laid.gen_items]),
    }


def masks(laid: Layout) -> list[np.ndarray]:
    """Each example's mask, bool [query, key], from the intervals alone."""
    intervals = visibility.reading_intervals(laid.segments)
    whole = visibility.dense(intervals, len(laid.stream))
    ends = np.searchsorted(laid.example, np.unique(laid.example), side="right")
    starts = [0, *ends[:-1]]
    return [whole[a:b, a:b] for a, b in zip(starts, ends, strict=True)]


def replay_packing(golden: Golden):
    special = golden.arrays["special"]
    tokens = TokenConfig(
        special["bos_token_id"],
        special["eos_token_id"],
        special["start_of_image"],
        special["end_of_image"],
    )
    # the geometry that the file's conventions state: tables of 16 x 16, patches of 14 and 16 pixels
    sides = {"vit__side": 16, "connector_side": 16, "latents__max_side": 16}
    config = edit(ModelConfig(tokens=tokens), **sides)
    ours = {}
    # a JSON list may be ragged; as text it compares exactly and still takes part
    whole = {name: _array(value) for name, value in golden.arrays.items() if name != "cases"}
    stored = Arrays(whole, golden.arrays.read)
    for case, content in golden.arrays["cases"].items():
        content = Arrays(content)
        result = _packed_case(content, config)
        stored.read |= {f"{case}/{name}" for name in content.read}
        for name, value in content.items():
            if name != "packed":
                stored[f"{case}/{name}"] = _array(value)
        for name, value in content["packed"].items():
            stored[f"{case}/packed/{name}"] = _array(value)
            ours[f"{case}/packed/{name}"] = _array(result[name]) if name in result else None
    return golden._replace(arrays=stored), ours


def _packed_case(content: Mapping, config: ModelConfig) -> dict:
    dropped = [DROPOUT_NAMES[name] for name, p in content.get("dropout", {}).items() if p == 1.0]
    draws = np.random.RandomState(content["numpy_seed"])  # the reference's generator
    examples = []
    for plan in content["plan"]:
        items = items_of(plan, config, dropped)
        examples.append([_drawn(item, draws) for item in items])
    laid = layouts.layout(examples, config)
    result = packed(laid)
    kinds = np.asarray(["causal", "full", "noise"])
    is_latent = laid.stream == GEN
    per_image = lambda values, lengths: (
        [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]
        if len(lengths)
        else []
    )
    result |= {
        "length": result["sequence_length"],
        "attn_modes": kinds[result["attn_modes"]],
        "token_type": np.where(is_latent, "vae", np.where(laid.is_patch, "vit", "text")),
        "token_id": laid.id,
        "vae_latent_shapes": result["patchified_vae_latent_shapes"],
        "packed_vit_position_ids": per_image(laid.vit_place, laid.vit_length),
        "packed_latent_position_ids": per_image(laid.place, laid.gen_length),
        "dense_masks_rows": [
            ["".join("01"[bit] for bit in row) for row in mask.astype(int)] for mask in masks(laid)
        ],
    }
    return result


def _drawn(item: Item, draws: np.random.RandomState) -> Item:
    is_first = item.kind == "target" and item.opens and not item.dropped
    return item._replace(timestep=draws.randn()) if is_first else item


def _array(value) -> np.ndarray:
    """A JSON value, or our array, as an array: numbers as such, ragged and text as JSON."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list) and all(isinstance(v, (int, float, type(None))) for v in value):
        value = [-np.inf if v is None else v for v in value]  # the timestep of a clean image
        return np.asarray(value, np.float64)
    if isinstance(value, (int, float)):
        return np.asarray(value)
    return np.asarray(json.dumps(value))
