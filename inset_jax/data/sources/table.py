"""All formats by name, and which of them a path is."""

from __future__ import annotations

import argparse
from pathlib import Path

from inset_jax.data import image
from inset_jax.data.sources import bagel, folder
from inset_jax.data.sources.base import DEFAULT, Options, Source, files
from inset_jax.data.sources.jsonl import Jsonl
from inset_jax.data.sources.tfds import Tfds
from inset_jax.data.sources.webdataset import WebDataset

FORMATS = {
    "jsonl": Jsonl,
    "bagel-t2i": bagel.TextToImage,
    "bagel-editing": bagel.Editing,
    "bagel-vlm": bagel.Conversations,
    "folder": folder.ImageFolder,
    "tfds": Tfds,
    "webdataset": WebDataset,
}


def open_source(path: str, kind: str = "", options: Options = DEFAULT) -> Source:
    """Returns a source; its format is found by looking, if it is not named.

    Raises:
      ValueError: no such format, or it cannot be told.
    """
    kind = kind or _find(Path(path))
    if kind not in FORMATS:
        raise ValueError(f"no format {kind!r}; there are {', '.join(FORMATS)}")
    return FORMATS[kind](str(path), options)


def _find(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path}: cannot be read: there is no such file or folder")
    if path.is_file() and path.suffix in (".jsonl", ".ndjson"):
        with open(path, "rb") as file:
            return "bagel-vlm" if bagel.is_conversations(file.readline()) else "jsonl"
    if path.suffix == ".tar":
        return "webdataset"
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return "tfds"
    if path.is_dir() and folder.metadata_files(path):
        return "folder"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        first = files(path, [".parquet"], "parquet files")[0]
        columns = bagel.parquet_columns(first)
        for name in ("bagel-t2i", "bagel-editing"):
            if set(FORMATS[name].columns) <= columns:
                return name
        raise ValueError(
            f"{first}: its columns {', '.join(sorted(columns))} are of no known format; expected "
            "image and captions, or image_list and instruction_list"
        )
    if path.is_dir() and any(path.rglob("*.tar")):
        return "webdataset"
    raise ValueError(f"{path}: of no known format; name one of {', '.join(FORMATS)} by --format")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --format and the fields of `Options` as flags."""
    flag, keep = parser.add_argument, image.KEEP
    flag("--format", choices=list(FORMATS), default="")
    flag("--split", default="train", help="where the format names none (%(default)s)")
    flag("--name", default="", help="kept in the records as their source")
    flag("--licence", default="", help="kept in the records")
    flag("--text", default="", metavar="FIELD", help="with the text, where it cannot be found")
    flag("--image", default="", metavar="FIELD", help="with the picture, likewise")
    flag("--images", default="", metavar="DIR", help="bagel-vlm: where the pictures are")
    several = "several captions or instructions: a record each, or one that is drawn"
    flag("--wordings", choices=("all", "one"), default="all", help=several)
    larger = "larger pictures are resized to it; 0 keeps all (%(default)s)"
    flag("--max-side", type=int, default=keep.max_side, metavar="PIXELS", help=larger)
    flag("--picture-format", choices=("jpeg", "png"), default=keep.format, help="of those")


def to_options(parsed: argparse.Namespace) -> Options:
    """Returns what was parsed with the flags of `add_options`.

    Raises:
      ValueError: a side below 0.
    """
    if parsed.max_side < 0:
        raise ValueError(f"--max-side={parsed.max_side}: expected pixels, or 0")
    names = ("split", "name", "licence", "wordings", "text", "image", "images")
    keep = image.Keep(parsed.max_side, parsed.picture_format)
    return Options(keep, **{name: getattr(parsed, name) for name in names})
