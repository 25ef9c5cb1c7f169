"""All formats by name, and which of them a path is."""

from __future__ import annotations

from pathlib import Path

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
