"""The FLUX autoencoder: images to latents of 1/8 the side, and back.

Activations are NHWC, kernels HWIO (1x1 ones too), and matrix work happens in `dtype`; norms and
whatever leaves a public method are float32. It is a model of its own, never inside `model.inset`.

The tree of parameters mirrors the names in BAGEL's ae.safetensors: a dot becomes a level, `.weight`
becomes `kernel` for a convolution and `scale` for a norm, `.bias` stays.

    encoder/conv_in/{kernel,bias}
    encoder/down/<i>/block/<j>/{norm1,norm2}/{scale,bias}      i from the finest resolution
    encoder/down/<i>/block/<j>/{conv1,conv2}/{kernel,bias}
    encoder/down/<i>/block/<j>/nin_shortcut/{kernel,bias}      where the width changes
    encoder/down/<i>/downsample/conv/{kernel,bias}             all but the last i
    encoder/mid/{block_1,block_2}/...                          as a block above
    encoder/mid/attn_1/norm/{scale,bias}
    encoder/mid/attn_1/{q,k,v,proj_out}/{kernel,bias}
    encoder/norm_out/{scale,bias}  encoder/conv_out/{kernel,bias}
    decoder/...                                                the same with up and upsample
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from inset_jax.core.batch import Visibility
from inset_jax.core.config import VaeConfig
from inset_jax.core.mesh import constrain
from inset_jax.kernels.attend import attend
from inset_jax.kernels.convolution import convolution
from inset_jax.model import layers
from inset_jax.model.linear_coder import LinearDecoder, LinearEncoder

Params = dict[str, Any]
Seen = dict[str, jax.Array]  # dotted module name, as in BAGEL -> its output, NHWC

GROUPS = 32  # of every GroupNorm, whatever the width
NORM_EPS = 1e-6
SAME, AFTER = ((1, 1), (1, 1)), ((0, 1), (0, 1))  # padding of a 3x3; AFTER goes with stride 2
# PyTorch's default for convolutions: uniform within 1 / sqrt(fan in)
uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nnx.Module):
    """A convolution of 1 x 1 or 3 x 3, [size, size, in, out], with a bias.

    No dimension is split over a mesh: at full size the whole autoencoder is 335 MB in float32.
    """

    def __init__(self, width_in: int, width_out: int, size: int, rngs: nnx.Rngs):
        names = ("small",) * 4
        self.kernel = layers.parameter(rngs, (size, size, width_in, width_out), names, uniform)
        self.bias = layers.parameter(rngs, (width_out,), names[-1:], layers.zeros)

    def __call__(self, x: jax.Array, stride: int = 1, padding=SAME) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        if kernel.shape[0] == 1:
            return x @ kernel[0, 0] + bias
        return convolution(x, kernel, stride, padding) + bias


class GroupNorm(nnx.Module):
    """Mean and variance of each of 32 groups of channels over the whole image, in float32."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.scale = layers.parameter(rngs, (width,), ("small",), layers.ones)
        self.bias = layers.parameter(rngs, (width,), ("small",), layers.zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = rearrange(x.astype(jnp.float32), "b h w (g c) -> b h w g c", g=GROUPS)
        y = y - jnp.mean(y, (1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, (1, 2, 4), keepdims=True) + NORM_EPS)
        y = rearrange(y, "b h w g c -> b h w (g c)")
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class ResBlock(nnx.Module):
    def __init__(self, width_in: int, width_out: int, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(width_in, rngs)
        self.conv1 = Conv(width_in, width_out, 3, rngs)
        self.norm2 = GroupNorm(width_out, rngs)
        self.conv2 = Conv(width_out, width_out, 3, rngs)
        if width_in != width_out:
            self.nin_shortcut = Conv(width_in, width_out, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y


class Attention(nnx.Module):
    """One head over all positions of an image; 1024 px give 16,384 of them."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = GroupNorm(width, rngs)
        self.q = Conv(width, width, 1, rngs)
        self.k = Conv(width, width, 1, rngs)
        self.v = Conv(width, width, 1, rngs)
        self.proj_out = Conv(width, width, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        tokens = height * width
        normed = self.norm(x)
        one_head = lambda y: rearrange(y, "b h w c -> b (h w) 1 c")
        # every key is seen by every query of its image
        seen_by = Visibility(
            jnp.zeros((batch, tokens), jnp.int32), jnp.full((batch, tokens), tokens, jnp.int32)
        )
        query, key, value = (one_head(conv(normed)) for conv in (self.q, self.k, self.v))
        y = attend(query, key, value, seen_by)
        return x + self.proj_out(rearrange(y, "b (h w) 1 c -> b h w c", h=height))


class Downsample(nnx.Module):
    """Halves the sides; the zero row and column lie after the image only."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = Conv(width, width, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x, stride=2, padding=AFTER)


class Upsample(nnx.Module):
    """Doubles the sides by repetition, then smooths."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = Conv(width, width, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2))


class Middle(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.block_1 = ResBlock(width, width, rngs)
        self.attn_1 = Attention(width, rngs)
        self.block_2 = ResBlock(width, width, rngs)

    def __call__(self, x: jax.Array, prefix: str, seen: Seen) -> jax.Array:
        x = seen[f"{prefix}.block_1"] = self.block_1(x)
        x = seen[f"{prefix}.attn_1"] = self.attn_1(x)
        x = seen[f"{prefix}.block_2"] = self.block_2(x)
        return x


class Level(nnx.Module):
    """The blocks of one resolution; what changes the resolution stands beside them."""

    def __init__(self, width_in: int, width_out: int, blocks: int, rngs: nnx.Rngs):
        widths = [width_in] + [width_out] * blocks
        self.block = nnx.Dict(
            {str(j): ResBlock(widths[j], widths[j + 1], rngs) for j in range(blocks)}
        )

    def __call__(self, x: jax.Array, prefix: str, seen: Seen) -> jax.Array:
        for name, block in self.block.items():
            x = seen[f"{prefix}.block.{name}"] = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = seen[f"{prefix}.{name}"] = getattr(self, name)(x)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        widths = _widths(config)
        last = len(widths) - 1
        self.conv_in = Conv(3, config.channels, 3, rngs)
        down, width_in = {}, config.channels
        for i, width in enumerate(widths):
            down[str(i)] = level = Level(width_in, width, config.res_blocks, rngs)
            if i < last:
                level.downsample = Downsample(width, rngs)
            width_in = width
        self.down = nnx.Dict(down)
        self.mid = Middle(widths[-1], rngs)
        self.norm_out = GroupNorm(widths[-1], rngs)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, 3, rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, Seen]:
        """Images [B, H, W, 3] -> mean and log variance [B, h, w, 2 c], and each module's output."""
        seen: Seen = {}
        x = seen["encoder.conv_in"] = self.conv_in(images)
        for i in range(len(self.down)):
            x = self.down[str(i)](x, f"encoder.down.{i}", seen)
        x = self.mid(x, "encoder.mid", seen)
        x = seen["encoder.norm_out"] = self.norm_out(x)
        x = seen["encoder.conv_out"] = self.conv_out(jax.nn.silu(x))
        return x, seen


class Decoder(nnx.Module):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        widths = _widths(config)
        self.conv_in = Conv(config.latent_channels, widths[-1], 3, rngs)
        self.mid = Middle(widths[-1], rngs)
        up, width_in = {}, widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            up[str(i)] = level = Level(width_in, width, config.res_blocks + 1, rngs)
            if i > 0:
                level.upsample = Upsample(width, rngs)
            width_in = width
        self.up = nnx.Dict(up)
        self.norm_out = GroupNorm(widths[0], rngs)
        self.conv_out = Conv(widths[0], 3, 3, rngs)

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, Seen]:
        """Latents [B, h, w, c], unscaled -> images [B, H, W, 3], and every module's output."""
        seen: Seen = {}
        x = seen["decoder.conv_in"] = self.conv_in(latents)
        x = self.mid(x, "decoder.mid", seen)
        for i in reversed(range(len(self.up))):
            x = self.up[str(i)](x, f"decoder.up.{i}", seen)
        x = seen["decoder.norm_out"] = self.norm_out(x)
        x = seen["decoder.conv_out"] = self.conv_out(jax.nn.silu(x))
        return x, seen


class Vae(nnx.Module):
    """Encoder and decoder. Images are RGB in [-1, 1]; latents outside are shifted and scaled."""

    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        linear = config.kind == "linear"
        self.encoder = (LinearEncoder if linear else Encoder)(config, rngs)
        self.decoder = (LinearDecoder if linear else Decoder)(config, rngs)
        self.config = config

    def encode_moments(self, images: jax.Array, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] -> mean and log variance of the posterior, float32 [B, h, w, c].

        Raises:
          ValueError: the images are not RGB, or a side is no multiple of the downsampling.
        """
        stride = self.config.downsample
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images are [batch, height, width, 3], these are {images.shape}")
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} px: the autoencoder needs sides "
                f"that are multiples of {stride}; resize or pad them"
            )
        moments, _ = self.encoder(_batch(images.astype(dtype)))
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, log_variance

    def scale(self, latents: jax.Array) -> jax.Array:
        """What the encoder gives -> what the flow sees, about zero mean and unit deviation."""
        return self.config.scale * (latents - self.config.shift)

    def unscale(self, latents: jax.Array) -> jax.Array:
        """The inverse of `scale`."""
        return latents / self.config.scale + self.config.shift

    def encode(self, images: jax.Array, noise: jax.Array | None, dtype=jnp.float32) -> jax.Array:
        """Images [B, H, W, 3] -> scaled latents, float32 [B, h, w, c].

        Args:
          noise: standard normal draws [B, h, w, c] (BAGEL always samples), or None for the mean.
        """
        return self.scale(sample(*self.encode_moments(images, dtype), noise))

    def decode(self, latents: jax.Array, dtype=jnp.float32) -> jax.Array:
        """Scaled latents [B, h, w, c] -> images, float32 [B, H, W, 3], not clipped.

        Raises:
          ValueError: the latents have another number of channels.
        """
        if latents.ndim != 4 or latents.shape[3] != self.config.latent_channels:
            raise ValueError(
                f"latents are [batch, height, width, {self.config.latent_channels}], these are "
                f"{latents.shape}"
            )
        images, _ = self.decoder(_batch(self.unscale(latents).astype(dtype)))
        return images.astype(jnp.float32)


def sample(mean: jax.Array, log_variance: jax.Array, noise: jax.Array | None) -> jax.Array:
    """Draws from the posterior with the given standard normal noise; None gives the mean."""
    return mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise


def patchify(latents: jax.Array, patch: int) -> jax.Array:
    """Latents [B, h, w, c] -> tokens [B, h/p * w/p, L], row by row, L as (row, column, channel)."""
    return rearrange(latents, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: jax.Array, rows: int, patch: int) -> jax.Array:
    """Tokens [B, rows * columns, L] -> latents [B, rows * p, columns * p, c]."""
    return rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=patch, q=patch)


def zero_padded(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks images [H, W, 3] of different sizes as BAGEL's training does: [B, max H, max W, 3].

    Zero, which is mid-grey, is added below and to the right. Norms and attention of the autoencoder
    see that padding, so a smaller image's latents depend on its neighbours in the batch. Meant for
    parity with BAGEL's training alone; otherwise encode images of one size together.
    """
    height, width = (max(image.shape[dim] for image in images) for dim in (0, 1))
    batch = np.zeros((len(images), height, width, 3), np.float32)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return batch


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] -> grey levels, cut off, as BAGEL does, and not rounded."""
    return (jnp.clip(images * 0.5 + 0.5, 0, 1) * 255).astype(jnp.uint8)


def create(config: VaeConfig, seed: int) -> tuple[nnx.GraphDef, Params]:
    """Returns the definition and random parameters, a nested dict of float32 arrays.

    Raises:
      ValueError: a width that 32 groups do not divide.
    """
    definition, _ = abstract(config)
    build = lambda: nnx.to_pure_dict(nnx.split(Vae(config, nnx.Rngs(seed)))[1])
    return definition, jax.jit(build)()


def abstract(config: VaeConfig) -> tuple[nnx.GraphDef, Params]:
    """Like `create` with shapes for arrays; allocates nothing."""
    definition, state = _abstract_state(config)
    return definition, nnx.to_pure_dict(state)


def logical_axes(config: VaeConfig) -> Params:
    """The tree of parameters with a tuple of logical names (`core.mesh.RULES`) for each array."""
    _, state = _abstract_state(config)
    is_variable = lambda node: isinstance(node, nnx.Variable)
    names = lambda variable: variable.get_metadata("logical")
    return nnx.to_pure_dict(jax.tree.map(names, state, is_leaf=is_variable))


def bind(definition: nnx.GraphDef, params: Params) -> Vae:
    """Joins a definition and its parameters; meant for the inside of a jitted function."""
    return nnx.merge(definition, params)


def _abstract_state(config: VaeConfig):
    return nnx.split(nnx.eval_shape(lambda: Vae(config, nnx.Rngs(0))))


def _widths(config: VaeConfig) -> list[int]:
    """Channels at each resolution, the finest first."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    if not widths or any(width < 1 or width % GROUPS for width in [config.channels, *widths]):
        raise ValueError(
            f"model.vae: channels {config.channels} with multipliers {config.multipliers} give the "
            f"widths {widths}, and each norm has {GROUPS} groups: every width is a multiple of "
            f"{GROUPS}"
        )
    return widths


def _batch(images: jax.Array) -> jax.Array:
    """Splits a batch of images over the devices."""
    return constrain(images, ("pack", "small", "small", "feature"))
