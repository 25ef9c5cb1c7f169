"""A model from its ancestors: Qwen2.5, SigLIP and the autoencoder, as BAGEL's own training begins.

Hugging Face's names of both are BAGEL's with a prefix in front. Beyond copying:

  * the generation expert begins as a copy of the understanding one;
  * norms of queries and keys, which Qwen2.5 does not have, are one;
  * a language head that shares the embedding's numbers becomes a copy of them;
  * the ViT's patch convolution becomes a linear layer, its last layer and its head stay behind;
  * its position table is interpolated where another size is wanted (bicubic, see `interpolate`);
  * connector, time embedding and latent layers are random, the latent head zero (`fresh`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from inset_jax.checkpoint import (
    autoencoder,
    bagel,
    convert,
    differences,
    errors,
    finish,
    json_files,
    names,
    provenance,
    tensors,
    to_orbax,
    tokenizer,
)
from inset_jax.checkpoint import plan as plans
from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.plan import Feed, Options, Plan
from inset_jax.checkpoint.to_orbax import Manner, Recipe
from inset_jax.core.config import LatentConfig, ModelConfig, VaeConfig

LLM, VIT = "language_model.", "vit_model."  # BAGEL's prefixes before Hugging Face's names
EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
# what SigLIP's files hold beside the layers that run; {last} is the number of the last layer
ASIDE = (
    "vision_model.encoder.layers.{last}.*",
    "vision_model.head.*",
    "text_model.*",
    "logit_scale",
    "logit_bias",
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "generation_config.json"),
)
PREPROCESSOR = "preprocessor_config.json"
VIT_DEFAULTS = {  # of Hugging Face's SiglipVisionConfig, whose files leave out what they equal
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


class Ancestors(NamedTuple):
    """Where the parts of a model come from, and the sizes that they leave open."""

    llm: pathlib.Path  # a Qwen2.5 folder
    vit: pathlib.Path  # a SigLIP folder
    vae: pathlib.Path  # ae.safetensors
    vit_side: int = 70  # rows and columns of the ViT's position table
    connector_side: int = 70  # of the table added after the connector
    latent_side: int = LatentConfig.max_side


def init(
    ancestors: Ancestors, target: str | os.PathLike, options: Options, manner: Manner
) -> dict[str, Any]:
    """Writes a new model as a checkpoint, or goes on where an earlier call was interrupted.

    Returns:
      what was done, as JSON can hold it.

    Raises:
      ValueError: a folder is not of that model, or tensors are missing, unexpected or misshapen;
        `errors.Damaged`, `errors.Unwritable`.
    """
    config = config_of(ancestors)
    source, parts = _open(ancestors)
    plan = plan_of(ancestors, source, config, options)

    def describe(sha256: Mapping[str, str]) -> dict[str, Any]:
        chain = [
            provenance.entry(kind, folder, files, sha256) for kind, (folder, files) in parts.items()
        ]
        own = {"kind": "init", "time": provenance.now(), "seed": options.seed, **plan.notes}
        return {"provenance": [*chain, {**own, "dtype": options.dtype}], "weights": "model"}

    side = lambda: _side(ancestors, config)
    report = {"command": "init", "source": [str(ancestors.llm), str(ancestors.vit)]}
    return report | to_orbax.run(
        Place(target), plan, source, Recipe(options, describe, side), manner
    )


def config_of(ancestors: Ancestors) -> ModelConfig:
    """Reads the sizes of the ancestors' configs.

    Raises:
      ValueError: a config is missing or asks for what is not done here.
    """
    llm_file, vit_file = ancestors.llm / "config.json", ancestors.vit / "config.json"
    llm = bagel.to_llm_config(json_files.read(llm_file), llm_file)
    values = json_files.read(vit_file)
    values = {**VIT_DEFAULTS, **values.get("vision_config", values)}
    vit = bagel.to_vit_config(values, vit_file)
    return ModelConfig(
        llm=llm,
        vit=dataclasses.replace(vit, side=ancestors.vit_side),
        vae=autoencoder.read_config(ancestors.vae) or VaeConfig(),
        latents=LatentConfig(max_side=ancestors.latent_side),
        tokens=tokenizer.special_ids(ancestors.llm, llm.vocab_size),
        connector_side=ancestors.connector_side,
    )


def plan_of(
    ancestors: Ancestors, source: tensors.Tensors, config: ModelConfig, options: Options
) -> Plan:
    """Decides where every BAGEL tensor comes from.

    Raises:
      ValueError: by name, every tensor that is missing, unexpected or misshapen.
    """
    wanted = convert.shapes(config)
    links, _ = names.links(wanted)
    feeds, expected = [], {}
    for link in links.values():
        feed = _feed(link, source, wanted, config, options.seed)
        feeds.append(feed)
        if feed.source is not None:
            shape = names.source_shape(link, wanted[link.path])
            expected[feed.source] = _there(feed, shape, source)
    aside = [name for name in source if _is_aside(name, config)]
    found = {name: source[name].shape for name in source if name not in aside}
    if lines := differences.shapes(found, expected):
        first = (
            f"{ancestors.llm}, {ancestors.vit}, {ancestors.vae}: not the tensors of these models"
        )
        wrong = differences.by_kind(found, expected)
        raise errors.Unlike("\n".join([f"{first}:", *lines]), wrong)
    notes = {
        "changed": _by_words(feeds),
        "set_aside": {"tensors": len(aside), "patterns": list(ASIDE)},
    }
    return plans.complete(config, feeds, source, options, notes)


def _feed(
    link: names.Link,
    source: tensors.Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    seed: int,
) -> Feed:
    name = link.source
    if name.startswith(LLM):
        there = name.removeprefix(LLM).replace("_moe_gen", "")
        how = "copied from the understanding expert" if "_moe_gen" in name else ""
        if ("q_norm" in name or "k_norm" in name) and there not in source:
            return plans.made(link, wanted, seed)
        if there == "lm_head.weight" and there not in source:
            return Feed(link, EMBEDDING, None, "copied from the token embedding (tied)")
        return Feed(link, there, None, how)
    if name.startswith(VIT):
        there = name.removeprefix(VIT)
        if name == names.PATCH_WEIGHT:
            return Feed(link, there, names.patch_as_linear, "patch convolution as a linear layer")
        if there == POSITIONS and there in source:
            side = math.isqrt(source[there].shape[0])
            if side != config.vit.side:
                make = functools.partial(interpolate, side=config.vit.side)
                how = f"bicubic from {side}x{side} to {config.vit.side}x{config.vit.side}"
                return Feed(link, there, make, how)
        return Feed(link, there)
    if link.path.startswith("vae/"):
        return Feed(link, name)
    return plans.made(link, wanted, seed)


def _there(feed: Feed, shape: tuple[int, ...], source: tensors.Tensors) -> tuple[int, ...]:
    """Returns the shape that a feed's tensor must have in its file."""
    if feed.make is names.patch_as_linear:
        side = math.isqrt(shape[1] // 3)
        return (shape[0], 3, side, side)
    if feed.source == POSITIONS and feed.make is not None:
        return (math.isqrt(source[POSITIONS].shape[0]) ** 2, shape[1])
    return shape


def _is_aside(name: str, config: ModelConfig) -> bool:
    return any(fnmatch.fnmatchcase(name, p.format(last=config.vit.layers)) for p in ASIDE)


def _by_words(feeds: list[Feed]) -> dict[str, int]:
    """How many tensors are no plain copies, by what was done."""
    found: dict[str, int] = {}
    for feed in feeds:
        if feed.how:
            found[feed.how] = found.get(feed.how, 0) + 1
    return found


def interpolate(table: np.ndarray, side: int) -> np.ndarray:
    """Resizes a square table of positions [s * s, M] to [side * side, M], row after row.

    Bicubic as PyTorch's interpolate(mode="bicubic", align_corners=False), which Hugging Face uses
    for SigLIP: Keys' kernel with a = -0.75, pixel centres at halves, edges repeated, no smoothing.
    """
    old = math.isqrt(len(table))
    along = _bicubic(old, side)
    square = table.astype(np.float64).reshape(old, old, -1)
    wide = np.einsum("ri,sj,ijm->rsm", along, along, square, optimize=True)
    return wide.reshape(side * side, -1).astype(np.float32).astype(table.dtype)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Returns the matrix [new, old] that resamples a line."""
    a = -0.75
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first, matrix = np.floor(place).astype(int), np.zeros((new, old))
    for shift in range(-1, 3):
        x = np.abs(place - (first + shift))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(matrix, (np.arange(new), np.clip(first + shift, 0, old - 1)), weight)
    return matrix


def _open(ancestors: Ancestors) -> tuple[tensors.Tensors, dict[str, Any]]:
    """Opens all files; returns them, and by kind the folder and files for the provenance."""
    stems = ("model", "pytorch_model")
    llm, _ = tensors.part_files(ancestors.llm, stems)
    vit, _ = tensors.part_files(ancestors.vit, stems)
    parts = {
        "qwen2": (ancestors.llm, [*llm, ancestors.llm / "config.json"]),
        "siglip": (ancestors.vit, [*vit, ancestors.vit / "config.json"]),
        "autoencoder": (ancestors.vae.parent, [ancestors.vae]),
    }
    return tensors.Tensors([*llm, *vit, ancestors.vae]), parts


def _side(ancestors: Ancestors, config: ModelConfig) -> Iterator[tuple[str, bytes]]:
    """Yields BAGEL's configs, the tokenizer's files and the preprocessor's."""
    for name, values in bagel.to_files(config).items():
        yield f"{finish.FILES}/{name}", (json.dumps(values, indent=2) + "\n").encode()
    files = [ancestors.llm / name for name in TOKENIZER_FILES]
    for path in itertools.chain(files, [ancestors.vit / PREPROCESSOR]):
        if path.is_file():
            yield f"{finish.FILES}/{path.name}", path.read_bytes()
    if (content := tokenizer.content(ancestors.llm)) is not None:
        yield tokenizer.FILE, content
