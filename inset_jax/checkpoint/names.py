"""The one table between BAGEL's tensor names and our parameters, read in both directions.

A row pairs a BAGEL name with a path of our nested dict. A placeholder stands for a number:

  * `{layer}` occurs in BAGEL's name alone: our parameter holds all layers stacked in front, and the
    tensor is one slice of it;
  * any other placeholder occurs on both sides and is copied.

So the table fits any depth and width. Nothing here touches an array larger than it is given, and
nothing needs JAX: conversion reads and writes tensor by tensor through `Link`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

VERSION = 1  # of this table; stored in the provenance of what was converted with it


class Row(NamedTuple):
    """One line of the table."""

    source: str  # BAGEL's tensor name, with placeholders
    path: str  # our parameter, "model/..." (ema.safetensors) or "vae/..." (ae.safetensors)
    transform: str = "same"  # a name in AXES


class Link(NamedTuple):
    """One BAGEL tensor and the parameter, or the slice of a stacked one, that holds its numbers."""

    source: str
    path: str
    layer: int | None  # slice along the first dim; None when the tensor is the whole parameter
    transform: str


# transform -> the axes of BAGEL's tensor in our order; None leaves them
AXES: dict[str, tuple[int, ...] | None] = {
    "same": None,
    "linear": (1, 0),  # [out, in] -> [in, out]
    "conv": (2, 3, 1, 0),  # [out, in, row, column] -> [row, column, in, out]
}


def _linear(source: str, path: str, bias: bool = True) -> tuple[Row, ...]:
    weight = Row(f"{source}.weight", f"{path}/kernel", "linear")
    return (weight, Row(f"{source}.bias", f"{path}/bias")) if bias else (weight,)


def _conv(source: str, path: str) -> tuple[Row, ...]:
    return Row(f"{source}.weight", f"{path}/kernel", "conv"), Row(f"{source}.bias", f"{path}/bias")


def _norm(source: str, path: str, bias: bool = True) -> tuple[Row, ...]:
    scale = Row(f"{source}.weight", f"{path}/scale")
    return (scale, Row(f"{source}.bias", f"{path}/bias")) if bias else (scale,)


def _expert(expert: str, suffix: str) -> tuple[Row, ...]:
    """Rows of one expert of the language model; BAGEL marks the generation expert by a suffix."""
    source, path = "language_model.model.layers.{layer}", f"model/llm/layers/{expert}"
    attention = f"{path}/attention"
    return (
        *_norm(f"{source}.input_layernorm{suffix}", f"{path}/input_norm", bias=False),
        *_linear(f"{source}.self_attn.q_proj{suffix}", f"{attention}/query"),
        *_linear(f"{source}.self_attn.k_proj{suffix}", f"{attention}/key"),
        *_linear(f"{source}.self_attn.v_proj{suffix}", f"{attention}/value"),
        *_linear(f"{source}.self_attn.o_proj{suffix}", f"{attention}/out", bias=False),
        *_norm(f"{source}.self_attn.q_norm{suffix}", f"{attention}/query_norm", bias=False),
        *_norm(f"{source}.self_attn.k_norm{suffix}", f"{attention}/key_norm", bias=False),
        *_norm(f"{source}.post_attention_layernorm{suffix}", f"{path}/post_norm", bias=False),
        *_linear(f"{source}.mlp{suffix}.gate_proj", f"{path}/mlp/gate", bias=False),
        *_linear(f"{source}.mlp{suffix}.up_proj", f"{path}/mlp/up", bias=False),
        *_linear(f"{source}.mlp{suffix}.down_proj", f"{path}/mlp/down", bias=False),
        *_norm(f"language_model.model.norm{suffix}", f"model/llm/norm/{expert}", bias=False),
    )


def _vit() -> tuple[Row, ...]:
    source, path = "vit_model.vision_model", "model/vit"
    layer = f"{source}.encoder.layers.{{layer}}"
    attention = f"{path}/layers/attention"
    return (
        # BAGEL's file holds the patch convolution as a linear layer on (row, column, channel)
        *_linear(f"{source}.embeddings.patch_embedding", f"{path}/patch"),
        Row(f"{source}.embeddings.position_embedding.weight", f"{path}/position/table"),
        *_norm(f"{layer}.layer_norm1", f"{path}/layers/norm1"),
        *_linear(f"{layer}.self_attn.q_proj", f"{attention}/query"),
        *_linear(f"{layer}.self_attn.k_proj", f"{attention}/key"),
        *_linear(f"{layer}.self_attn.v_proj", f"{attention}/value"),
        *_linear(f"{layer}.self_attn.out_proj", f"{attention}/out"),
        *_norm(f"{layer}.layer_norm2", f"{path}/layers/norm2"),
        *_linear(f"{layer}.mlp.fc1", f"{path}/layers/mlp/fc1"),
        *_linear(f"{layer}.mlp.fc2", f"{path}/layers/mlp/fc2"),
        *_norm(f"{source}.post_layernorm", f"{path}/norm"),
    )


def _vae_block(source: str, path: str) -> tuple[Row, ...]:
    """Rows of one residual block; the shortcut exists where the number of channels changes."""
    return (
        *_norm(f"{source}.norm1", f"{path}/norm1"),
        *_conv(f"{source}.conv1", f"{path}/conv1"),
        *_norm(f"{source}.norm2", f"{path}/norm2"),
        *_conv(f"{source}.conv2", f"{path}/conv2"),
        *_conv(f"{source}.nin_shortcut", f"{path}/nin_shortcut"),
    )


def _vae_half(half: str, stage: str, resample: str) -> tuple[Row, ...]:
    """Rows of the encoder or the decoder of the autoencoder, whose tree mirrors BAGEL's names."""
    path = f"vae/{half}"
    levels, level_path = f"{half}.{stage}.{{level}}", f"{path}/{stage}/{{level}}"
    return (
        *_conv(f"{half}.conv_in", f"{path}/conv_in"),
        *_vae_block(f"{levels}.block.{{block}}", f"{level_path}/block/{{block}}"),
        *_conv(f"{levels}.{resample}.conv", f"{level_path}/{resample}/conv"),
        *_vae_block(f"{half}.mid.block_{{block}}", f"{path}/mid/block_{{block}}"),
        *_norm(f"{half}.mid.attn_1.norm", f"{path}/mid/attn_1/norm"),
        *(
            row
            for name in ("q", "k", "v", "proj_out")
            for row in _conv(f"{half}.mid.attn_1.{name}", f"{path}/mid/attn_1/{name}")
        ),
        *_norm(f"{half}.norm_out", f"{path}/norm_out"),
        *_conv(f"{half}.conv_out", f"{path}/conv_out"),
    )


TABLE: tuple[Row, ...] = (
    Row("language_model.model.embed_tokens.weight", "model/llm/embed/table"),
    *_expert("und", ""),
    *_expert("gen", "_moe_gen"),
    *_linear("language_model.lm_head", "model/llm/head", bias=False),
    *_vit(),
    *_linear("connector.fc1", "model/connector/fc1"),
    *_linear("connector.fc2", "model/connector/fc2"),
    Row("vit_pos_embed.pos_embed", "model/connector_position/table"),  # frozen sin-cos
    *_linear("time_embedder.mlp.0", "model/time/fc1"),
    *_linear("time_embedder.mlp.2", "model/time/fc2"),
    *_linear("vae2llm", "model/latent_in"),
    *_linear("llm2vae", "model/latent_out"),
    Row("latent_pos_embed.pos_embed", "model/latent_position/table"),  # frozen sin-cos
    *_vae_half("encoder", "down", "downsample"),
    *_vae_half("decoder", "up", "upsample"),
)

PATCH_WEIGHT = "vit_model.vision_model.embeddings.patch_embedding.weight"


def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r"{(\w+)}", pattern)
    text = "".join(
        f"(?P<{p}>0|[1-9][0-9]*)" if i % 2 else re.escape(p) for i, p in enumerate(parts)
    )
    return re.compile(text)


@functools.cache
def _compiled() -> tuple[tuple[Row, re.Pattern, re.Pattern], ...]:
    return tuple((row, _regex(row.source), _regex(row.path)) for row in TABLE)


def from_source(source: str) -> Link | None:
    """Returns where a BAGEL tensor goes, or None for a name that no row matches."""
    for row, pattern, _ in _compiled():
        if found := pattern.fullmatch(source):
            numbers = found.groupdict()
            layer = numbers.get("layer")
            return Link(
                source,
                row.path.format(**numbers),
                None if layer is None else int(layer),
                row.transform,
            )
    return None


def from_path(path: str, shape: tuple[int, ...]) -> tuple[Link, ...]:
    """Returns the BAGEL tensors that fill one parameter, slice by slice; () for an unknown path."""
    for row, _, pattern in _compiled():
        if found := pattern.fullmatch(path):
            numbers = found.groupdict()
            if "{layer}" not in row.source:
                return (Link(row.source.format(**numbers), path, None, row.transform),)
            return tuple(
                Link(row.source.format(layer=layer, **numbers), path, layer, row.transform)
                for layer in range(shape[0])
            )
    return ()


def links(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Link], list[str]]:
    """Returns every BAGEL tensor of a model by name, and the parameters that BAGEL does not have.

    Args:
      shapes: parameter path -> shape, as `flatten` gives it for the whole tree {"model", "vae"}.
    """
    found, foreign = {}, []
    for path, shape in shapes.items():
        rows = from_path(path, shape)
        if not rows:
            foreign.append(path)
        for link in rows:
            assert link.source not in found, f"{link.source} fills two parameters"
            found[link.source] = link
    return found, foreign


def source_shape(link: Link, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the BAGEL tensor behind a (slice of a) parameter of this shape."""
    shape = tuple(shape) if link.layer is None else tuple(shape[1:])
    axes = AXES[link.transform]
    return shape if axes is None else tuple(shape[axes.index(i)] for i in range(len(axes)))


def to_ours(link: Link, tensor: np.ndarray) -> np.ndarray:
    """Returns a BAGEL tensor with its axes in our order; a view."""
    axes = AXES[link.transform]
    return tensor if axes is None else tensor.transpose(axes)


def to_source(link: Link, parameter: np.ndarray) -> np.ndarray:
    """Returns the BAGEL tensor inside a parameter; a view."""
    part = parameter if link.layer is None else parameter[link.layer]
    axes = AXES[link.transform]
    return part if axes is None else part.transpose(np.argsort(axes))


def patch_as_linear(weight: np.ndarray) -> np.ndarray:
    """Returns SigLIP's patch convolution [M, channel, row, column] as BAGEL's [M, X]."""
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by path "a/b/c", in the dict's order."""
    return dict(_leaves(tree, prefix))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _leaves(node, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", node


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict whose `flatten` is `leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
