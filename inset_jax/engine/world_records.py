"""Scenes of the small world as records for training and as prompts for the generate command."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from inset_jax.data import image
from inset_jax.data.record import Example, Segment, write_records
from inset_jax.data.sources.base import NamedExample, Part, Row, fingerprint
from inset_jax.data.text import Tokenizer, make_small_tokenizer
from inset_jax.engine import artwork
from inset_jax.engine.artwork import Artwork
from inset_jax.engine.layouts import MOST
from inset_jax.engine.stage import WorldConfig, check
from inset_jax.engine.world import KINDS, QUESTION, Scene, draw_scene

SOURCE = "small world"
LICENCE = "Apache-2.0 (Noto Emoji), CC0 and public domain (grounds)"

# How often a target stands in a record. Each copy has noise of its own and is seen by nobody else,
# so one reading of the sentence can serve several lessons in drawing. With latents of 8 pixels the
# drawing is the longer part, and another sentence teaches more.
DRAWS = 1

USUAL = WorldConfig()
CHANGEABLE = [f.name for f in dataclasses.fields(USUAL) if f.name not in ("objects", "kinds")]
VERSION = 6  # of what is drawn: count up when scenes change, and stored shards are made anew
SPOKEN = 4000  # scenes whose words a tokenizer is made of
SUFFIXES = (".webp", ".json", ".jpg")  # of artwork


class Latents(NamedTuple):
    """Moments of a scene's pictures, float16 [2, h, w, c], as far as they are known."""

    target: np.ndarray | None = None
    source: np.ndarray | None = None
    digest: str = ""  # of the autoencoder


UNKNOWN = Latents()


class Encode(Protocol):
    """An autoencoder's first half."""

    digest: str  # names it in the records

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> mean and log variance of the latents, float16 [B, 2, h, w, c]."""
        ...


@dataclasses.dataclass(frozen=True)
class World:
    """The small world as a source of `data.build`: drawn shard by shard, in any process."""

    artwork: str  # folder
    counts: tuple[tuple[str, int], ...]  # split, number of scenes
    seed: int = 0
    config: WorldConfig = USUAL
    draws: int = DRAWS

    def parts(self, most: int) -> list[Part]:
        made_of = (VERSION, _digest(self.artwork), self.seed, self.config, self.draws)
        return [
            Part(f"{split} {first}", place, fingerprint(made_of, place), place[2] - first)
            for split, count in self.counts
            for first in range(0, count, most)
            for place in [(split, first, min(first + most, count))]
        ]

    def rows(self, part: Part) -> Iterator[Row]:
        split, first, end = part.place
        for number in range(first, end):
            yield Row(f"{split} {number}", functools.partial(self.make, split, number))

    def make(self, split: str, number: int) -> list[NamedExample]:
        scene = draw_scene(_artwork(self.artwork), split, self.seed, number, self.config)
        return [(split, to_example(scene, f"{split}-{number}", draws=self.draws))]

    def tokenizer(self, vocab_size: int, tokens) -> Tokenizer:
        """The same for every number of scenes: its words are those of the first SPOKEN ones."""
        drawn = scenes(_artwork(self.artwork), "train", self.seed, SPOKEN, self.config)
        return tokenizer_of(drawn, vocab_size, tokens)


def config_of(
    objects: tuple[float, ...] | None = None,
    kinds: tuple[float, ...] | None = None,
    changes: Iterable[str] = (),
) -> WorldConfig:
    """The usual world with other numbers of objects, other kinds, or other fields.

    Args:
      changes: "name=value", fields of WorldConfig; several values with commas between.

    Raises:
      ValueError: more weights than there are, or none that is positive; a change that names no
        field, one that is changed already, or has no value of its type; what `stage.check` refuses.
    """
    given = [_change(change) for change in changes]
    changes = dict(given)
    if len(changes) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given {names.count(twice)} times, expected once")
    for name, given, most in (("objects", objects, MOST), ("kinds", kinds, len(KINDS))):
        if given is None:
            continue
        usable = len(given) <= most and min(given) >= 0 < sum(given) < math.inf
        if not usable:
            raise ValueError(
                f"weights of {name} {given}: expected at most {most}, none negative, one positive"
            )
        changes[name] = (*given, *[0.0] * (most - len(given)))
    config = WorldConfig(**changes)
    check(config)
    return config


def _change(text: str) -> tuple[str, object]:
    """Parses "name=value": a field of WorldConfig and a value of its type."""
    name, _, value = text.partition("=")
    if name not in CHANGEABLE:
        raise ValueError(f"{text!r}: expected NAME=VALUE, NAME one of {', '.join(CHANGEABLE)}")
    usual = getattr(USUAL, name)
    try:
        if not isinstance(usual, tuple):
            return name, type(usual)(value)
        values = tuple(type(usual[0])(one) for one in value.split(","))
        if name not in ("relations", "ways") and len(values) != len(usual):
            raise ValueError(f"{len(values)} values")
    except ValueError as error:
        raise ValueError(f"{text!r}: expected a value like {name}={usual}") from error
    return name, values


@functools.cache
def _artwork(folder: str) -> Artwork:
    return artwork.load(folder)


def _digest(folder: str) -> str:
    top = pathlib.Path(folder)
    found = [*top.glob("objects.*"), *(top / "grounds").iterdir()]
    files = sorted(file for file in found if file.suffix in SUFFIXES)
    return fingerprint([(file.name, file.read_bytes()) for file in files])


def scenes(
    art: Artwork, split: str, seed: int, count: int, config: WorldConfig | None = None
) -> Iterator[Scene]:
    """Draws the first `count` scenes of a split."""
    return (draw_scene(art, split, seed, number, config) for number in range(count))


def write_world(
    folder, drawn: dict[str, list[Scene]], tokenizer: Tokenizer, encode: Encode
) -> None:
    """Writes `folder`/records and `folder`/tokenizer.json for training.

    Args:
      drawn: split -> scenes.
      encode: the autoencoder; latents of all targets are stored, so that training need not run it.
    """
    splits = {}
    for split, own in drawn.items():
        targets = _moments([scene.target for scene in own], encode)
        sources = _moments([scene.source for scene in own], encode)
        splits[split] = [
            to_example(scene, f"{split}-{number}", Latents(*latents, encode.digest))
            for number, (scene, *latents) in enumerate(zip(own, targets, sources, strict=True))
        ]
    write_records(pathlib.Path(folder) / "records", splits)
    tokenizer.save(folder)


def _moments(pictures: list[np.ndarray | None], encode: Encode) -> list[np.ndarray | None]:
    """Encodes pictures of several sizes; what is no picture stays so."""
    found: list[np.ndarray | None] = [None] * len(pictures)
    for shape in {picture.shape for picture in pictures if picture is not None}:
        own = [n for n, picture in enumerate(pictures) if getattr(picture, "shape", 0) == shape]
        for n, moments in zip(own, encode(np.stack([pictures[n] for n in own])), strict=True):
            found[n] = moments
    return found


def to_example(scene: Scene, name: str, latents: Latents = UNKNOWN, draws: int = DRAWS) -> Example:
    """Turns a scene into a record.

    image-interleaved   the sentence, references as ViT images, then the target
    video-interleaved   the first frame as a ViT image, the sentence in the same way, the target
    editing             the source as clean latents and as a ViT image, the sentence, the target
    t2i                 the sentence with nouns for pictures, then the target
    understanding       "What is in [the picture]?", then the sentence with nouns, to be predicted

    Args:
      draws: how often the target stands in the record.
    """
    if scene.kind == "understanding":
        segments = [
            Segment("text", text=QUESTION, role="prompt"),
            _image("vit", scene.target, "source"),
            Segment("text", text="?", role="prompt"),
            Segment("text", text=scene.words(), role="answer", loss=True),
        ]
        return Example(name, tuple(segments), scene.kind, SOURCE, LICENCE)
    segments = []
    if scene.source is not None:
        first = _image("vit", scene.source, "source")
        if scene.kind == "editing":
            facts = {"moments": latents.source, "moments_vae": latents.digest}
            segments.append(dataclasses.replace(first, kind="vae", **facts))
        segments.append(first)
    if scene.kind == "t2i":
        segments.append(Segment("text", text=scene.words(), role="prompt"))
    else:
        segments += [
            _image("vit", scene.references[piece], "reference")
            if isinstance(piece, int)
            else Segment("text", text=piece, role="prompt")
            for piece in scene.pieces()
        ]
    segments += [_image("target", scene.target, "", latents.target, latents.digest)] * draws
    return Example(name, tuple(segments), scene.kind, SOURCE, LICENCE)


def tokenizer_of(scenes: Iterable[Scene], vocab_size: int, tokens) -> Tokenizer:
    """Trains a small tokenizer on the sentences of some scenes."""
    texts = [QUESTION, "?"]
    for scene in scenes:
        texts += [piece for piece in scene.pieces() if isinstance(piece, str)]
        texts.append(scene.words())
    return make_small_tokenizer(texts, vocab_size, tokens)


def write_prompts(folder, chosen: Iterable[Scene]) -> pathlib.Path:
    """Writes scenes as prompts of the generate command; returns `folder`/prompts.jsonl.

    A line is {"prompt": "A [img:0_0.png] on grass.", "width": 64, "height": 64}, of an edit with
    "source" too; the first of two frames stands before its sentence. Beside it lie the pictures and
    the targets, `0_target.png`, and `words.txt` has the sentences with nouns for pictures.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prompts, words = [], []
    for number, scene in enumerate(chosen):
        pictures = {f"{number}_{at}.png": one for at, one in enumerate(scene.references)}
        pictures |= {f"{number}_target.png": scene.target}
        sentence = "".join(
            f"[img:{number}_{piece}.png]" if isinstance(piece, int) else piece
            for piece in scene.pieces()
        )
        row = {"prompt": sentence, "width": scene.target.shape[1], "height": len(scene.target)}
        if scene.source is not None:
            first = f"{number}_source.png"
            pictures[first] = scene.source
            row |= (
                {"source": first}
                if scene.kind == "editing"
                else {"prompt": f"[img:{first}]{sentence}"}
            )
        for name, pixels in pictures.items():
            (folder / name).write_bytes(_png(pixels))
        prompts.append(json.dumps(row))
        words.append(scene.words())
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(prompts) + "\n")
    return file


def _image(kind: str, pixels: np.ndarray, role: str = "", moments=None, vae: str = "") -> Segment:
    height, width = pixels.shape[:2]
    facts = {"role": role, "moments": moments, "moments_vae": vae}
    return Segment(kind, image=_png(pixels), width=width, height=height, **facts)


def _png(pixels: np.ndarray) -> bytes:
    return image.encode(Image.fromarray(pixels), "png")
