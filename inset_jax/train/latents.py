"""Encodes the pictures of a batch with the autoencoder and writes them into the gen stream.

Pictures of one size are encoded together and those of different sizes apart, so that a picture's
latents never depend on its neighbours. (BAGEL pads all pictures of a batch to one size and encodes
them jointly: `model.vae.zero_padded`, which parity needs and training does not.)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.core import mesh as meshes
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.data import image
from inset_jax.model import vae

MOST_AT_ONCE = 8  # pictures in one call; smaller groups are filled up to a power of two

GREY_LEVELS = image.normalize(np.arange(256, dtype=np.uint8))  # the number that each stands for


def unit_range(images: jax.Array) -> jax.Array:
    """Turns uint8 pixels into float32 in [-1, 1] as the host does, to the bit; leaves floats alone.

    By a table: XLA multiplies by the rounded reciprocal where a division is written.
    """
    if images.dtype != jnp.uint8:
        return images
    return jnp.asarray(GREY_LEVELS)[images.astype(jnp.int32)]


class LatentWriter:
    """Holds the autoencoder and one compiled encoder a picture size and group size.

    Each process encodes its own pictures on its own devices: which sizes and how many they are
    differs between processes, so nothing here may span them.
    """

    def __init__(self, config: Config, params, mesh: jax.sharding.Mesh | None = None):
        """params: the tree of the autoencoder; on a mesh of several processes, name the mesh."""
        definition, _ = vae.abstract(config.model.vae)
        dtype = jnp.dtype(config.compute.dtype)
        patch, samples = config.model.latents.patch, config.data.posterior == "sample"

        def encode(params, images: jax.Array, noise: jax.Array) -> jax.Array:
            """[B, H, W, 3] and [B, h, w, c] -> tokens [B, rows * columns, L], float32."""
            model, images = vae.bind(definition, params), unit_range(images)
            return vae.patchify(model.encode(images, noise if samples else None, dtype), patch)

        self._mesh, self.params = meshes.on_this_host(params, mesh)
        self._encode = jax.jit(encode)

    def __call__(self, pack: Pack, pictures: Sequence) -> Pack:
        """Returns the packs [P, ...] with the latents of `pictures` in place.

        Args:
          pictures: each names its pack and the first row of its tokens, with its pixels
            uint8 [H, W, 3] (or float32 in [-1, 1]) and its posterior noise [h, w, c].
        """
        if not pictures:
            return pack
        latent = np.array(pack.gen_latent)
        by_size: dict[tuple[int, ...], list] = {}
        for picture in pictures:
            by_size.setdefault(picture.image.shape, []).append(picture)
        pending = []
        for group in by_size.values():
            for start in range(0, len(group), MOST_AT_ONCE):
                some = group[start : start + MOST_AT_ONCE]
                pending.append((some, self._tokens(some)))
        for some, tokens in pending:  # after all are under way
            for picture, own in zip(some, np.asarray(tokens), strict=False):
                latent[picture.pack, picture.row : picture.row + len(own)] = own
        return pack._replace(gen_latent=latent)

    def _tokens(self, pictures: Sequence) -> jax.Array:
        """Encodes pictures of one size; rows beyond their number are filling."""
        filled = 1 << (len(pictures) - 1).bit_length()
        pictures = [*pictures, *[pictures[-1]] * (filled - len(pictures))]
        images = np.stack([p.image for p in pictures])
        noise = np.stack([p.posterior_noise for p in pictures])
        split = meshes.sharding(self._mesh, ("pack", None, None, None), images.shape)
        with jax.set_mesh(self._mesh):
            return self._encode(self.params, *jax.device_put((images, noise), split))
