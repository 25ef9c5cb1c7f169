"""Records: what an example is on disk. Schema version 2; docs/data.md has it as a table.

An example is a list of segments in reading order and some facts about it:

    id        unique in its split             version   2
    kind      what it teaches: "t2i", "image-interleaved", "video-interleaved", "editing",
              "understanding", ...; losses are reported by it
    source    where it is from                licence   under which terms
    segments  each with
        kind         "text", "vit" (image as ViT patches), "vae" (image as clean latents, no loss)
                     or "target" (image to be drawn, flow loss)
        role         a free word for people and reports: "prompt", "reference", "source", "answer"
        text         of a text
        image        of an image: its encoded file, any format that PIL reads, original size
        width,       of the image as it is shown (after EXIF rotation), so that lengths are known
        height       without decoding
        loss         of a text: its tokens are next-token targets
        draws        of a text: its last token predicts <|vision_start|> (the model decides to draw)
        opens,       of an image: False continues the segment of the image before (frames of a
        frame_delta  video); positions from this frame to the next, 0 for no video
        moments      of a clean or target image, if precomputed, else None: mean and log variance of
                     the autoencoder at the training size, float16 [2, rows, columns, channels]
        moments_vae  digest of the encoder that made them (`checkpoint.autoencoder.digest`); they
                     are used where it is the digest of the run's own

On disk: ArrayRecord shards of a TensorFlow Datasets folder (no TensorFlow needed). An image that
several segments show (a source as ViT patches and as latents) is stored once.

Version 1 had no `moments_vae`: its records are read, their moments fit no autoencoder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy as safetensors

VERSION = 2  # that is written
READABLE = (1, 2)
SEGMENT_KINDS = ("text", "vit", "vae", "target")


@dataclass(frozen=True)
class Segment:
    """One text or image of an example; the fields are those of the module's docstring."""

    kind: str
    text: str = ""
    image: bytes = b""
    width: int = 0
    height: int = 0
    role: str = ""
    loss: bool = False
    draws: bool = False
    opens: bool = True
    frame_delta: int = 0
    moments: np.ndarray | None = None
    moments_vae: str = ""


@dataclass(frozen=True)
class Example:
    """One example; the fields are those of the module's docstring."""

    id: str
    segments: tuple[Segment, ...]
    kind: str = ""
    source: str = ""
    licence: str = ""

    @property
    def has_target(self) -> bool:
        return any(segment.kind == "target" for segment in self.segments)


def check(example: Example) -> None:
    """Refuses an example that breaks the schema (images are not decoded).

    Raises:
      ValueError: the example's id, the segment and what is wrong with it.
    """
    if not example.id:
        raise ValueError("an example without an id")
    if not example.segments:
        raise ValueError(f"{example.id}: no segments")
    kinds = [segment.kind for segment in example.segments]
    for number, (before, segment) in enumerate(zip(["", *kinds], example.segments)):
        where = f"{example.id}: segment {number} ({segment.kind})"
        if segment.kind not in SEGMENT_KINDS:
            raise ValueError(f"{where}: expected one of {', '.join(SEGMENT_KINDS)}")
        if segment.moments is not None:
            _check_moments(segment, where)
        if segment.kind == "text":
            if segment.image or not segment.opens:
                raise ValueError(f"{where}: a text has no image and continues nothing")
            if not segment.text and not segment.loss:
                raise ValueError(f"{where}: empty text")
        elif not segment.image or segment.width < 1 or segment.height < 1:
            size = f"{len(segment.image)} bytes, {segment.width}x{segment.height}"
            raise ValueError(f"{where}: an image needs its bytes and size, found {size}")
        elif segment.text or segment.loss or segment.draws:
            raise ValueError(f"{where}: text, loss and draws belong to texts")
        elif not segment.opens and before != segment.kind:
            raise ValueError(
                f"{where}: continues the segment before it, which is {before or 'none'}"
            )


def _check_moments(segment: Segment, where: str) -> None:
    if segment.kind not in ("vae", "target"):
        raise ValueError(f"{where}: moments belong to clean and target images")
    if not segment.moments_vae:
        raise ValueError(f"{where}: moments without the digest of their autoencoder")
    if segment.moments.ndim != 4 or segment.moments.shape[0] != 2:
        shape = segment.moments.shape
        raise ValueError(f"{where}: moments are [2, rows, columns, channels], found {shape}")


def to_features(example: Example) -> dict:
    """Returns the nested dict that is stored.

    Raises:
      ValueError: the example breaks the schema.
    """
    check(example)
    images: dict[bytes, int] = {}
    segments = []
    for segment in example.segments:
        number = -1
        if segment.kind != "text":
            number = images.setdefault(segment.image, len(images))
        row = dataclasses.asdict(segment) | {"image": number}
        row["moments"] = _to_bytes(segment.moments)
        segments.append(row)
    facts = {name: getattr(example, name) for name in ("id", "kind", "source", "licence")}
    return facts | {"version": VERSION, "images": list(images), "segments": segments}


def from_features(features: Mapping) -> Example:
    """Returns the example that was stored.

    Raises:
      ValueError: another version of the schema, or a damaged record.
    """
    if int(features["version"]) not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise ValueError(f"schema version {features['version']}, this program reads {known}")
    columns = features["segments"]  # a dict of columns, as the sequence of a dict comes back
    images = features["images"]
    types = _TYPES | {"image": lambda number: bytes(images[number]) if number >= 0 else b""}
    absent = {"moments_vae": [""] * len(columns["kind"])}  # version 1
    values = [map(type_, (absent | columns)[name]) for name, type_ in types.items()]
    facts = {name: _text(features[name]) for name in ("id", "kind", "source", "licence")}
    return Example(segments=tuple(map(Segment, *values)), **facts)


def from_bytes(data: bytes) -> Example:
    """Returns the example of a record as it lies in its shard, a serialized `tf.train.Example`.

    As `from_features` of what TensorFlow Datasets makes of it, in a fifth of the time.

    Raises:
      Exception: of many kinds, if the record is damaged or of another schema.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    features, columns = {"images": []}, {}
    for name, feature in tf_example_pb2.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if name.startswith("segments/"):
            columns[name.removeprefix("segments/")] = values
        else:
            features[name] = values if name == "images" else values[0]
    return from_features(features | {"segments": columns})


def _to_bytes(array: np.ndarray | None) -> bytes:
    # not NumPy's own format: its header is parsed as Python, and the parser of Python 3.11 fails
    # when threads take turns in it
    return safetensors.save({"moments": array.astype(np.float16)}) if array is not None else b""


def _from_bytes(data: bytes) -> np.ndarray | None:
    return safetensors.load(data)["moments"] if data else None


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# what makes the field of a segment of what is stored, in the order of the fields
_TYPES = {
    field.name: {str: _text, bool: bool, int: int}.get(type(field.default), _from_bytes)
    for field in dataclasses.fields(Segment)
}
_TYPES["kind"] = _text


def features():
    """Returns the schema as TensorFlow Datasets knows it."""
    from tensorflow_datasets import features as f

    anything = f.Scalar(np.object_)  # bytes, kept as they are
    row = {
        field.name: {str: f.Text(), bool: np.bool_, int: np.int32}[type(field.default)]
        for field in dataclasses.fields(Segment)
        if field.name not in ("kind", "image", "moments")
    }
    row |= {"kind": f.Text(), "image": np.int32, "moments": anything}
    facts = {name: f.Text() for name in ("id", "kind", "source", "licence")}
    return f.FeaturesDict(
        facts | {"version": np.int32, "images": f.Sequence(anything), "segments": f.Sequence(row)}
    )


def write_records(folder, splits: Mapping[str, Iterable[Example]]) -> None:
    """Writes a folder of records, whole or not at all.

    Args:
      folder: does not exist yet.
      splits: name ("train", "validation", ...) to examples, which are kept in order.

    Raises:
      ValueError: the folder exists, a split is empty, or an example breaks the schema.
    """
    import tensorflow_datasets as tfds

    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder}: exists; remove it or name another folder")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "records"  # the shards' files begin with it
        VERSION = tfds.core.Version(f"{VERSION}.0.0")
        pkg_dir_path = code_path = None  # no files beside this class; finding them needs a package

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features(), disable_shuffling=True)

        def _split_generators(self, manager):
            return {name: _numbered(name, examples) for name, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError("the splits bring their own")

    scratch = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    tfds.disable_progress_bar()
    builder = Builder(data_dir=str(scratch), file_format="array_record")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its banner
            builder.download_and_prepare()
        Path(builder.data_dir).rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _numbered(split: str, examples: Iterable[Example]):
    seen: set[str] = set()
    for number, example in enumerate(examples):
        if example.id in seen:  # noise and dropout are keyed by it
            raise ValueError(f"split {split!r} has two examples with the id {example.id!r}")
        seen.add(example.id)
        yield number, to_features(example)
    if not seen:
        raise ValueError(f"split {split!r} has no examples")


class Records:
    """A split of a folder of records: random access, safe to share between threads and pickle."""

    def __init__(self, folder: str, split: str, source, shards: list[tuple[str, int]]):
        """`source` gives stored bytes by number; `shards` are file names and numbers of records."""
        self.folder, self.split = folder, split
        self._source = source
        self._files = [name for name, _ in shards]
        self._ends = np.cumsum([length for _, length in shards])

    def __len__(self) -> int:
        return len(self._source)

    @property
    def files(self) -> list[Path]:
        """The shards of the split, in order."""
        return [Path(self.folder, name) for name in self._files]

    @property
    def lengths(self) -> list[int]:
        """Records in each shard."""
        return np.diff(self._ends, prepend=0).tolist()

    def __getitem__(self, number: int) -> Example:
        """Reads one example.

        Raises:
          ValueError: the record cannot be read; the message names the shard and the record.
          IndexError: there is no such number.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            return from_bytes(self._source[int(number)])
        except Exception as error:  # whatever a damaged record does to the reader
            shard = int(np.searchsorted(self._ends, number, side="right"))
            file = (
                Path(self.folder, self._files[shard]) if shard < len(self._files) else self.folder
            )
            raise ValueError(
                f"{file}: record {number} of split {self.split!r} cannot be read: {error}"
            ) from error


def open_records(folder, split: str = "train") -> Records:
    """Opens a folder that `write_records` made.

    Args:
      folder: may end in `#NAME`, which then is the split.

    Raises:
      ValueError: no such folder, not records, or no such split (all named).
    """
    folder, named = split_path(folder)
    split = named or split
    builder = open_folder(folder)
    splits = builder.info.splits
    check_split(folder, split, splits)
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        source = builder.as_data_source(split, deserialize_method=raw)
        shards = list(zip(splits[split].filenames, splits[split].shard_lengths, strict=True))
    except Exception as error:
        raise ValueError(f"{folder}: cannot be opened as records: {error}") from error
    return Records(folder, split, source, shards)


def split_path(folder) -> tuple[str, str]:
    """Divides `FOLDER#SPLIT` at its last `#`; a path that is a folder of records has no split."""
    folder = str(folder)
    if is_records(folder) or "#" not in folder:
        return folder, ""
    folder, _, split = folder.rpartition("#")
    return folder, split


def is_records(folder) -> bool:
    """Says whether a folder is one of TensorFlow Datasets."""
    return (Path(folder) / "dataset_info.json").is_file()


def open_folder(folder: str):
    """Returns the builder of a folder of records.

    Raises:
      ValueError: no such folder, or not records.
    """
    if not is_records(folder):
        raise ValueError(f"{folder}: no records there (no dataset_info.json)")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        names = set(builder.info.features)
    except Exception as error:
        raise ValueError(f"{folder}: cannot be opened as records: {error}") from error
    if not {"segments", "images"} <= names:
        raise ValueError(
            f"{folder}: a data set with {', '.join(sorted(names))}, not records; make some of it "
            "with python -m tools.build_records"
        )
    return builder


def check_split(folder: str, split: str, splits) -> None:
    """Refuses a split that is not there.

    Raises:
      ValueError: it names those that are.
    """
    if split not in splits:
        names = sorted(splits)
        raise ValueError(
            f"{folder}: no split {split!r}; it has {', '.join(names)} (write {folder}#{names[0]})"
        )
