"""From a record to the items of a pack: sizes first (`outline`), then pixels and noise (`fill`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inset_jax.core.config import Config, ModelConfig, SizeLimits
from inset_jax.data import image
from inset_jax.data.keyed import keyed, normal
from inset_jax.data.layout import Item
from inset_jax.data.record import Example, Segment
from inset_jax.data.text import Tokenizer

ITEM_KIND = {"text": "text", "vit": "vit", "vae": "clean", "target": "target"}


def outline(
    example: Example, tokenizer: Tokenizer, config: Config, percent: int = 100
) -> list[Item]:
    """Returns one item a segment with its ids or its size; nothing is decoded or drawn.

    Args:
      percent: to which the sides of references (the ViT's images) are scaled; `data.index` says.
    """
    images, result = sharing(example), []
    for segment in example.segments:
        item = _outline(segment, tokenizer, config, images)
        if segment.kind == "vit" and percent != 100:
            item = item._replace(size=tuple(int(image.shrunk(n, percent)) for n in item.size))
        result.append(item)
    return result


def sharing(example: Example) -> int:
    """Returns how many images share one budget of pixels.

    In an example without a target all do, as in BAGEL's understanding data; elsewhere each has its
    own.
    """
    images = sum(segment.kind == "vit" for segment in example.segments)
    return 1 if example.has_target else max(images, 1)


def segment_tokens(item: Item) -> tuple[int, int, int, int]:
    """Returns what an item of `outline` takes of und, gen, vit and cross_entropy."""
    special = int(item.special_label >= 0)
    if item.kind == "text":
        own = len(item.ids)
        return own + 2, 0, 0, (own + 1) * item.loss + special
    own = item.size[0] * item.size[1]
    return (own + 2, 0, own, special) if item.kind == "vit" else (2, own, 0, special)


def _outline(segment: Segment, tokenizer: Tokenizer, config: Config, sharing: int) -> Item:
    if segment.kind == "text":
        label = config.model.tokens.image_start if segment.draws else -1
        ids = tokenizer.encode(segment.text)
        return Item("text", ids=ids, loss=segment.loss, special_label=label)
    width, height = training_size(segment, config, sharing)
    stride = limits_of(segment.kind, config)[1]
    return Item(
        ITEM_KIND[segment.kind],
        size=(height // stride, width // stride),
        opens=segment.opens,
        frame_delta=segment.frame_delta or None,
    )


def training_size(segment: Segment, config: Config, sharing: int) -> tuple[int, int]:
    """Returns the width and height that an image segment is resized to."""
    limits, _ = limits_of(segment.kind, config)
    return image.resized_size(segment.width, segment.height, limits, sharing)


def limits_of(kind: str, config: Config) -> tuple[SizeLimits, int]:
    """Returns the resizing rule of an image segment, and the pixels a side of one token."""
    if kind == "vit":
        return config.data.vit_size, config.model.vit.patch
    return config.data.vae_size, config.model.latent_stride


def fill(
    example: Example, items: Sequence[Item], dropped: np.ndarray, config: Config, epoch: int
) -> list[Item]:
    """Puts pixels, latents, noise and timesteps into the items of `outline`.

    What is drawn depends on (run.seed, example id, epoch) alone.

    Args:
      dropped: bool [segment], from `dropout.draw`; the images of dropped ones are not decoded.

    Raises:
      ValueError: an image is damaged or not of the recorded size; the example is named.
    """
    seed, decoded = config.run.seed, {}
    result = []
    for number, (segment, item) in enumerate(zip(example.segments, items, strict=True)):
        if dropped[number] or item.kind == "text":
            result.append(item._replace(dropped=bool(dropped[number])))
            continue
        random = lambda purpose, n=number: keyed(purpose, seed, example.id, epoch, n)
        own = {}
        if item.kind == "target":
            tokens = item.size[0] * item.size[1]
            own["timestep"] = float(random("timestep").standard_normal())
            own["noise"] = normal(random("noise"), (tokens, config.model.latent_dim))
        if item.kind != "vit":
            own["posterior_noise"] = noise = _posterior_noise(item, config, random)
        if item.kind != "vit" and _moments_fit(segment, noise, config):
            own["latent"] = latent_tokens(segment.moments, noise, config.model)
        else:
            key = id(segment.image)  # segments that show one image share its bytes
            if key not in decoded:
                decoded[key] = _decode(segment, f"{example.id}: image of segment {number}")
            own["image"] = _pixels(decoded[key], segment.kind, item, config)
        result.append(item._replace(**own))
    return result


def _posterior_noise(item: Item, config: Config, random) -> np.ndarray:
    patch = config.model.latents.patch
    rows, columns = item.size
    shape = (rows * patch, columns * patch, config.model.vae.latent_channels)
    if config.data.posterior == "mean":
        return np.zeros(shape, np.float32)
    return normal(random("posterior"), shape)


def _decode(segment: Segment, name: str):
    decoded = image.load(segment.image, name)
    if decoded.size != (segment.width, segment.height):
        found = "{}x{}".format(*decoded.size)
        raise ValueError(f"{name} is {found}, the record says {segment.width}x{segment.height}")
    return decoded


def _pixels(decoded, kind: str, item: Item, config: Config) -> np.ndarray:
    stride = limits_of(kind, config)[1]
    rows, columns = item.size
    return image.resize_to(decoded, columns * stride, rows * stride)


def _moments_fit(segment: Segment, noise: np.ndarray, config: Config) -> bool:
    """Whether precomputed moments are those of this size and of the run's own autoencoder."""
    if segment.moments is None or segment.moments_vae != config.data.moments:
        return False
    return segment.moments.shape == (2, *noise.shape)


def latent_tokens(moments: np.ndarray, noise: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Samples the posterior and cuts it into tokens, in NumPy: float32 [rows * columns, L].

    The formula is that of `model.vae`, which encodes where there are no moments.

    Args:
      moments: [2, h, w, c], mean and log variance.
      noise: [h, w, c], standard normal; zeros give the mean.
    """
    mean, log_variance = moments.astype(np.float32)
    latent = mean + np.exp(0.5 * log_variance) * noise
    latent = config.vae.scale * (latent - config.vae.shift)
    return _tokens(latent.astype(np.float32, copy=False), config.latents.patch)


def _tokens(latent: np.ndarray, patch: int) -> np.ndarray:
    """Cuts [h, w, c] into [rows * columns, patch * patch * c]; einops takes longer to parse it."""
    height, width, channels = latent.shape
    rows, columns = height // patch, width // patch
    cut = latent.reshape(rows, patch, columns, patch, channels).swapaxes(1, 2)
    return cut.reshape(rows * columns, patch * patch * channels)
