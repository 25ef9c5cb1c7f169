import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import SizeLimits
from inset_jax.data import image
from tests.data.conftest import GOLDEN

TRANSFORMS = np.load(GOLDEN / "common" / "transforms.npz")
SIZES = [name for name in TRANSFORMS.files if name.endswith("output_wh")]
PLACES = [name for name in TRANSFORMS.files if name.startswith("posids")]
RED = (200, 30, 40)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixel(data: bytes, at=(0, 0)) -> tuple:
    return image.load(data).getpixel(at)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_equal_the_reference(name):
    config, images, _ = name.split("/")
    longest, shortest, stride, pixels = TRANSFORMS[f"{config}/params_max_min_stride_maxpixels"]
    limits = SizeLimits(int(longest), int(shortest), int(stride), int(pixels))
    count = int(images.removeprefix("img_num"))
    found = [image.resized_size(int(w), int(h), limits, count) for w, h in TRANSFORMS["input_wh"]]
    assert np.array_equal(found, TRANSFORMS[name])


@pytest.mark.parametrize("number", range(5))
def test_pixels_patches_and_places_equal_the_reference(number):
    of = lambda name: TRANSFORMS[f"pixels{number}/{name}"]
    longest, shortest, stride = map(int, of("args_max_min_stride"))
    picture = Image.fromarray(of("input_uint8_hwc"))
    pixels = image.normalize(image.resize(picture, SizeLimits(longest, shortest, stride)))
    assert np.array_equal(pixels.transpose(2, 0, 1), of("output_chw"))
    assert np.array_equal(image.patchify(pixels, stride), of("patchified"))
    rows, columns = (side // stride for side in pixels.shape[:2])
    assert np.array_equal(image.place_ids(rows, columns, 70), of("pos_extrapolate_S70"))
    assert np.array_equal(image.place_ids(rows, columns, 70, True), of("pos_interpolate_S70"))


@pytest.mark.parametrize("size", [(1, 1), (37, 5), (700, 301)])
def test_pixels_are_those_that_pil_gives(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    picture = Image.fromarray(noise)
    assert np.array_equal(image.resize_to(picture, *size), noise)
    smaller = picture.resize((14, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(image.resize_to(picture, 14, 28), np.asarray(smaller))
    assert image.resize_to(picture, *size).dtype == np.uint8


def test_a_large_picture_that_is_open_and_not_yet_read_is_resized():
    noise = np.random.default_rng(3).integers(0, 256, (400, 400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    found = image.resize_to(Image.open(file), 300, 280)
    np.testing.assert_array_equal(found, image.resize_to(Image.fromarray(noise), 300, 280))


def test_patches_are_written_where_they_belong():
    picture = np.arange(28 * 42 * 3).reshape(28, 42, 3)
    out = np.full((8, 14 * 14 * 3), -1)
    image.patchify(picture, 14, out[1:7])
    assert np.array_equal(out[1:7], image.patchify(picture, 14))
    assert (out[[0, 7]] == -1).all()
    assert np.array_equal(out[5].reshape(14, 14, 3), picture[14:, 14:28])


@pytest.mark.parametrize("name", PLACES)
def test_places_equal_the_reference(name):
    kind, *numbers = re.match(r"posids/(\w+)_h(\d+)_w(\d+)_p(\d+)_S(\d+)", name).groups()
    height, width, patch, side = map(int, numbers)
    found = image.place_ids(height // patch, width // patch, side, kind == "interpolate")
    assert np.array_equal(found, TRANSFORMS[name])


@pytest.mark.parametrize("name", ["rgba", "gray"])
def test_alpha_and_grey_equal_the_reference(name):
    found = image.load(Image.fromarray(TRANSFORMS[f"{name}/input"]))
    assert np.array_equal(np.asarray(found), TRANSFORMS[f"{name}/output"])


def test_exif_rotation_is_applied():
    picture = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    assert image.load(encoded(picture, "JPEG", exif=exif)).size == (2, 4)


def test_palettes_with_and_without_transparency():
    picture = Image.new("RGB", (2, 1), RED)
    palette = picture.quantize(4)
    assert pixel(encoded(palette)) == RED
    assert pixel(encoded(palette, transparency=palette.getpixel((0, 0)))) == (255, 255, 255)


def test_any_alpha_is_composited_on_white():
    assert pixel(encoded(Image.new("LA", (1, 1), (0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (1, 1), (*RED, 255)))) == RED
    half = pixel(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert half == (127, 127, 127)
    key = encoded(Image.new("RGB", (1, 1), RED), transparency=RED)
    assert pixel(key) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    found = np.asarray(image.load(encoded(Image.fromarray(grey))))[0, :, 0]
    assert found.tolist() == [0, 100, 255]
    keyed = encoded(Image.fromarray(grey), transparency=257 * 100)
    assert np.asarray(image.load(keyed))[0, :, 0].tolist() == [0, 255, 255]
    tiff = encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")
    assert np.asarray(image.load(tiff))[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_becomes_rgb():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = pixel(data)
    assert red > 240 and green < 15 and blue < 15


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == (255, 0, 0)


def test_one_pixel_and_a_thread_of_pixels_get_the_references_size():
    vit, vae = SizeLimits(), SizeLimits(1024, 512, 16)
    assert image.resized_size(1, 1, vae) == (512, 512)
    assert image.resized_size(20000, 10, vit) == (980, 14)
    assert image.resized_size(20000, 10, vae) == (1024, 16)
    assert image.resize(Image.new("RGB", (20000, 10)), vit).shape == (14, 980, 3)
    assert image.resize(Image.new("RGB", (1, 1)), vit).shape == (224, 224, 3)


def test_more_patches_than_the_table_has_are_refused():
    with pytest.raises(ValueError, match=r"80x3 .* table of 70x70: resize it to at most 70"):
        image.place_ids(80, 3, 70)


@pytest.mark.parametrize("size", [(1, 1), (65, 67), (320, 241)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_are_decoded_to_the_bit_as_pil_decodes_them(size, progressive, subsampling):
    random = np.random.default_rng(size[0])
    smooth = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(smooth) + random.normal(0, 9, (*size[::-1], 1))
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    for quality in (30, 75, 95, 100):
        options = dict(quality=quality, progressive=progressive, subsampling=subsampling)
        data = encoded(picture, "JPEG", **options)
        assert image._from_jpeg(data).size == size
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(image.load(data), expected)


def test_other_jpegs_are_left_to_pil(monkeypatch):
    monkeypatch.setattr(image, "_from_jpeg", lambda data: pytest.fail("not one for it"))
    red = Image.new("RGB", (20, 10), RED)
    turned = red.getexif()
    turned[image.ORIENTATION] = 6
    assert image.load(encoded(red, "JPEG", exif=turned)).size == (10, 20)
    assert pixel(encoded(red.convert("L"), "JPEG")) == 3 * (pixel(encoded(red.convert("L")))[0],)
    assert image.load(encoded(red.convert("CMYK"), "JPEG")).mode == "RGB"
    whole = encoded(red, "JPEG")
    assert image.load(Image.open(io.BytesIO(whole))).size == (20, 10)


def test_a_jpeg_that_only_pil_reads_is_read(monkeypatch):
    def refuse(data):
        raise ValueError("odd")

    monkeypatch.setattr(image, "_from_jpeg", refuse)
    assert image.load(encoded(Image.new("RGB", (20, 10), RED), "JPEG")).size == (20, 10)


def test_a_truncated_file_is_named(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(random))
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half\.png: damaged image"):
        image.load(tmp_path / "half.png")
    jpeg = encoded(Image.fromarray(random), "JPEG")
    with pytest.raises(ValueError, match="half of a jpeg: damaged image"):
        image.load(jpeg[: len(jpeg) // 2], "half of a jpeg")


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png: cannot be read as an image"):
        image.load(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"none\.png: no such image file"):
        image.load(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        image.load(b"")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and whose pixels are missing."""
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (13_000, 11_000)])
def test_a_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(ValueError, match=r"bomb\.png: .* pixels.* at most 134217728"):
        image.load(png_of(*size), "bomb.png")
