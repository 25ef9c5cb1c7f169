"""From what a person gives (texts, pictures, sizes) to the items of a context; host only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from inset_jax.core.config import Config, ModelConfig, SizeLimits
from inset_jax.data import image
from inset_jax.data.keyed import keyed
from inset_jax.data.layout import Item
from inset_jax.data.text import Tokenizer

# What BAGEL's weights were trained to read before they plan in words: copied from its inferencer.py
# (Apache-2.0), to the character, because the weights know no other wording.
THINK = {
    "image": (
        "You should first think about the planning process in the mind and then generate the image."
        " \nThe planning process is enclosed within <think> </think> tags, i.e. <think> planning "
        "process here </think> image here"
    ),
    "text": (
        "You should first think about the reasoning process in the mind and then provide the user "
        "with the answer. \nThe reasoning process is enclosed within <think> </think> tags, i.e. "
        "<think> reasoning process here </think> answer here"
    ),
}
THINK["edit"] = THINK["image"]


@dataclass(frozen=True)
class Prompt:
    """One sentence with pictures in it, and what is asked for."""

    pieces: Sequence[str | Image.Image]  # in reading order
    source: Image.Image | None = None  # a picture to edit
    height: int | None = None  # pixels; None: the source's (as BAGEL resizes it) or the default
    width: int | None = None
    seed: int = 0  # of the first picture; the next ones count up
    name: str = "prompt"  # what messages call it


def compose(prompt: Prompt, config: Config, tokenizer: Tokenizer, think: str = "") -> list[Item]:
    """Turns a prompt into the items of its context.

    A source comes first, as a clean VAE copy and then a ViT copy (BAGEL's order); its latents are
    not encoded yet. Pictures inside the sentence are ViT images alone.

    Args:
      think: a name in THINK whose text goes first, or "".

    Raises:
      ValueError: a piece that is neither text nor picture, no text at all, or more tokens than the
        model was trained on. The prompt is named.
    """
    items = [Item("text", ids=tokenizer.encode(THINK[think]))] if think else []
    if prompt.source is not None:
        items += _source_items(prompt, config)
    has_text = False
    for number, piece in enumerate(prompt.pieces):
        if isinstance(piece, str):
            if piece.strip():
                has_text = True
                items.append(Item("text", ids=tokenizer.encode(piece)))
        elif isinstance(piece, Image.Image):
            items.append(_vit_item(piece, f"{prompt.name}, piece {number + 1}", config))
        else:
            raise ValueError(
                f"{prompt.name}: piece {number + 1} is a {type(piece).__name__}; a sentence is "
                "made of strings and PIL images"
            )
    if not has_text:
        raise ValueError(f"{prompt.name}: there is no text in it; say what to draw or to answer")
    return items


def upright(prompt: Prompt) -> Prompt:
    """Decodes the source as a person sees it (RGB, rotated by EXIF), so that its size is true."""
    if prompt.source is None:
        return prompt
    source = image.load(prompt.source, f"{prompt.name}, source")
    return dataclasses.replace(prompt, source=source)


def picture_size(prompt: Prompt, config: Config) -> tuple[int, int]:
    """Height and width of what will be drawn, in pixels; never those of a reference.

    Raises:
      ValueError: a side that the latents cannot have; the nearest ones are said.
    """
    limits, model = vae_limits(config), config.model
    width = height = config.sample.side or limits.max_side
    if prompt.source is not None:
        width, height = image.resized_size(*prompt.source.size, limits)
    height = height if prompt.height is None else prompt.height
    width = width if prompt.width is None else prompt.width
    check_side(prompt.name, "height", height, model)
    check_side(prompt.name, "width", width, model)
    return height, width


def check_side(name: str, what: str, side: int, model: ModelConfig) -> None:
    """Raises ValueError for a side in pixels that the model cannot draw; see `picture_size`."""
    stride, most = model.latent_stride, model.latent_stride * model.latents.max_side
    if stride <= side <= most and side % stride == 0:
        return
    lower = min(max(side // stride * stride, stride), most)
    near = sorted({lower, min(lower + stride, most)} if stride <= side <= most else {lower})
    raise ValueError(
        f"{name}: {what} {side} px: this model draws multiples of {stride} from {stride} to "
        f"{most}; nearest: {' and '.join(map(str, near))}"
    )


def check_length(prompt: Prompt, items: Sequence[Item], picture: int, config: Config) -> None:
    """Raises ValueError when a context and one picture of `picture` tokens are too long."""
    count = lambda item: (len(item.ids) if item.kind == "text" else _tokens(item, config.model)) + 2
    context, most = sum(map(count, items)), config.data.max_example_tokens
    if context + picture > most:
        words = sum(count(item) for item in items if item.kind == "text")
        raise ValueError(
            f"{prompt.name}: {context + picture} tokens ({words} of text, {context - words} of "
            f"pictures in it, {picture} to draw); at most {most} fit (data.max_example_tokens)"
        )


def check_drawable(prompt: Prompt, config: Config, tokenizer: Tokenizer) -> None:
    """Refuses a prompt that a model cannot draw; nothing is computed.

    Raises:
      ValueError: its picture is too large, or it has more tokens than the model was trained on.
    """
    height, width = picture_size(prompt, config)
    items = compose(prompt, config, tokenizer)
    tokens = height * width // config.model.latent_stride**2
    check_length(prompt, items, tokens + 2, config)


def start_noise(seed: int, tokens: int, config: ModelConfig) -> np.ndarray:
    """The noise that a picture starts from, float32 [tokens, L]; on every machine the same."""
    draws = keyed("start of a picture", seed, "", 0)
    return draws.standard_normal((tokens, config.latent_dim), np.float32)


def vit_limits(config: Config) -> SizeLimits:
    """The resizing rule of ViT images, within the model's position tables."""
    vit = config.model.vit
    return _fitted(config.data.vit_size, vit.patch, min(vit.side, config.model.connector_side))


def vae_limits(config: Config) -> SizeLimits:
    """The resizing rule of VAE images, within the model's position table."""
    return _fitted(config.data.vae_size, config.model.latent_stride, config.model.latents.max_side)


def _fitted(limits: SizeLimits, stride: int, side: int) -> SizeLimits:
    most = min(limits.max_side // stride, side) * stride
    return dataclasses.replace(
        limits, stride=stride, max_side=most, min_side=min(limits.min_side, most)
    )


def _vit_item(picture: Image.Image, name: str, config: Config) -> Item:
    return Item("vit", image=image.resize(image.load(picture, name), vit_limits(config)))


def _source_items(prompt: Prompt, config: Config) -> list[Item]:
    name = f"{prompt.name}, source"
    pixels = image.resize(image.load(prompt.source, name), vae_limits(config))
    noise = None
    if config.data.posterior == "sample":
        vae = config.model.vae
        shape = (*(side // vae.downsample for side in pixels.shape[:2]), vae.latent_channels)
        noise = keyed("posterior of a source", prompt.seed, "", 0).standard_normal(shape, "f4")
    clean = Item("clean", image=image.normalize(pixels), posterior_noise=noise)
    return [clean, _vit_item(prompt.source, name, config)]


def _tokens(item: Item, config: ModelConfig) -> int:
    stride = config.vit.patch if item.kind == "vit" else config.latent_stride
    return (item.image.shape[0] // stride) * (item.image.shape[1] // stride)
