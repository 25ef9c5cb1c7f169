"""Scenes of the small world as records for training and as prompts for the generate command."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from PIL import Image

from inset_jax.data import image
from inset_jax.data.record import Example, Segment, write_records
from inset_jax.data.text import Tokenizer, make_small_tokenizer
from inset_jax.engine.artwork import Artwork
from inset_jax.engine.world import QUESTION, Scene, draw_scene

SOURCE = "small world"
LICENCE = "Apache-2.0 (Noto Emoji), CC0 and public domain (grounds)"

# How often a target stands in a record. Each copy has noise of its own and is seen by nobody else,
# so one reading of the sentence serves several lessons in drawing.
DRAWS = 3


class Encode(Protocol):
    """An autoencoder's first half."""

    digest: str  # names it in the records

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> mean and log variance of the latents, float16 [B, 2, h, w, c]."""
        ...


def scenes(artwork: Artwork, split: str, seed: int, count: int) -> Iterator[Scene]:
    """Draws the first `count` scenes of a split."""
    return (draw_scene(artwork, split, seed, number) for number in range(count))


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
        moments = encode(np.stack([scene.target for scene in own]))
        splits[split] = [
            to_example(scene, f"{split}-{number}", (moments[number], encode.digest))
            for number, scene in enumerate(own)
        ]
    write_records(pathlib.Path(folder) / "records", splits)
    tokenizer.save(folder)


def to_example(
    scene: Scene, name: str, moments: tuple[np.ndarray | None, str] = (None, "")
) -> Example:
    """Turns a scene into a record.

    image-interleaved   the sentence, references as ViT images, then the target (DRAWS times)
    t2i                 the sentence with nouns for pictures, then the target (DRAWS times)
    understanding       "What is in [the picture]?", then the sentence with nouns, to be predicted

    Args:
      moments: of the target's latents, float16 [2, h, w, c], if they are known, and the digest of
        the autoencoder.
    """
    if scene.kind == "image-interleaved":
        segments = [
            _image("vit", scene.references[piece], "reference")
            if isinstance(piece, int)
            else Segment("text", text=piece, role="prompt")
            for piece in scene.pieces()
        ]
        segments += [_image("target", scene.target, "", *moments)] * DRAWS
    elif scene.kind == "t2i":
        segments = [Segment("text", text=scene.words(), role="prompt")]
        segments += [_image("target", scene.target, "", *moments)] * DRAWS
    else:
        segments = [
            Segment("text", text=QUESTION, role="prompt"),
            _image("vit", scene.target, "source"),
            Segment("text", text="?", role="prompt"),
            Segment("text", text=scene.words(), role="answer", loss=True),
        ]
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

    A line is {"prompt": "A [img:0_0.png] on grass."}. Beside it lie the references and the targets,
    `0_target.png`, and `words.txt` has the same sentences with nouns for pictures.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prompts, words = [], []
    for number, scene in enumerate(chosen):
        for at, reference in enumerate(scene.references):
            (folder / f"{number}_{at}.png").write_bytes(_png(reference))
        (folder / f"{number}_target.png").write_bytes(_png(scene.target))
        sentence = "".join(
            f"[img:{number}_{piece}.png]" if isinstance(piece, int) else piece
            for piece in scene.pieces()
        )
        prompts.append(json.dumps({"prompt": sentence}))
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
