"""Replays of the autoencoder and of the ViT with its connector."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from inset_jax.checkpoint import bagel, convert, differences, load
from inset_jax.core.batch import Visibility
from inset_jax.core.config import ComputeConfig, ModelConfig
from inset_jax.data import image as images
from inset_jax.model import inset, vae
from inset_jax.parity.report import Golden

# float32 and nothing dropped between passes: the reference ran so
COMPUTE = ComputeConfig(dtype="float32", remat="none")


class Reference(NamedTuple):
    """The golden folder's own small checkpoint."""

    config: ModelConfig
    params: dict  # {"model": ..., "vae": ...}, float32

    def model(self, params=None) -> inset.Inset:
        params = self.params["model"] if params is None else params
        return inset.bind(inset.abstract(self.config)[0], params)

    def vae(self) -> vae.Vae:
        return vae.bind(vae.abstract(self.config.vae)[0], self.params["vae"])


@cache
def reference(folder: Path, weights: Path | None = None) -> Reference:
    """Loads `folder`/ckpt, a BAGEL-format folder, strictly; or other weights of the same model."""
    config = bagel.config_from_bagel(folder / "ckpt")
    if weights is not None:
        loaded = load.load_any(weights)
        if unlike := differences.models(loaded.config, config):
            raise ValueError(f"{weights}: is another model than {folder}'s: {'; '.join(unlike)}")
        return Reference(config, loaded.params)
    params = convert.load_bagel(folder / "ckpt", config)
    return Reference(config, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params))


def to_nhwc(array: np.ndarray) -> jax.Array:
    return jnp.asarray(rearrange(array, "n c h w -> n h w c"))


def to_nchw(array: jax.Array) -> np.ndarray:
    return np.asarray(rearrange(array, "n h w c -> n c h w"))


def replay_vae(golden: Golden):
    stored, ref = golden.arrays, reference(golden.folder, golden.weights)
    patch, model = ref.config.latents.patch, ref.vae()
    encode, decode = jax.jit(model.encode), jax.jit(model.decode)
    image, noise = to_nhwc(stored["image"]), to_nhwc(stored["noise"])
    moments, seen = jax.jit(lambda x: model.encoder(x))(image)
    mean, log_variance = jax.jit(model.encode_moments)(image)
    encoded = encode(image, noise)
    _, seen_back = jax.jit(lambda x: model.decoder(model.unscale(x)))(encoded)
    tokens = vae.patchify(encoded, patch)
    rows, columns = encoded.shape[1] // patch, encoded.shape[2] // patch
    back = vae.unpatchify(tokens, rows, patch)
    ours = {
        "moments": to_nchw(moments),
        "mean": to_nchw(mean),
        "logvar": to_nchw(log_variance),
        "encoded": to_nchw(encoded),
        "encoded_mean_only": to_nchw(encode(image, None)),
        "decoded_from_encoded": to_nchw(decode(encoded)),
        "latent_tokens": tokens[0],
        "latent_tokens_hw": np.asarray([rows, columns]),
        "latent_position_ids": images.place_ids(rows, columns, ref.config.latents.max_side),
        "decode_image_uint8": vae.to_uint8(decode(back))[0],
    }
    ours |= {f"act/{name}": to_nchw(value) for name, value in (seen | seen_back).items()}
    for name in stored:
        if found := re.fullmatch(r"decoded(\d+)", name):
            ours[name] = to_nchw(decode(to_nhwc(stored[f"latent{found[1]}"])))
    if "padded_images" in stored:
        padded, draws = to_nhwc(stored["padded_images"]), to_nhwc(stored["padded_noise"])
        ours["padded_latent"] = to_nchw(encode(padded, draws))
        height, width = stored["small_alone_latent"].shape[2:]
        pixels = ref.config.vae.downsample
        small = padded[1:2, : height * pixels, : width * pixels]
        ours["small_alone_latent"] = to_nchw(encode(small, draws[1:2, :height, :width]))
    return golden, ours


def replay_vit(golden: Golden):
    stored, ref = golden.arrays, reference(golden.folder, golden.weights)
    patch, side = ref.config.vit.patch, ref.config.patch_side
    count = sum(bool(re.fullmatch(r"image\d+", name)) for name in stored)
    pixels = [stored[f"image{n}"].transpose(1, 2, 0) for n in range(count)]
    grids = [(p.shape[0] // patch, p.shape[1] // patch) for p in pixels]
    lengths = np.asarray([rows * columns for rows, columns in grids])
    place = np.concatenate([images.place_ids(*grid, side) for grid in grids])
    tokens = np.concatenate([images.patchify(p, patch) for p in pixels])
    ends = np.cumsum(lengths)
    visibility = Visibility(
        jnp.asarray(np.repeat(ends - lengths, lengths), jnp.int32)[None],
        jnp.asarray(np.repeat(ends, lengths), jnp.int32)[None],
    )

    def run(params):
        model = ref.model(params)
        places = jnp.asarray(place)[None]
        patches = jnp.asarray(tokens)[None]
        first = model.vit.patch(patches) + model.vit.position(places, jnp.float32)
        final, layers = model.vit(patches, places, visibility, COMPUTE)
        entering = model.images(patches, places, visibility, COMPUTE)
        table = model.connector_position(places, jnp.float32)
        return first, layers, final, model.connector(final), table, entering

    first, layers, final, connected, table, entering = jax.jit(run)(ref.params["model"])
    return golden, {
        "packed_vit_tokens": tokens,
        "packed_vit_position_ids": place,
        "vit_token_seqlens": lengths,
        "cu_seqlens": np.concatenate([[0], ends]),
        "embeddings": first[0],
        "hidden_layers": layers[:, 0],
        "final": final[0],
        "connector": connected[0],
        "pos_embed": table[0],
        "connector_plus_pos": entering[0],
    }
