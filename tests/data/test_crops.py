"""Cuts of pictures: which, where from, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import CropConfig
from inset_jax.data.crops import Crops, held_out, middle_cut, random_cut
from inset_jax.data.record import Example, Segment, write_records


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every pixel of its own colour, so that a cut tells where it is from."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def is_part_of(cut: np.ndarray, whole: np.ndarray) -> bool:
    side = len(cut)
    rows, columns = (length - side + 1 for length in whole.shape[:2])
    return any(
        (whole[r : r + side, c : c + side] == cut).all()
        for r in range(rows)
        for c in range(columns)
    )


def segment(kind: str, image: Image.Image) -> Segment:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Segment(kind, image=stream.getvalue(), width=image.width, height=image.height)


@pytest.fixture
def files(tmp_path) -> str:
    folder = tmp_path / "pictures" / "inside"
    folder.mkdir(parents=True)
    for number in range(3):
        picture(40, 24, number).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return str(tmp_path / "pictures")


def test_a_batch_is_a_function_of_seed_and_step(files):
    config = CropConfig(train=(files,), side=16, batch=4)
    crops = Crops(config, seed=1)
    assert crops.batch(5).shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(crops.batch(5), Crops(config, seed=1).batch(5))
    assert (crops.batch(5) != crops.batch(6)).any()
    assert (crops.batch(5) != Crops(config, seed=2).batch(5)).any()
    assert (crops.batch(5)[0] != crops.batch(5)[1]).any()


def test_batches_read_ahead_are_those_of_their_steps(files):
    crops = Crops(CropConfig(train=(files,), side=16, batch=2), seed=0)
    for step, batch in enumerate(crops.batches(3, 6), start=3):
        np.testing.assert_array_equal(batch, crops.batch(step))
    assert step == 5
    assert list(crops.batches(6, 6)) == []


def test_without_shrinking_a_cut_is_a_part_of_its_picture_or_of_the_mirror_image():
    whole, mirrored = picture(40, 24), 0
    for seed in range(8):
        cut = random_cut(whole, 16, 1.0, np.random.default_rng(seed))
        if not is_part_of(cut, np.asarray(whole)):
            assert is_part_of(cut[:, ::-1], np.asarray(whole))
            mirrored += 1
    assert 0 < mirrored < 8


@pytest.mark.parametrize("size", [(10, 90), (16, 16), (300, 17), (64, 64), (1, 5)])
def test_any_size_gives_a_cut_of_the_side(size):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert random_cut(picture(*size), 16, 2.0, rng).shape == (16, 16, 3)
    assert middle_cut(picture(*size), 16).shape == (16, 16, 3)


def test_of_records_only_pictures_that_become_latents_are_used(tmp_path):
    target, source, reference = (picture(16, 16, seed) for seed in range(3))
    text = Segment("text", text="what is it")
    examples = [
        Example("a", (text, segment("vit", reference), segment("target", target))),
        Example("b", (text, segment("vit", reference))),
        Example("c", (text, segment("vae", source))),
    ]
    folder = tmp_path / "records"
    write_records(folder, {"train": examples, "validation": examples})
    config = CropConfig(train=(str(folder),), validation=(str(folder),), side=16, batch=32)
    drawn = {np.sort(cut, axis=1).tobytes() for cut in Crops(config, 0).batch(0)}
    expected = {np.sort(np.asarray(image), axis=1).tobytes() for image in (target, source)}
    assert drawn == expected
    np.testing.assert_array_equal(held_out(config, 9), [np.asarray(target), np.asarray(source)])
    assert len(held_out(config, 1)) == 1


def test_records_without_such_pictures_are_refused(tmp_path):
    folder = tmp_path / "records"
    only_text = Example("a", (Segment("text", text="words"),))
    write_records(folder, {"train": [only_text], "validation": [only_text]})
    config = CropConfig(train=(str(folder),), validation=(str(folder),), side=16)
    with pytest.raises(ValueError, match="no target or clean picture"):
        Crops(config, 0).batch(0)
    with pytest.raises(ValueError, match="there is no picture"):
        held_out(config, 1)


def test_empty_folders_and_damaged_files_are_refused_by_name(tmp_path, files):
    with pytest.raises(ValueError, match=r"data\.train is empty"):
        Crops(CropConfig(), 0)
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        Crops(CropConfig(train=("nowhere",)), 0)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare: neither records nor image files"):
        Crops(CropConfig(train=(str(tmp_path / "bare"),)), 0)
    (tmp_path / "bare" / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"torn\.png"):
        Crops(CropConfig(train=(str(tmp_path / "bare"),), side=16), 0).batch(0)
