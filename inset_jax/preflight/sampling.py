"""What draws a picture, on devices that are only described: three programs of `sample.sampler`.

    prefill     the sentence's keys and values in all branches of the guidance
    evaluation  one pass over the noise of all branches, and the step to the next time
    decoding    latents to pixels

Every pack draws one picture of the largest size from a sentence as below.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inset_jax.core import mesh as meshes
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config, VaeConfig
from inset_jax.data.layout import Item
from inset_jax.model import inset, vae
from inset_jax.preflight.program import Program
from inset_jax.preflight.work import Part
from inset_jax.sample.cache import KEPT
from inset_jax.sample.plan import Picture, Plan, Request, plan
from inset_jax.sample.prompt import vae_limits, vit_limits
from inset_jax.sample.sampler import Now, Programs, programs

PROGRAMS = ("prefill", "evaluation", "decoding")
# the sentence that is assumed: texts around references
REFERENCES, REFERENCE_SIDE, TEXT_TOKENS = 3, 518, 12  # pixels; tokens of each of the texts


def build(config: Config, mesh: Mesh, name: str, is_int8: bool = False) -> Program:
    """Returns the very function of the sampler, with the shardings of `sample`.

    Weights have the dtype of the computation, those of the autoencoder float32.

    Args:
      name: one of PROGRAMS.
      is_int8: whether the kernels of the language model's layers are int8.
    """
    model, coder = _weights(config, mesh, is_int8)
    laid = layout(config)
    spread = lambda tree: jax.tree.map(lambda array: _by_pack(array, mesh), tree)
    compute = dataclasses.replace(config.compute, remat="none")
    functions = programs(config.model, compute, is_int8)
    contexts = spread(laid.still)
    kept = _kept(functions, model, contexts, mesh)
    parts = {"weights": model, "autoencoder": coder}
    if name == "prefill":
        held = parts | {"contexts": contexts, "keys and values": kept}
        beside = ("autoencoder", "keys and values")  # the second is the result
        return Program(functions.keep, (model, contexts), held, beside, {"params": model})
    if name == "evaluation":
        arrays, state = spread((laid.guided, laid.state))
        number = jax.ShapeDtypeStruct((), jnp.float32)
        arguments = (model, kept, arrays, state, Now(*[number] * 3), config.sample.renorm)
        held = parts | {"keys and values": kept, "noise": (arrays, state, state)}
        return Program(functions.step, arguments, held, ("autoencoder",), {"params": model})
    side = picture_side(config) // config.model.latent_stride
    shape = (1, side * side, config.model.latent_dim)
    latents = spread(np.zeros(shape, np.float32))
    held = parts | {"latents": latents}
    return Program(functions.decode, (coder, latents, side), held, ("weights",), {"params": model})


def picture_side(config: Config) -> int:
    """Pixels a side of the picture that is drawn: the largest that is trained."""
    return vae_limits(config).max_side


def layout(config: Config) -> Plan:
    """Returns one pack of the sampler's plan, [1, ...]."""
    side = picture_side(config) // config.model.latent_stride
    noise = np.zeros((side * side, config.model.latent_dim), np.float32)
    scales = (config.sample.alpha, config.sample.beta)
    request = Request(_sentence(config), (Picture((side, side), noise),), scales)
    return plan([request], config.sample.guidance, config.model)


def _sentence(config: Config) -> tuple[Item, ...]:
    limits = vit_limits(config)
    side = min(REFERENCE_SIDE // limits.stride * limits.stride, limits.max_side)
    image = lambda: Item("vit", image=np.zeros((side, side, 3), np.uint8))
    text = lambda: Item("text", ids=(1,) * TEXT_TOKENS)
    return (text(), *(make() for _ in range(REFERENCES) for make in (image, text)))


def _weights(config: Config, mesh: Mesh, is_int8: bool) -> tuple[Any, Any]:
    def placed(logical, shapes):
        put = lambda names, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=meshes.sharding(mesh, names, leaf.shape)
        )
        return jax.tree.map(put, logical, shapes, is_leaf=lambda node: isinstance(node, tuple))

    coder = vae.abstract(config.model.vae)[1]
    return (
        placed(inset.logical_axes(config.model, is_int8), _model(config, is_int8)),
        placed(vae.logical_axes(config.model.vae), coder),
    )


@functools.lru_cache(maxsize=4)
def _model(config: Config, is_int8: bool):
    """The shapes and dtypes of the model's weights; scales of int8 kernels stay float32."""

    def kept(path, leaf):
        is_scale = path[-1].key == "kernel_scale"
        dtype = leaf.dtype if is_scale or leaf.dtype == jnp.int8 else config.compute.dtype
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(kept, inset.abstract(config.model, is_int8)[1])


def _by_pack(array: np.ndarray, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape of an array of one pack [1, ...] for as many packs as the mesh has."""
    packs = math.prod(mesh.shape[axis] for axis in meshes.RULES["pack"])
    shape = (packs, *array.shape[1:])
    return jax.ShapeDtypeStruct(shape, array.dtype, sharding=meshes.pack_sharding(mesh, shape))


def _kept(functions: Programs, model, contexts: Pack, mesh: Mesh):
    """The shapes of the keys and values that the prefill leaves."""
    put = lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=meshes.sharding(mesh, KEPT, leaf.shape)
    )
    return jax.tree.map(put, jax.eval_shape(functions.keep, model, contexts))


def work(config: Config, name: str, share: float) -> dict[str, Part]:
    """Returns the operations of a program on one device, which does `share` of a pack's work."""
    counted = _multiply_adds(config, layout(config), name)
    return {part: Part(2 * share * adds, 2 * share * adds) for part, adds in counted.items()}


def _multiply_adds(config: Config, laid: Plan, name: str) -> dict[str, float]:
    """Multiply-adds of one pack, by part; sizes as they are padded, visible pairs as they are."""
    model, llm, vit = config.model, config.model.llm, config.model.vit
    query, pair = llm.query_heads * llm.head_dim, llm.kv_heads * llm.head_dim
    layer = llm.model_dim * (2 * query + 2 * pair + 3 * llm.mlp_dim)
    if name == "decoding":
        side = picture_side(config) // model.vae.downsample
        return decoding(model.vae, side, side)
    if name == "prefill":
        seen, und, gen = laid.still.visibility, laid.still.und_token.size, 0
        patches = laid.still.vit_patch.shape[1]
        pictures = 2 * _pairs(laid.still.vit_visibility) * vit.width * vit.layers
        wide = vit.layers * (4 * vit.width**2 + 2 * vit.width * vit.mlp_dim)
        bridge = llm.model_dim * (vit.width + llm.model_dim)
        more = {
            "ViT": patches * (wide + vit.patch_dim * vit.width + bridge),
            "ViT attention": pictures,
        }
    else:
        seen, und, gen = laid.guided.visibility, laid.guided.token.size, laid.guided.source.size
        time = llm.model_dim * (256 + llm.model_dim + 2 * model.latent_dim)
        more = {"time, latents": gen * time}
    pairs = sum(_pairs(own) for own in seen.values())
    return {
        "und expert": und * llm.layers * layer,
        "gen expert": gen * llm.layers * layer,
        "attention": 2 * pairs * query * llm.layers,
        **more,
    }


def _pairs(visibility) -> int:
    return int(np.maximum(visibility.high - visibility.low, 0).sum())


def decoding(config: VaeConfig, height: int, width: int) -> dict[str, float]:
    """Multiply-adds of the autoencoder's decoder for latents of this many rows and columns."""
    if config.kind == "linear":
        return {"decoder": 3.0 * config.latent_channels * (height * width * config.downsample**2)}
    widths = [config.channels * factor for factor in config.multipliers]
    block = lambda wide, out: 9 * (wide * out + out * out) + (wide != out) * wide * out
    last, here = widths[-1], height * width
    adds = here * (9 * config.latent_channels * last + 2 * block(last, last) + 4 * last * last)
    wide = last
    for level, out in reversed(list(enumerate(widths))):
        adds += here * (block(wide, out) + config.res_blocks * block(out, out))
        wide = out
        if level:
            here *= 4
            adds += here * 9 * out * out
    adds += here * 9 * wide * 3
    return {"decoder": adds, "decoder attention": 2.0 * (height * width) ** 2 * last}


def read_bytes(config: Config, name: str, mesh: dict[str, int], is_int8: bool) -> float:
    """Bytes of the layers' weights that a device reads in a program, gathered over "fsdp"."""
    if name == "decoding":
        return 0.0
    layers = jax.tree.leaves(_model(config, is_int8)["llm"]["layers"])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in layers) / mesh["tensor"]
