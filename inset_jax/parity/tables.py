"""Replays of what has no weights: tables, schedules, image transforms, names of tensors."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
from PIL import Image

from inset_jax.checkpoint import names
from inset_jax.core.config import ModelConfig, SizeLimits
from inset_jax.data import image as images
from inset_jax.model import bridge, flow, inset, layers, vae
from inset_jax.parity.report import Arrays, Golden

ROPE_THETA = 1e6  # of the stored rotation tables


def replay_tables(golden: Golden):
    stored, ours = golden.arrays, {}
    for name in stored:
        if found := re.fullmatch(r"sincos2d_dim(\d+)_grid(\d+)(_rows)?", name):
            table = bridge.sincos_table(int(found[1]), int(found[2]))
            ours[name] = table[stored["sincos2d_rows_index"]] if found[3] else table
        elif found := re.fullmatch(r"schedule_n(\d+)_shift([\d.]+)_(t|dt)", name):
            points, steps = flow.schedule(int(found[1]), float(found[2]))
            ours[name] = points if found[3] == "t" else steps
        elif found := re.fullmatch(r"train_timestep_shift([\d.]+)", name):
            ours[name] = flow.timestep(jnp.asarray(stored["train_timestep_raw"]), float(found[1]))
        elif name.startswith("timestep_freq_embedding"):
            ours[name] = bridge.time_waves(jnp.asarray(stored["timestep_t"]))
    if "rope_pos" in stored:
        ours |= _rotation(stored)
    if "conv_weight" in stored:
        ours |= _patch_embedding(stored)
    return golden, ours


def _rotation(stored) -> dict[str, np.ndarray]:
    head_dim = stored["rope_q"].shape[-1]
    position = jnp.asarray(stored["rope_pos"], jnp.int32)[None, None]
    cos_sin = layers.rotary(position, head_dim, ROPE_THETA)
    # the reference repeats cosine and sine for the second half of the head
    ours = {
        f"rope_{name}": np.tile(np.asarray(half)[0, :, 0], 2)
        for name, half in zip(("cos", "sin"), cos_sin, strict=True)
    }
    for name in ("q", "k"):
        ours[f"rope_{name}_out"] = layers.rotate(
            jnp.asarray(stored[f"rope_{name}"])[None], cos_sin
        )[0]
    return ours


def _patch_embedding(stored) -> dict[str, np.ndarray]:
    weight = names.patch_as_linear(stored["conv_weight"])
    patch = stored["conv_weight"].shape[-1]
    tokens = images.patchify(stored["conv_image"].transpose(1, 2, 0), patch)
    return {
        "conv_linear_weight": weight,
        "conv_patch_embeds": tokens @ weight.T + stored["conv_bias"],
    }


def replay_transforms(golden: Golden):
    stored, ours = golden.arrays, {}
    for name in stored:
        folder, _, leaf = name.rpartition("/")
        if leaf == "output_wh":
            config, _, divisor = folder.rpartition("/")
            limits = _limits(stored[f"{config}/params_max_min_stride_maxpixels"])
            divide = int(divisor.removeprefix("img_num"))
            sizes = [images.resized_size(*wh, limits, divide) for wh in stored["input_wh"].tolist()]
            ours[name] = np.asarray(sizes)
        elif leaf in ("output_chw", "patchified") or leaf.startswith("pos_"):
            if name not in ours:  # all of a folder come together
                ours |= _pixels(folder, stored)
        elif folder == "posids":
            mode, rows, columns, patch, side = re.fullmatch(
                r"(\w+?)_h(\d+)_w(\d+)_p(\d+)_S(\d+)", leaf
            ).groups()
            ours[name] = images.place_ids(
                int(rows) // int(patch),
                int(columns) // int(patch),
                int(side),
                interpolate=mode == "interpolate",
            )
        elif leaf == "output":
            picture = images.to_rgb(Image.fromarray(stored[f"{folder}/input"]))
            ours[name] = np.asarray(picture)
    return golden, ours


def _limits(parameters: np.ndarray) -> SizeLimits:
    max_side, min_side, stride, max_pixels = map(int, parameters)
    return SizeLimits(max_side, min_side, stride, max_pixels)


def _pixels(folder: str, stored) -> dict[str, np.ndarray]:
    max_side, min_side, stride = map(int, stored[f"{folder}/args_max_min_stride"])
    limits = SizeLimits(max_side, min_side, stride)
    picture = Image.fromarray(stored[f"{folder}/input_uint8_hwc"])
    pixels = images.normalize(images.resize(picture, limits))
    ours = {
        f"{folder}/output_chw": pixels.transpose(2, 0, 1),
        f"{folder}/patchified": images.patchify(pixels, stride),
    }
    rows, columns = pixels.shape[0] // stride, pixels.shape[1] // stride
    for name in stored:
        if found := re.fullmatch(rf"{folder}/pos_(\w+)_S(\d+)", name):
            spread = found[1] == "interpolate"
            ours[name] = images.place_ids(rows, columns, int(found[2]), interpolate=spread)
    return ours


def replay_manifest(golden: Golden):
    """Names and shapes of the released weights, from our table and the full-size definitions."""
    config = ModelConfig()
    part, shapes = {
        "manifest_7b.json": ("model", lambda: inset.abstract(config)[1]),
        "manifest_ae.json": ("vae", lambda: vae.abstract(config.vae)[1]),
    }[golden.path.name]
    leaves = names.flatten({part: shapes()})
    found, foreign = names.links({path: leaf.shape for path, leaf in leaves.items()})
    assert not foreign, foreign
    ours = {
        source: np.asarray(names.source_shape(link, leaves[link.path].shape))
        for source, link in found.items()
    }
    stored = {name: np.asarray(entry["shape"]) for name, entry in golden.arrays.items()}
    # a tensor of ours that the file lacks has to fail too
    stored |= {name: np.asarray(0) for name in ours if name not in stored}
    return golden._replace(arrays=Arrays(stored)), ours
