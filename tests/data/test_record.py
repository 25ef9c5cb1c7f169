import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inset_jax.data.record import (
    Example,
    Segment,
    from_features,
    open_records,
    to_features,
    write_records,
)

IMAGE, OTHER = b"\x89PNG\0\xff" * 200, b"\0JPEG"
FRAME = Segment("target", image=IMAGE, width=3, height=4, opens=False)
MOMENTS = np.arange(2 * 2 * 3 * 4, dtype=np.float16).reshape(2, 2, 3, 4)


def example(name: str = "a") -> Example:
    return Example(
        name,
        (
            Segment("text", text="Häns ", role="prompt"),
            Segment("vit", image=IMAGE, width=3, height=4, role="source"),
            Segment("vae", image=IMAGE, width=3, height=4, moments=MOMENTS, moments_vae="abc"),
            Segment("text", text="", loss=True, draws=True),
            Segment("target", image=OTHER, width=5, height=6, frame_delta=2),
            Segment("target", image=IMAGE, width=3, height=4, opens=False),
        ),
        "editing",
        "somewhere",
        "CC0-1.0",
    )


def same(a: Example, b: Example) -> bool:
    bare = lambda e: [dataclasses.replace(s, moments=None) for s in e.segments]
    pairs = zip(a.segments, b.segments, strict=True)
    return (
        dataclasses.replace(a, segments=()) == dataclasses.replace(b, segments=())
        and bare(a) == bare(b)
        and all(np.array_equal(x.moments, y.moments) for x, y in pairs)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "set"
    many = (example(f"n{number}") for number in range(300))
    write_records(folder, {"train": many, "validation": [example("é")]})
    return folder


def test_examples_come_back_as_they_were_and_in_order(folder):
    records = open_records(folder)
    assert len(records) == 300
    for number in (0, 7, 299):
        assert same(records[number], example(f"n{number}"))
    assert same(open_records(folder, "validation")[0], example("é"))
    assert same(open_records(f"{folder}#validation")[0], example("é"))


def test_a_path_may_hold_the_sign_that_names_a_split(tmp_path):
    folder = tmp_path / "a#b" / "c#train"
    write_records(folder, {"train": [example("one")], "validation": [example("two")]})
    assert open_records(folder)[0].id == "one"
    assert open_records(f"{folder}#validation")[0].id == "two"
    with pytest.raises(ValueError, match=r"a#b: no records there"):
        open_records(f"{tmp_path}/a#b#train")


def test_records_of_version_1_are_read_and_their_moments_fit_nothing(folder, monkeypatch):
    stored = to_features(example())
    stored["version"] = 1
    columns = {name: [row[name] for row in stored["segments"]] for name in stored["segments"][0]}
    del columns["moments_vae"]
    found = from_features(stored | {"segments": columns})
    assert found.segments[2].moments is not None and found.segments[2].moments_vae == ""


def test_records_are_what_tensorflow_datasets_reads(folder):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(folder)).as_data_source("train")
    records = open_records(folder)
    for number in (0, 7, 299):
        assert same(from_features(source[number]), records[number])


def test_threads_read_side_by_side(folder):
    records = open_records(folder, "train")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: records[n % 300], range(1200)))
    assert all(same(e, example(f"n{n % 300}")) for n, e in enumerate(found))


def test_an_image_shown_twice_is_stored_once(folder):
    segments = open_records(folder)[0].segments
    assert segments[1].image is segments[2].image is segments[5].image


def test_records_travel_to_other_processes(folder):
    assert same(pickle.loads(pickle.dumps(open_records(folder)))[3], example("n3"))


def test_what_cannot_be_opened_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no records there"):
        open_records(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, validation"):
        open_records(folder, "test")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be opened as records"):
        open_records(tmp_path)


def test_nothing_is_written_over_or_by_halves(folder, tmp_path):
    with pytest.raises(ValueError, match="exists; remove it"):
        write_records(folder, {"train": [example()]})
    with pytest.raises(ValueError, match="split 'validation' has no examples"):
        write_records(tmp_path / "new", {"train": [example()], "validation": []})
    with pytest.raises(ValueError, match="two examples with the id 'a'"):
        write_records(tmp_path / "new", {"train": [example(), example()]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(id=""), "an example without an id"),
        (dict(segments=()), "a: no segments"),
        (dict(segments=(Segment("audio"),)), r"a: segment 0 \(audio\): expected one of text, vit"),
        (dict(segments=(Segment("text"),)), "empty text"),
        (dict(segments=(Segment("vit", image=IMAGE),)), "1200 bytes, 0x0"),
        (dict(segments=(Segment("vit", image=IMAGE, width=1, height=1, loss=True),)), "to texts"),
        (dict(segments=(Segment("text", text="a", opens=False),)), "continues nothing"),
        (dict(segments=(dataclasses.replace(FRAME, moments=MOMENTS),)), "without the digest"),
        (dict(segments=(Segment("text", text="a", moments=MOMENTS),)), "belong to clean and targ"),
        (dict(segments=(FRAME,)), "continues the segment before it, which is none"),
        (
            dict(segments=(dataclasses.replace(FRAME, kind="vae", opens=True), FRAME)),
            r"segment 1 \(target\): continues the segment before it, which is vae",
        ),
    ],
)
def test_what_breaks_the_schema_is_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        write_records(tmp_path / "new", {"train": [dataclasses.replace(example(), **change)]})


def test_a_damaged_record_is_named_and_its_neighbours_stay(tmp_path):
    folder = tmp_path / "set"
    random = np.random.default_rng(0)
    image = lambda: dataclasses.replace(example().segments[1], image=random.bytes(2000))
    write_records(folder, {"train": [Example(f"n{n}", (image(),)) for n in range(200)]})
    shard = next(folder.glob("*train*"))
    data = bytearray(shard.read_bytes())
    data[100_000:100_020] = bytes(20)
    shard.write_bytes(data)
    records, bad = open_records(folder), []
    for number in range(200):
        try:
            assert records[number].id == f"n{number}"
        except ValueError as error:
            bad.append((number, str(error)))
    assert len(bad) == 1
    assert f"{shard}: record {bad[0][0]} of split 'train' cannot be read" in bad[0][1]


def test_a_truncated_shard_is_named(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    shard = next(copy.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:40_000])
    with pytest.raises(ValueError, match=f"{shard.name}: record 0"):
        open_records(copy)[0]


def test_another_schema_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr("inset_jax.data.record.READABLE", (3, 4))
    with pytest.raises(ValueError, match="schema version 2, this program reads 3, 4"):
        open_records(folder)[0]
