r"""Sentences with pictures in them, as a person types them.

    A [img:cat.png] sits on a [img:bench.png]

A path goes up to the next `]`. Text between pictures is kept verbatim, its spaces included. Text
that is empty or only white space vanishes: it says nothing, but would cost a segment with two
markers. Write `\[img:` where the characters `[img:` themselves are meant; other backslashes are
text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PLACE = re.compile(r"\[img:[^\]]*\]")  # in a text that was parsed, characters that were meant
_MARK = re.compile(r"(?P<escape>\\)?\[img:(?:(?P<path>[^\]]*)\])?")


class PicturePath(NamedTuple):
    """A picture that a sentence names."""

    path: str


def parse_sentence(sentence: str) -> list[str | PicturePath]:
    r"""Splits a sentence into texts and pictures, in order.

    Raises:
      ValueError: `[img:` without a path or without its `]`.
    """
    pieces: list[str | PicturePath] = []
    text, at = "", 0
    while mark := _MARK.search(sentence, at):
        text += sentence[at : mark.start()]
        at = mark.end()
        if mark["escape"]:
            at = mark.start() + len(r"\[img:")
            text += "[img:"
            continue
        if not (mark["path"] or "").strip():
            fault = "names no file" if mark["path"] is not None else "has no closing ]"
            raise ValueError(
                f"{sentence!r}: [img: at character {mark.start()} {fault}; write [img:cat.png], or "
                r"\[img: for the characters themselves"
            )
        pieces += [text, PicturePath(mark["path"].strip())]
        text = ""
    pieces.append(text + sentence[at:])
    return [piece for piece in pieces if isinstance(piece, PicturePath) or piece.strip()]


def read_sentence(sentence: str, folder: str = "") -> list:
    """Parses a sentence and opens its pictures: a list of texts and RGB PIL images.

    Args:
      folder: what relative paths are relative to; "" is the current one.

    Raises:
      ValueError: see `parse_sentence`; or a picture is missing or broken (its path is named).
    """
    from inset_jax.data import image

    return [
        image.load(str(Path(folder, piece.path))) if isinstance(piece, PicturePath) else piece
        for piece in parse_sentence(sentence)
    ]
