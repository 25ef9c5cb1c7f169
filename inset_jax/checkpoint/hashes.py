"""SHA-256 of files, and what a download says that it should be."""

from __future__ import annotations

import hashlib
import pathlib
import re
from typing import NamedTuple

from inset_jax.checkpoint.errors import Damaged

BLOCK = 1 << 22  # bytes hashed at once
LISTS = ("SHA256SUMS", "sha256sums.txt", "SHA256SUMS.txt")
HEX = re.compile(r"[0-9a-fA-F]{64}")


class Stated(NamedTuple):
    """A SHA-256 that somebody else gives for a file."""

    sha256: str
    where: pathlib.Path


def sha256(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stated(file: pathlib.Path) -> Stated | None:
    """Looks for a file's SHA-256 beside it; None where nobody gives one.

    Known: `<file>.sha256`, lists as sha256sum writes them, and what the Hugging Face client leaves:
    a link to a blob of that name, or a note in `.cache`.
    """
    if file.is_symlink() and HEX.fullmatch(file.resolve().name):
        return Stated(file.resolve().name.lower(), file.resolve())
    for path in (file.with_name(file.name + ".sha256"), *map(file.with_name, LISTS)):
        for line in _lines(path):
            digest, _, name = line.partition(" ")
            if HEX.fullmatch(digest) and name.strip(" *") in ("", file.name, f"./{file.name}"):
                return Stated(digest.lower(), path)
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    lines = _lines(note)  # commit, ETag, time
    if len(lines) > 1 and HEX.fullmatch(lines[1].strip()):
        return Stated(lines[1].strip().lower(), note)
    return None


def check(file: pathlib.Path, found: str) -> None:
    """Compares a computed hash with the stated one, if there is one.

    Raises:
      Damaged: they differ.
    """
    told = stated(file)
    if told is not None and told.sha256 != found:
        raise Damaged(
            f"{file}: its SHA-256 is {found}, but {told.where} says {told.sha256}: the file was "
            "damaged on the way, or is another one; copy it again"
        )


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
