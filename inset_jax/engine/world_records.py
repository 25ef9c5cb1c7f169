"""Scenes of the small world as records for training and as prompts for the generate command."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from inset_jax.data.record import Example, Segment, write_records
from inset_jax.data.text import Tokenizer, make_small_tokenizer
from inset_jax.engine.artwork import Artwork
from inset_jax.engine.world import QUESTION, Scene, draw_scene

SOURCE = "small world"
LICENCE = "Apache-2.0 (Noto Emoji), CC0 and public domain (grounds)"

# pictures uint8 [B, H, W, 3] -> mean and log variance of their latents, float [B, 2, h, w, c]
Encode = Callable[[np.ndarray], np.ndarray]


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
        moments = encode(np.stack([scene.target for scene in own])).astype(np.float16)
        splits[split] = [
            to_example(scene, f"{split}-{number}", moments[number])
            for number, scene in enumerate(own)
        ]
    write_records(pathlib.Path(folder) / "records", splits)
    tokenizer.save(folder)


def to_example(scene: Scene, name: str, moments: np.ndarray | None = None) -> Example:
    """Turns a scene into a record.

    image-interleaved   the sentence, references as ViT images, then the target
    t2i                 the sentence with nouns for pictures, then the target
    understanding       "What is in [the picture]?", then the sentence with nouns, to be predicted

    Args:
      moments: of the target's latents, float16 [2, h, w, c], if they are known.
    """
    if scene.kind == "image-interleaved":
        segments = [
            _image("vit", scene.references[piece], "reference")
            if isinstance(piece, int)
            else Segment("text", text=piece, role="prompt")
            for piece in scene.pieces()
        ]
        segments.append(_image("target", scene.target, moments=moments))
    elif scene.kind == "t2i":
        segments = [Segment("text", text=scene.words(), role="prompt")]
        segments.append(_image("target", scene.target, moments=moments))
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
    """Writes scenes as prompts of the generate command, with their targets beside them.

    `prompts.jsonl` has one line a scene: "prompt" ("A [img:0_0.png] on grass."), "target" (a file),
    and for reports "words" and "relation". Paths are relative to the file.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(chosen):
        for at, reference in enumerate(scene.references):
            (folder / f"{number}_{at}.png").write_bytes(_png(reference))
        (folder / f"{number}_target.png").write_bytes(_png(scene.target))
        sentence = "".join(
            f"[img:{number}_{piece}.png]" if isinstance(piece, int) else piece
            for piece in scene.pieces()
        )
        row = {"prompt": sentence, "target": f"{number}_target.png"}
        lines.append(json.dumps(row | {"words": scene.words(), "relation": scene.relation}))
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def _image(kind: str, pixels: np.ndarray, role: str = "", moments=None) -> Segment:
    height, width = pixels.shape[:2]
    return Segment(kind, image=_png(pixels), width=width, height=height, role=role, moments=moments)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
