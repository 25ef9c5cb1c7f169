"""BAGEL's way of loading, re-described for a comparison of speed: `tools.benchmark loader`.

What its published loader does, in NumPy where it uses torch: every image of a sample is decoded,
resized, turned into float32 with channels first and normalised, before anything is known of the
pack; condition dropout then throws some away; a sample that does not fit is put aside, and lost
where the buffer is full; token indices are lists of Python integers; the VAE's pictures are padded
with zeros to one size. With `dense`, each sample brings its attention mask, tokens x tokens in
float32, as the loader does unless it is told to use flex attention.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from inset_jax.core.config import Config
from inset_jax.data import dropout, image, measure_packing, prepare
from inset_jax.data.record import Example
from inset_jax.data.text import Tokenizer


class Sample:
    """One example, decoded: what BAGEL's data sets yield."""

    def __init__(self, example: Example, tokenizer: Tokenizer, config: Config):
        self.example = example
        self.ids: list[list[int]] = []
        self.images: list[np.ndarray] = []  # float32 [3, height, width]
        self.tokens = 0
        for segment in example.segments:
            if segment.kind == "text":
                self.ids.append(tokenizer.encode(segment.text))
                self.tokens += len(self.ids[-1]) + 2
                continue
            limits, stride = prepare.limits_of(segment.kind, config)
            picture = Image.open(io.BytesIO(segment.image)).convert("RGB")
            size = image.resized_size(*picture.size, limits)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
            planes /= 255
            planes -= 0.5
            planes /= 0.5
            self.images.append(planes)
            self.tokens += planes.shape[1] * planes.shape[2] // stride**2 + 2


class Status:
    """A pack that is being filled: lists that grow token by token."""

    def __init__(self):
        self.tokens = 0
        self.lists: dict[str, list] = {
            name: []
            for name in ("text_ids", "text_at", "positions", "vit_at", "vae_at", "timesteps")
        }
        self.patches: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.pictures: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []

    def add(self, sample: Sample, gone: np.ndarray, config: Config, dense: bool) -> None:
        ids, images = iter(sample.ids), iter(sample.images)
        position, splits = 0, []
        for segment, dropped in zip(sample.example.segments, gone.tolist(), strict=True):
            own = next(ids) if segment.kind == "text" else next(images)
            if dropped:
                position += segment.kind != "text"
                continue
            if segment.kind == "text":
                length = self._text(own, position, config)
                position += length
            else:
                length = self._image(own, segment.kind, position, config)
                position += segment.kind != "target"
            splits.append((length, segment.kind))
        if dense:
            self.masks.append(dense_mask(splits))

    def _text(self, ids: list[int], position: int, config: Config) -> int:
        lists, tokens = self.lists, config.model.tokens
        whole = [tokens.text_start, *ids, tokens.text_end]
        lists["text_ids"].extend(whole)
        lists["text_at"].extend(range(self.tokens, self.tokens + len(whole)))
        lists["positions"].extend(range(position, position + len(whole)))
        self.tokens += len(whole)
        return len(whole)

    def _image(self, planes: np.ndarray, kind: str, position: int, config: Config) -> int:
        lists, tokens = self.lists, config.model.tokens
        _, stride = prepare.limits_of(kind, config)
        rows, columns = planes.shape[1] // stride, planes.shape[2] // stride
        inner = range(self.tokens + 1, self.tokens + 1 + rows * columns)
        lists["text_ids"].extend([tokens.image_start, tokens.image_end])
        lists["text_at"].extend([inner.start - 1, inner.stop])
        if kind == "vit":
            cut = planes.reshape(3, rows, stride, columns, stride)
            self.patches.append(np.einsum("chpwq->hwpqc", cut).reshape(rows * columns, -1))
            self.places.append(image.place_ids(rows, columns, config.model.patch_side))
            lists["vit_at"].extend(inner)
        else:
            self.pictures.append(planes)
            self.places.append(image.place_ids(rows, columns, config.model.latents.max_side))
            lists["vae_at"].extend(inner)
            draw = np.random.randn() if kind == "target" else -np.inf
            lists["timesteps"].extend([draw] * len(inner))
        lists["positions"].extend([position] * (len(inner) + 2))
        self.tokens += len(inner) + 2
        return len(inner) + 2

    def finish(self) -> dict:
        """Turns lists into arrays and pads the pictures: one batch of BAGEL's."""
        batch = {name: np.array(values) for name, values in self.lists.items()}
        if self.pictures:
            largest = np.max([picture.shape for picture in self.pictures], axis=0)
            padded = np.zeros((len(self.pictures), *largest), np.float32)
            for row, own in zip(padded, self.pictures, strict=True):
                row[:, : own.shape[1], : own.shape[2]] = own
            batch["pictures"] = padded
        for name in ("patches", "places"):
            if getattr(self, name):
                batch[name] = np.concatenate(getattr(self, name))
        batch["masks"] = self.masks
        return batch


def dense_mask(splits: list[tuple[int, str]]) -> np.ndarray:
    """Returns what each token of a sample sees: float32 [token, token], 0 or -inf."""
    total = sum(length for length, _ in splits)
    sees = np.zeros((total, total), bool)
    start = 0
    for length, kind in splits:
        end = start + length
        own = np.ones((length, length), np.float32)
        sees[start:end, start:end] = np.tril(own) if kind == "text" else own
        sees[start:end, :start] = True
        start = end
    start = 0
    for length, kind in splits:
        if kind == "target":
            sees[:, start : start + length] = False
            sees[start : start + length, start : start + length] = True
        start += length
    mask = np.zeros(sees.shape, np.float32)
    mask[~sees] = -np.inf
    return mask


def batches(
    examples: Iterable[tuple[Example, int]],
    tokenizer: Tokenizer,
    config: Config,
    total: int,
    dense: bool = False,
) -> Iterator[tuple[dict, int]]:
    """Yields BAGEL's batches and their numbers of tokens; the last one may not be full.

    Args:
      examples: with the epoch of each, in the order they come.
      total: tokens of a pack at most.
    """
    status, buffer = Status(), []
    coming = iter(examples)

    def add(sample: Sample, epoch: int) -> None:
        segments, name = sample.example.segments, sample.example.id
        opens = np.array([segment.opens for segment in segments])
        draws = (config.data.dropout, config.run.seed, name, epoch)
        status.add(sample, dropout.draw(dropout.codes(segments), opens, *draws), config, dense)

    while True:
        from_buffer = bool(buffer) and status.tokens < measure_packing.GREEDY_PREFERS * total
        if from_buffer:
            sample, epoch = buffer.pop(0)
        else:
            example, epoch = next(coming, (None, 0))
            if example is None:
                break
            sample = Sample(example, tokenizer, config)
        if sample.tokens > config.data.max_example_tokens:
            continue
        fits = status.tokens + sample.tokens <= total
        if not fits and len(buffer) < measure_packing.GREEDY_BUFFER and not from_buffer:
            buffer.append((sample, epoch))
            continue
        if fits:
            add(sample, epoch)
        if not fits or status.tokens >= measure_packing.GREEDY_DONE * total:
            yield status.finish(), status.tokens
            status = Status()
    for sample, epoch in buffer:  # its data never end; here no work shall be for nothing
        if status.tokens + sample.tokens > total:
            yield status.finish(), status.tokens
            status = Status()
        add(sample, epoch)
    yield status.finish(), status.tokens
