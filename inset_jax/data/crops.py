"""Square cuts of pictures for training an autoencoder.

A source is a folder of records, whose target and clean pictures are used (those that become
latents), or a folder of image files. Which picture and which part of it is cut is a function of
(seed, step, row) alone, so the state of the data is the number of steps.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from inset_jax.core.config import CropConfig
from inset_jax.data import image
from inset_jax.data.keyed import keyed
from inset_jax.data.record import is_records, open_records, split_path

LATENT_KINDS = ("target", "vae")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TRIES = 100  # records drawn in a row that have no picture, before we give up

# a number from a generator -> a picture, or None where the drawn record has none
Source = Callable[[np.random.Generator], Image.Image | None]


class Crops:
    """Batches of cuts, by step; safe to share between threads."""

    def __init__(self, config: CropConfig, seed: int):
        """Opens the folders; each counts by its number of records or files.

        Raises:
          ValueError: no folder is named, or one has neither records nor images.
        """
        if not config.train:
            raise ValueError("data.train is empty: name folders of records or of image files")
        self._config, self._seed = config, seed
        opened = [_open(folder, "train") for folder in config.train]
        self._sources = [source for source, _ in opened]
        sizes = np.array([size for _, size in opened], np.float64)
        self._share = sizes / sizes.sum()

    def batch(self, step: int) -> np.ndarray:
        """Returns the cuts of one step, uint8 [B, side, side, 3].

        Raises:
          ValueError: an image is damaged (it is named), or no record has one.
        """
        return np.stack([self._cut(step, row) for row in range(self._config.batch)])

    def batches(self, first: int, end: int) -> Iterator[np.ndarray]:
        """Yields the batches of steps first, ..., end - 1, each prepared while the last is used."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self.batch, first) if first < end else None
            for following in range(first + 1, end + 1):
                batch = coming.result()
                if following < end:
                    coming = pool.submit(self.batch, following)
                yield batch

    def _cut(self, step: int, row: int) -> np.ndarray:
        rng = keyed("crop", self._seed, "", step, row)
        for _ in range(TRIES):
            picture = self._sources[rng.choice(len(self._sources), p=self._share)](rng)
            if picture is not None:
                return random_cut(picture, self._config.side, self._config.shrink, rng)
        raise ValueError(
            f"data.train={self._config.train}: {TRIES} records in a row have no target or clean "
            "picture to learn from"
        )


def held_out(config: CropConfig, count: int) -> np.ndarray:
    """Returns the middle of the first `count` validation pictures, uint8 [at most count, S, S, 3].

    Raises:
      ValueError: as `Crops`; or there is no picture at all.
    """
    cuts: list[np.ndarray] = []
    for folder in config.validation:
        for picture in _in_order(folder, "validation"):
            if len(cuts) == count:
                break
            cuts.append(middle_cut(picture, config.side))
    if not cuts:
        raise ValueError(f"data.validation={config.validation}: there is no picture")
    return np.stack(cuts)


def random_cut(
    picture: Image.Image, side: int, shrink: float, rng: np.random.Generator
) -> np.ndarray:
    """Reduces by a random factor up to `shrink`, cuts anywhere, mirrors half of the time."""
    short = min(picture.size)
    smallest = min(max(side, short / shrink), max(short, side))
    picture = _with_short_side(picture, round(rng.uniform(smallest, max(short, side))))
    left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
    pixels = np.asarray(picture)[top : top + side, left : left + side]
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def middle_cut(picture: Image.Image, side: int) -> np.ndarray:
    """Reduces the short side to `side` and cuts the middle: uint8 [side, side, 3]."""
    picture = _with_short_side(picture, side)
    left, top = ((length - side) // 2 for length in picture.size)
    return np.asarray(picture)[top : top + side, left : left + side]


def _with_short_side(picture: Image.Image, short: int) -> Image.Image:
    scale = short / min(picture.size)
    size = tuple(max(round(length * scale), short) for length in picture.size)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def _is_records(folder: str) -> bool:
    return is_records(split_path(folder)[0])


def _files(folder: str) -> list[pathlib.Path]:
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: neither records nor image files ({' '.join(SUFFIXES)}) there")
    return files


def _open(folder: str, split: str) -> tuple[Source, int]:
    """Returns a source and the number of its records or files."""
    if not _is_records(folder):
        files = _files(folder)
        return lambda rng: image.load(files[rng.integers(len(files))]), len(files)
    records = open_records(folder, split)

    def draw(rng: np.random.Generator) -> Image.Image | None:
        pictures = _pictures(records[rng.integers(len(records))])
        return image.load(*pictures[rng.integers(len(pictures))]) if pictures else None

    return draw, len(records)


def _in_order(folder: str, split: str) -> Iterator[Image.Image]:
    if not _is_records(folder):
        yield from map(image.load, _files(folder))
        return
    records = open_records(folder, split)
    for number in range(len(records)):
        for encoded, name in _pictures(records[number]):
            yield image.load(encoded, name)


def _pictures(example) -> list[tuple[bytes, str]]:
    """Encoded images of an example that become latents, with a name for messages."""
    return [
        (segment.image, f"{example.id}: segment {number}")
        for number, segment in enumerate(example.segments)
        if segment.kind in LATENT_KINDS
    ]
