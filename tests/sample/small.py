"""A small random model and pieces of sentences for it."""

import jax
import numpy as np

from configs import tiny
from inset_jax.core.config import ComputeConfig, ModelConfig, edit
from inset_jax.data.layout import Item
from inset_jax.model import inset, vae
from inset_jax.sample.plan import Picture
from inset_jax.sample.sampler import Sampler

CONFIG = edit(tiny.experiment().model, llm__layers=1, vit__layers=1)
COMPUTE = ComputeConfig(dtype="float32", attention="reference", remat="none")


def make_sampler(config: ModelConfig) -> Sampler:
    """Random parameters from NumPy: nothing is compiled, and no prediction is zero."""
    draws = np.random.default_rng(0)

    def fill(path, leaf):
        scale = path[-1].key == "scale"
        width = np.sqrt(leaf.shape[-2]) if path[-1].key == "kernel" else 5
        return (draws.normal(size=leaf.shape) / width + scale).astype(np.float32)

    shapes = {"model": inset.abstract(config)[1], "vae": vae.abstract(config.vae)[1]}
    return Sampler(config, jax.tree_util.tree_map_with_path(fill, shapes), COMPUTE)


def text(*ids):
    return Item("text", ids=ids)


def image(seed, height=28, width=42, kind="vit"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    if kind == "vit":
        return Item("vit", image=pixels)
    rows, columns = height // CONFIG.latent_stride, width // CONFIG.latent_stride
    latent = np.random.default_rng(seed).normal(size=(rows * columns, CONFIG.latent_dim))
    return Item("clean", size=(rows, columns), latent=latent.astype(np.float32))


def picture(seed, rows=2, columns=3):
    noise = np.random.default_rng(seed).normal(size=(rows * columns, CONFIG.latent_dim))
    return Picture((rows, columns), noise.astype(np.float32))
