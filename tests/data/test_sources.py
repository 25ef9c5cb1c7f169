"""Every format that records are made of, with a good row, a bad one, and where it is told apart."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from inset_jax.data.build import build_records
from inset_jax.data.image import Keep
from inset_jax.data.record import open_records
from inset_jax.data.sources.base import Options
from inset_jax.data.sources.table import open_source


def png(colour: str = "red", size=(20, 10)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def build(path, tmp_path, per_shard: int = 100, **options):
    """Builds with the format found by looking; returns the examples by split and the reasons."""
    source = open_source(str(path), options=Options(**options))
    built = build_records(source, tmp_path / "records", per_shard)
    examples = {
        split: list(open_records(tmp_path / "records", split)) for split in sorted(built.examples)
    }
    return examples, [str(reject) for reject in built.rejects]


def story(example) -> list[str]:
    """An example in short: texts (with ! if they are learned), kinds of pictures."""
    return [s.text + "!" * s.loss if s.kind == "text" else s.kind for s in example.segments]


def parquet(path, **columns):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_bagel_text_to_image(tmp_path):
    images = [png("red"), png("blue"), b"half", png("green")]
    captions = [{"a": "red", "b": "very red"}, {"a": "blue"}, {"a": "x"}, {}]
    captions = [json.dumps(own) for own in captions]
    parquet(tmp_path / "t2i" / "p.parquet", image=images, captions=captions)
    examples, reasons = build(tmp_path / "t2i", tmp_path, name="flux", licence="CC0")
    assert [story(e) for e in examples["train"]] == [
        ["red", "target"],
        ["very red", "target"],
        ["blue", "target"],
    ]
    first = examples["train"][0]
    assert (first.id, first.kind, first.source, first.licence) == ("p-0-0-0", "t2i", "flux", "CC0")
    assert first.segments[1].image == images[0] and first.segments[1].width == 20
    assert "row group 1, row 0: picture" in reasons[0] and "no caption" in reasons[1]


def test_a_place_for_a_picture_where_no_sentence_is_parsed_is_a_reject(tmp_path):
    captions = [json.dumps({"a": text}) for text in ("a [img:cat.png] here", "a cat")]
    parquet(tmp_path / "t2i" / "p.parquet", image=[png()] * 2, captions=captions)
    examples, (reason,) = build(tmp_path / "t2i", tmp_path)
    assert [e.id for e in examples["train"]] == ["p-0-1"]
    assert "row 0: '[img:cat.png]' in a text: only a JSONL's sentences hold pictures" in reason


def test_one_wording_is_drawn_by_the_records_name(tmp_path):
    captions = [json.dumps({str(n): f"wording {n}" for n in range(9)})] * 12
    parquet(tmp_path / "t2i" / "p.parquet", image=[png()] * 12, captions=captions)
    examples, _ = build(tmp_path / "t2i", tmp_path, wordings="one")
    texts = [e.segments[0].text for e in examples["train"]]
    assert len(texts) == 12 and len(set(texts)) > 3


def test_bagel_editing(tmp_path):
    chain = [png(colour) for colour in ("red", "green", "blue")]
    parquet(
        tmp_path / "edit" / "p.parquet",
        image_list=[chain, chain[:2], chain],
        instruction_list=[[["green it"], ["blue it", "make it blue"]], [["go"]], [["too few"]]],
    )
    examples, reasons = build(tmp_path / "edit", tmp_path)
    source = ["vae", "vit"]
    assert {e.id: story(e) for e in examples["train"]} == {
        "p-0-0-0-1": [*source, "green it", "target"],
        "p-0-0-0-2-0": [*source, "green it", "target", *source, "blue it", "target"],
        "p-0-0-0-2-1": [*source, "green it", "target", *source, "make it blue", "target"],
        "p-0-0-1-2-0": [*source, "blue it", "target"],
        "p-0-0-1-2-1": [*source, "make it blue", "target"],
        "p-0-1-0-1": [*source, "go", "target"],
    }
    assert len(reasons) == 1 and "3 pictures and instructions for 1 steps" in reasons[0]
    two = examples["train"][1].segments
    assert two[3].image is two[4].image and two[3].image == chain[1]


def test_columns_of_another_type_are_rejects_that_say_so(tmp_path):
    parquet(tmp_path / "t2i" / "p.parquet", image=[png()], captions=[7])
    steps = {"image_list": [[png(), png()]], "instruction_list": [[3]]}
    parquet(tmp_path / "edit" / "p.parquet", **steps)
    parquet(tmp_path / "one" / "p.parquet", **steps | {"image_list": [png()]})
    for folder, said in (
        ("t2i", "captions: expected a list, found int"),
        ("edit", "instruction_list: a step: expected a list, found int"),
        ("one", "image_list: expected a list, found bytes"),
    ):
        examples, (reason,) = build(tmp_path / folder, tmp_path)
        assert said in reason and not any(examples.values())


def test_bagel_conversations(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(png())
    human = lambda value: {"from": "human", "value": value}
    gpt = lambda value: {"from": "gpt", "value": value}
    rows = [
        {"image": "a.png", "conversations": [human("<image>\nWhat?"), gpt("Red."), human("Sure?")]},
        {
            "image": ["a.png", "b.png"],
            "conversations": [human("<image> or <image>"), gpt("Both."), human("Why?"), gpt("So.")],
        },
        {"conversations": [human("Hello"), gpt("Hi")]},
        {"image": "a.png", "conversations": [human("no place"), gpt("x")]},
        {"image": "gone.png", "conversations": [human("<image>"), gpt("x")]},
        {"image": "a.png", "conversations": [human("<image>")]},
        {"video": "a.mp4", "conversations": []},
        {"image": "a.png", "conversations": [{"from": "system", "value": "x"}]},
    ]
    file = tmp_path / "llava.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    examples, reasons = build(file, tmp_path)
    assert [story(e) for e in examples["train"]] == [
        ["vit", "What?", "Red.!", "Sure?"],
        ["vit", "or", "vit", "Both.!", "Why?", "So.!"],
        ["Hello", "Hi!"],
    ]
    expected = ["0 <image> in", "gone.png cannot", "nothing to learn", "a video", "0 <image> in"]
    for number, (words, reason) in enumerate(zip(expected, reasons, strict=True), 4):
        assert f"llava.jsonl:{number}:" in reason and words in reason


@pytest.mark.parametrize("image", [17, {"path": "a.png"}, [{"path": "a.png"}], [None]])
def test_a_conversation_whose_pictures_are_no_paths_is_a_reject(tmp_path, image):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    rows = [{"image": image, "conversations": turns}, {"conversations": turns[1:]}]
    file = tmp_path / "llava.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    examples, (reason,) = build(file, tmp_path)
    assert reason == f"{file}:1: field 'image': expected a path or a list of them, found {image!r}"
    assert len(examples["train"]) == 1


def test_image_folder(tmp_path):
    folder = tmp_path / "pictures"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        (folder / split / "cat.png").write_bytes(png())
        rows = [{"file_name": "cat.png", "text": f"a cat of {split}"}, {"file_name": "dog.png"}]
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples, reasons = build(folder, tmp_path)
    assert story(examples["train"][0]) == ["a cat of train", "target"]
    assert examples["validation"][0].id == "pictures/val/cat.png"
    assert len(reasons) == 2 and "no text in text or caption" in reasons[0]


def tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_a_key_that_comes_again_in_a_tar_file_is_taken(tmp_path):
    names = ("a.txt", "a.png", "b.txt", "b.png", "a.text", "a.jpg")
    tar(tmp_path / "x.tar", {name: png() if name[2] in "pj" else name.encode() for name in names})
    examples, reasons = build(tmp_path / "x.tar", tmp_path)
    assert [e.segments[0].text for e in examples["train"]] == ["a.txt", "b.txt"]
    place = tmp_path / "x.tar"
    assert reasons == [f"{place}: a: id 'x/a' is taken by {place}: a"]


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_files_of_one_name_in_two_folders_have_ids_of_their_own(tmp_path, format):
    for folder in ("", "1", "2/3"):
        file = tmp_path / "set" / folder / f"x.{format}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if format == "tar":
            tar(file, {"a.png": png(), "a.txt": b"red"})
        else:
            parquet(file, image=[png()], captions=['{"a": "red"}'])
    examples, reasons = build(tmp_path / "set", tmp_path)
    own = {"parquet": "-0-0", "tar": "/a"}[format]
    assert [e.id for e in examples["train"]] == [f"{name}{own}" for name in ("1/x", "2/3/x", "x")]
    assert not reasons


def test_webdataset(tmp_path):
    def write(name, **members):
        tar(tmp_path / name, {name.replace("_", "."): data for name, data in members.items()})

    write("tars/0.tar", a_png=png(), a_txt=b"a caption", b_png=png(), c_txt=b"no picture")
    noise = np.random.default_rng(0).bytes(9000)
    write("tars/1.tar", d_jpg=png(), d_json=b'{"caption": "from json"}', e_png=noise, e_txt=b"x")
    file = tmp_path / "tars" / "1.tar"
    file.write_bytes(file.read_bytes()[:7000])
    examples, reasons = build(tmp_path / "tars", tmp_path)
    assert [story(e) for e in examples["train"]] == [
        ["a caption", "target"],
        ["from json", "target"],
    ]
    assert [e.id for e in examples["train"]] == ["0/a", "1/d"]
    assert "0.tar: b: no caption" in reasons[0] and "0.tar: c: no picture" in reasons[1]
    assert "1.tar: damaged after sample" in reasons[2] and len(reasons) == 3


@pytest.fixture
def prepared(tmp_path):
    """A TFDS data set with a picture and a sequence of captions."""
    import tensorflow_datasets as tfds

    class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = code_path = None
        name = "little_captions"

        def _info(self):
            nested = tfds.features.Sequence({"text": tfds.features.Text(), "n": np.int64})
            features = {"image": tfds.features.Image(), "captions": nested, "no": np.int64}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for n in range(count):
                captions = [{"text": f"caption {n} {m}", "n": m} for m in range(2)]
                # encoded: TFDS encodes pixels with TensorFlow
                yield n, {"image": io.BytesIO(png(size=(12, 8))), "captions": captions, "no": n}

    builder = Captions(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_tensorflow_datasets_without_tensorflow(prepared, tmp_path):
    examples, reasons = build(prepared, tmp_path, per_shard=2)
    assert {split: len(own) for split, own in examples.items()} == {"train": 6, "test": 2}
    last = examples["train"][-1]
    assert story(last) == ["caption 2 1", "target"] and last.id == "little_captions/train-2-1"
    assert (last.segments[1].width, last.segments[1].height) == (12, 8) and not reasons
    with pytest.raises(ValueError, match=r"one text feature, found captions/text; .*--text"):
        build(prepared, tmp_path, text="title")


def test_large_pictures_are_resized_once_and_others_keep_their_bytes(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (30, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    parquet(
        tmp_path / "t2i" / "p.parquet",
        image=[stream.getvalue(), png()],
        captions=['{"a": "x"}', '{"a": "y"}'],
    )
    keep = Keep(40, "png")
    examples, _ = build(tmp_path / "t2i", tmp_path, keep=keep)
    large, small = (e.segments[1] for e in examples["train"])
    assert small.image == png()
    assert (large.width, large.height) == (40, 15)
    expected = Image.fromarray(pixels).resize((40, 15), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(large.image))), expected)


def test_a_split_needs_a_plain_name(tmp_path):
    parquet(tmp_path / "t2i" / "p.parquet", image=[png()], captions=['{"a": "x"}'])
    examples, reasons = build(tmp_path / "t2i", tmp_path, split="../train")
    assert not examples and "split '../train': expected a name such as train" in reasons[0]
    assert not (tmp_path / "records").exists()


def test_what_is_of_no_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: cannot be read: there is no such file"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"of no known format; name one of jsonl, bagel-t2i"):
        open_source(str(tmp_path))
    parquet(tmp_path / "t2i" / "p.parquet", url=["a"])
    with pytest.raises(ValueError, match=r"its columns url are of no known format"):
        open_source(str(tmp_path / "t2i"))
    with pytest.raises(ValueError, match=r"no format 'zip'; there are jsonl"):
        open_source(str(tmp_path), "zip")
