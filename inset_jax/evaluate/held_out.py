"""Held-out sentences drawn as written and under controls that take the pictures' meaning away."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from inset_jax.data import image
from inset_jax.data.sentence import read_sentence

if TYPE_CHECKING:
    from inset_jax.sample.api import Generator
    from inset_jax.sample.prompt import Prompt

Pieces = list[str | Image.Image]

AS_WRITTEN = "as written"
SWAPPED = "pictures swapped"
FOREIGN = "pictures of another sentence"
ABSENT = "pictures removed"
CONDITIONS = (AS_WRITTEN, SWAPPED, FOREIGN, ABSENT)


class Sentence(NamedTuple):
    """One held-out sentence."""

    pieces: Pieces  # texts and pictures in reading order
    words: str  # with nouns for the pictures
    target: Image.Image
    source: Image.Image | None = None  # of an edit


def read(prompts: pathlib.Path) -> list[Sentence]:
    """Reads `prompts.jsonl` with `words.txt` and the targets beside it.

    Raises:
      ValueError: a picture is missing, or the files have different numbers of lines.
    """
    prompts = pathlib.Path(prompts)
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    words = (prompts.parent / "words.txt").read_text().splitlines()
    if len(lines) != len(words):
        raise ValueError(f"{prompts}: {len(lines)} prompts, but words.txt has {len(words)} lines")
    return [
        Sentence(
            read_sentence(line["prompt"], str(prompts.parent)),
            word,
            image.load(prompts.parent / f"{number}_target.png"),
            image.load(prompts.parent / line["source"]) if "source" in line else None,
        )
        for number, (line, word) in enumerate(zip(lines, words, strict=True))
    ]


def under(condition: str, sentences: Sequence[Sentence]) -> list[Pieces]:
    """Returns each sentence's pieces under one of CONDITIONS.

    `SWAPPED` puts each picture where the one before it was: two change places, and of several none
    keeps its own. `FOREIGN` takes the pictures of the next sentence that has as many, or else those
    of the next sentences one after the other. `ABSENT` leaves the texts alone.

    Raises:
      ValueError: no such condition, or too few foreign pictures.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition {condition!r}: there are {', '.join(CONDITIONS)}")
    return [_changed(condition, sentences, number) for number in range(len(sentences))]


def applies(condition: str, sentence: Sentence) -> bool:
    """Whether a sentence has the pictures that a condition changes: of one, none can be swapped."""
    needed = {SWAPPED: 2, FOREIGN: 1, ABSENT: 1}
    return len(_pictures(sentence.pieces)) >= needed.get(condition, 0)


def _changed(condition: str, sentences: Sequence[Sentence], number: int) -> Pieces:
    pieces = sentences[number].pieces
    own = _pictures(pieces)
    if condition == AS_WRITTEN:
        return list(pieces)
    if condition == ABSENT:
        return [piece for piece in pieces if isinstance(piece, str)]
    if condition == SWAPPED:
        new = own[1:] + own[:1]
    else:
        after = [_pictures(s.pieces) for s in [*sentences[number + 1 :], *sentences[:number]]]
        foreign = [picture for pictures in after for picture in pictures][: len(own)]
        new = next((pictures for pictures in after if len(pictures) == len(own)), foreign)
        if len(new) < len(own):
            raise ValueError(
                f"{FOREIGN}: sentence {number} has {len(own)}, the others {len(new)} in all; draw "
                "more sentences"
            )
    source = iter(new)
    return [piece if isinstance(piece, str) else next(source) for piece in pieces]


def _pictures(pieces: Pieces) -> list[Image.Image]:
    return [piece for piece in pieces if not isinstance(piece, str)]


def prompt(sentence: Sentence, pieces: Pieces, seed: int = 0) -> Prompt:
    """What the sampler is asked for: a drawing of the target's size."""
    from inset_jax.sample.prompt import Prompt

    return Prompt(pieces, sentence.source, sentence.target.height, sentence.target.width, seed)


def check(generator: Generator, sentence: Sentence) -> None:
    """Refuses a sentence that a model cannot draw; nothing is computed.

    Raises:
      ValueError: its picture is too large, or it has more tokens than the model was trained on.
    """
    from inset_jax.sample.prompt import check_drawable

    asked = prompt(sentence, sentence.pieces)
    check_drawable(asked, generator.config, generator.tokenizer)


def draw(
    generator: Generator,
    sentences: Sequence[Sentence],
    condition: str = AS_WRITTEN,
    seeds: int = 1,
    batch: int = 8,
    watch: Callable[[int], None] = lambda pictures: None,
) -> list[list[Image.Image]]:
    """Draws sentences under one of CONDITIONS, each `seeds` times: one list a sentence.

    The noise depends on a sentence's number and the seed alone: conditions start from the same. All
    have the guidance of the sentence as it is written.

    Args:
      batch: pictures in one run.
      watch: called with the number of pictures of each run, when it is done.

    Raises:
      ValueError: a picture that the model cannot draw, as `Generator.draw_all` says.
    """
    from inset_jax.sample.api import Options

    options = Options(pictures=seeds)
    if condition == ABSENT and not any(own.source for own in sentences):
        # texts alone have a guidance of their own, and only the pictures are to be other ones
        own = generator.settings()
        same = {"text_only_alpha": own.alpha, "text_only_beta": own.beta}
        options = Options(settings=dataclasses.replace(own, **same), pictures=seeds)
    prompts = [
        prompt(own, pieces, number * seeds)
        for number, (own, pieces) in enumerate(zip(sentences, under(condition, sentences)))
    ]
    step, drawings = max(batch // seeds, 1), []
    for start in range(0, len(prompts), step):
        made = generator.draw_all(prompts[start : start + step], options)
        drawings += [one.pictures for one in made]
        watch(sum(len(one.pictures) for one in made))
    return drawings


def psnr(picture: Image.Image, target: Image.Image) -> float:
    """Peak signal to noise ratio of two RGB pictures of one size, in dB (100 where they agree).

    Raises:
      ValueError: the sizes differ.
    """
    if picture.size != target.size:
        raise ValueError(f"pictures of {picture.size} and {target.size} pixels")
    ours, theirs = (np.asarray(image.convert("RGB"), np.float64) for image in (picture, target))
    error = np.mean((ours - theirs) ** 2)
    return float(min(10 * np.log10(255**2 / max(error, 1e-9)), 100.0))
