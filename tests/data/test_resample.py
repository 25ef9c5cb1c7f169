"""The compiled resizing gives PIL's bytes, and nothing changes where it is missing."""

import io
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from inset_jax.core.config import SizeLimits
from inset_jax.data import image, resample

SIDE = st.integers(1, 300)
# noise reaches all weights; black and white stripes leave 0 to 255 on both sides
LIMITS = SizeLimits(518, 224, 14)
CONTENT = st.sampled_from(["noise", "stripes", "flat"])


def pixels_of(content: str, width: int, height: int) -> np.ndarray:
    if content == "noise":
        return np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if content == "flat":
        return np.full((height, width, 4), 201, np.uint8)
    return np.repeat(np.indices((height, width)).sum(0)[..., None] // 2 % 2 * 255, 4, 2).astype(
        "u1"
    )


def by_pil(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


@settings(max_examples=300, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, CONTENT)
@example(1024, 20, 512, 40, "noise")  # lines that share their places in the cache
@example(16, 16, 17, 16, "noise")
@example(657, 966, 656, 960, "noise")  # columns first
@example(40, 80, 20, 40, "noise")  # on the border
@example(40, 80, 20, 39, "noise")
@example(2000, 16, 16, 17, "stripes")  # 125 pixels become one
@example(17, 2000, 16, 16, "noise")
def test_what_is_covered_equals_pil(width, height, to_width, to_height, content):
    is_same = (width, height) == (to_width, to_height)
    if resample.covers(width, height, to_width, to_height) and not is_same:
        pixels = pixels_of(content, width, height)
        found = resample.bicubic(pixels, to_width, to_height)
        assert np.array_equal(found, by_pil(pixels, (to_width, to_height)))


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE)
@example(1, 1, 300, 300)
@example(100, 300, 90, 200)  # columns first
@example(300, 1, 1, 300)
def test_any_size_equals_pil(width, height, to_width, to_height):
    pixels = pixels_of("noise", width, height)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "LARGE", 0)
        found = image.resize_to(picture, to_width, to_height)
    assert found.shape == (to_height, to_width, 3) and found.dtype == np.uint8
    assert np.array_equal(found, by_pil(pixels, (to_width, to_height)))


def test_training_sizes_are_covered():
    for width, height in [(900, 700), (700, 900), (657, 966), (500, 1200), (4000, 3000)]:
        assert resample.covers(width, height, *image.resized_size(width, height, LIMITS))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_a_decoded_jpeg_and_one_that_was_drawn_on_are_resized_as_they_are():
    picture = image.load(jpeg(pixels_of("stripes", 400, 380)))
    assert np.array_equal(image.resize_to(picture, 280, 266), by_pil(np.array(picture), (280, 266)))
    ImageDraw.Draw(picture).rectangle((0, 0, 200, 200), "red")
    found = image.resize_to(picture, 280, 266)
    assert found[50, 50].tolist() == [255, 0, 0]
    assert np.array_equal(found, by_pil(np.array(picture), (280, 266)))


@pytest.fixture
def chosen_anew():
    image._resampler.cache_clear()
    yield
    image._resampler.cache_clear()


def test_without_numba_pil_resizes(chosen_anew, monkeypatch):
    picture = Image.fromarray(np.ascontiguousarray(pixels_of("noise", 400, 380)[..., :3]))
    ours = image.resize_to(picture, 280, 266)
    assert image._resampler() is resample
    image._resampler.cache_clear()
    monkeypatch.setitem(sys.modules, "inset_jax.data.resample", None)
    monkeypatch.delattr("inset_jax.data.resample")
    assert image._resampler() is None
    assert np.array_equal(image.resize_to(picture, 280, 266), ours)


def test_a_pil_that_resizes_otherwise_is_left_to_do_it(chosen_anew, monkeypatch, caplog):
    wrong = lambda pixels, width, height: np.zeros((height, width, 3), np.uint8)
    monkeypatch.setattr(resample, "bicubic", wrong)
    assert image._resampler() is None
    assert "pictures are left to it" in caplog.text


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    asked = []

    def njit(signature, nogil, cache=False):
        asked.append(cache)
        if cache:
            raise RuntimeError("no locator available")  # Numba's word for it
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert resample._compiled(numba.types.int32)(len) is len
    assert asked == [True, False]


def test_small_pictures_do_not_load_numba():
    code = (
        "import sys; from PIL import Image; from inset_jax.data import image\n"
        "image.resize_to(Image.new('RGB', (99, 80)), 56, 42)\n"
        "print('numba' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
