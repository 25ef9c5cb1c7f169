"""Records from a TensorFlow Datasets folder that has a picture and a caption, without TensorFlow.

The folder is one version of a prepared data set (it holds dataset_info.json), in a format of random
access: `tfds build --file_format=array_record`. Its splits keep their names. The picture is the one
Image feature, the caption the one Text feature, alone or in a sequence; of several, `Options.image`
and `Options.text` name one (`captions/text` for a feature inside another).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from inset_jax.data.sources.base import (
    DEFAULT,
    NamedExample,
    Options,
    Part,
    Row,
    captioned,
    file_facts,
    fingerprint,
)


@dataclass(frozen=True)
class Tfds:
    """A folder of the kind above."""

    path: str
    options: Options = DEFAULT

    def parts(self, most: int) -> list[Part]:
        builder = _open(self.path)
        _fields(builder.info.features, self.options, self.path)
        found = []
        facts = file_facts(Path(self.path) / "dataset_info.json")
        for split, info in builder.info.splits.items():
            for start in range(0, info.num_examples, most):
                end = min(start + most, info.num_examples)
                place = (split, start, end)
                name = f"{self.path}: {split}[{start}:{end}]"
                found.append(Part(name, place, fingerprint(facts, place), end - start))
        if not found:
            raise ValueError(f"{self.path}: no examples")
        return found

    def rows(self, part: Part) -> Iterator[Row]:
        import tensorflow_datasets as tfds

        split, start, end = part.place
        builder = _open(self.path)
        picture, text = _fields(builder.info.features, self.options, self.path)
        skip = tfds.decode.SkipDecoding()
        for name in reversed(picture):
            skip = {name: skip}
        try:
            source = builder.as_data_source(split, decoders=skip)
        except Exception as error:  # NotImplementedError, OSError and what the format's reader has
            raise ValueError(
                f"cannot be read without TensorFlow ({error}); prepare it with "
                "file_format='array_record'"
            ) from error
        options = replace(self.options, split=split)
        prefix = builder.info.name
        for number in range(start, end):
            where = f"{self.path}: {split}[{number}]"
            name = f"{prefix}/{split}-{number}"
            fields = (picture, text)
            yield Row(where, partial(_make, source, number, fields, name, options))


def _make(
    source, number: int, fields: Sequence[tuple[str, ...]], name: str, options: Options
) -> list[NamedExample]:
    try:
        row = source[number]
    except Exception as error:  # whatever a damaged record does to the reader
        raise ValueError(f"cannot be read: {error}") from error
    data, texts = (_value(row, path) for path in fields)
    texts = texts if isinstance(texts, Sequence) and not isinstance(texts, str | bytes) else [texts]
    captions = [t.decode() if isinstance(t, bytes) else str(t) for t in texts]
    return captioned(name, captions, bytes(data), options)


def _value(row, path: Sequence[str]):
    """Descends into dicts; what a sequence holds comes back as a list."""
    for name in path:
        row = row[name]
    return row.tolist() if hasattr(row, "tolist") else row


def _open(folder: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:
        raise ValueError(f"{folder}: cannot be opened as a TFDS folder: {error}") from error


def _fields(features, options: Options, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the paths of the picture and of the caption.

    Raises:
      ValueError: there is none or several, and the options name none.
    """
    import tensorflow_datasets as tfds

    leaves = dict(_leaves(features))
    found = []
    for kind, named, what in (
        (tfds.features.Image, options.image, "image"),
        (tfds.features.Text, options.text, "text"),
    ):
        own = [path for path, leaf in leaves.items() if isinstance(leaf, kind)]
        chosen = [path for path in own if path == tuple(named.split("/"))] if named else own
        if len(chosen) != 1:
            there = ", ".join("/".join(path) for path in own) or "none"
            raise ValueError(
                f"{folder}: expected one {what} feature, found {there}; name one by --{what}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _leaves(feature, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    inner = getattr(feature, "feature", feature)  # of a sequence, what it holds
    if isinstance(inner, Mapping) or hasattr(inner, "items"):
        for name, below in inner.items():
            yield from _leaves(below, (*path, name))
    else:
        yield path, inner
