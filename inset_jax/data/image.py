"""Images from files to arrays: decoding, BAGEL's resizing rule, patches and their places.

The order is always: `load` (any file to RGB) -> `resize` (PIL's antialiased bicubic, to the size of
`resized_size`) -> uint8 [height, width, 3] -> `patchify`. Sizes are (width, height) where PIL's
convention is meant and (rows, columns) for patches; names say which.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from inset_jax.core.config import DataConfig, SizeLimits

MAX_SOURCE_PIXELS = 2**27  # 134 megapixels: 400 MB decoded; a header that promises more is a bomb
JPEG_QUALITY = 95
ORIENTATION = 0x0112  # tag of EXIF
JPEG = ("JPEG", "RGB")  # PIL's format and mode of what `_from_jpeg` decodes
LARGE = 2**16  # pixels before and after: from there on `data.resample` is worth its start

log = logging.getLogger(__name__)


class Keep(NamedTuple):
    """What records keep of a picture."""

    max_side: int = DataConfig().max_side  # pixels; 0 keeps any
    format: str = "jpeg"  # of what had to be resized: "jpeg" or "png"


KEEP = Keep()


def load(source, name: str = "") -> Image.Image:
    """Decodes an image to RGB as a person sees it.

    EXIF rotation is applied; transparency of any kind (alpha, palette or colour key) is composited
    on white; 16-bit grey is scaled, not clipped; CMYK and palettes are converted; of an animation
    the first frame is taken. Colour profiles are ignored, as BAGEL ignores them.

    Args:
      source: path, encoded bytes, or a PIL image.
      name: what error messages call the image; a path names itself.

    Raises:
      ValueError: no such file, not an image, damaged, or more than MAX_SOURCE_PIXELS pixels (found
        out before anything is decoded).
    """
    name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "image")
    image = source if isinstance(source, Image.Image) else _open(source, name)
    width, height = image.size
    if width * height > MAX_SOURCE_PIXELS:
        raise ValueError(
            f"{name}: {width}x{height} pixels; at most {MAX_SOURCE_PIXELS} are decoded"
        )
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        if not turned and isinstance(source, bytes) and (image.format, image.mode) == JPEG:
            try:
                return _from_jpeg(source)
            except ValueError:
                pass  # damaged: whether it can be read, and how, is for PIL to say
        image.load()
        # both of these copy, so neither where there is nothing to do
        image = ImageOps.exif_transpose(image) if turned else image
        return image if _is_plain(image) else to_rgb(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name}: damaged image: {error}") from error


def _from_jpeg(data: bytes) -> Image.Image:
    """Decodes a JPEG of colours; to the bit what PIL makes of it, in three quarters of the time.

    Both are libjpeg-turbo, with its exact transform and smooth upsampling, but PIL goes through
    pieces of 64 KB and single lines. Four bytes a pixel are how PIL keeps three colours, so the
    picture takes the decoder's array over as it is.

    Raises:
      ValueError: a damaged file.
    """
    pixels = simplejpeg.decode_jpeg(data, "RGBX", fastdct=False, fastupsample=False)
    height, width, _ = pixels.shape
    # what `Image.frombuffer` does for the modes that it knows to be laid out so; "RGB" is one, too
    mapped = Image.core.map_buffer(pixels, (width, height), "raw", 0, ("RGB", 0, 1))
    picture = Image.new("RGB", (0, 0))._new(mapped)
    picture.readonly = 1
    picture.mapped = mapped, pixels  # for `_fours`
    return picture


def _open(source, name: str) -> Image.Image:
    """Reads the header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `load` has its limit
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            return Image.open(stream)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such image file") from error
    except UnidentifiedImageError as error:  # whose own text shows an address in memory
        raise ValueError(f"{name}: cannot be read as an image: no known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: the header promises too many pixels ({error}); "
            f"at most {MAX_SOURCE_PIXELS} are decoded"
        ) from error
    except Exception as error:
        raise ValueError(f"{name}: cannot be read as an image: {error}") from error


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and image.info.get("transparency") is None


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if has_alpha or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit integers and floats; PIL's own conversion would clip them at 255."""
    grey = np.asarray(image).astype(np.float64)
    is_clear = grey == image.info.get("transparency")  # a PNG's colour key
    if image.mode == "F":
        grey = grey * 255.0 if grey.max(initial=0.0) <= 1.0 else grey
    elif image.mode.startswith("I;16") or grey.max(initial=0.0) > 255:
        grey = grey / 257.0  # 65535 -> 255
    grey = np.where(is_clear, 255, np.clip(np.round(grey), 0, 255)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@functools.lru_cache(1 << 14)
def resized_size(width: int, height: int, limits: SizeLimits, images: int = 1) -> tuple[int, int]:
    """Returns the (width, height) that BAGEL gives an image; see `resized_sizes`."""
    own = resized_sizes(np.array([width]), np.array([height]), limits, np.array([images]))
    return int(own[0][0]), int(own[1][0])


def resized_sizes(
    width: np.ndarray, height: np.ndarray, limits: SizeLimits, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the widths and heights that BAGEL gives images: int64 [image] each.

    Both are multiples of the stride. An over-full pixel budget multiplies the linear scale by the
    ratio of areas, which shrinks more than needed, and the long-side limit comes last and wins over
    the short-side one: oddities of the reference, kept for parity.

    Args:
      width, height: int [image].
      images: int [image], number of images that share the budget `limits.max_pixels`.
    """
    width, height = width.astype(np.float64), height.astype(np.float64)

    def scaled(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        to_stride = lambda side: np.maximum(
            limits.stride, np.rint(np.rint(side * scale) / limits.stride) * limits.stride
        )
        return to_stride(width), to_stride(height)

    scale = np.minimum(limits.max_side / np.maximum(width, height), 1.0)
    scale = np.maximum(scale, limits.min_side / np.minimum(width, height))
    width, height = scaled(scale)
    budget = limits.max_pixels / images
    width, height = scaled(np.where(width * height > budget, budget / (width * height), 1.0))
    longest = np.maximum(width, height)
    width, height = scaled(np.where(longest > limits.max_side, limits.max_side / longest, 1.0))
    return width.astype(np.int64), height.astype(np.int64)


def shrunk(side, percent: int):
    """Scales a number of patches a side (or an array of them) to a percentage, at least 1."""
    return np.maximum((side * percent + 50) // 100, 1)


def resize(image: Image.Image, limits: SizeLimits, images: int = 1) -> np.ndarray:
    """Resizes an RGB image by the rule of `resized_size`; returns uint8 [height, width, 3]."""
    return resize_to(image, *resized_size(*image.size, limits, images))


def resize_to(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Resizes an RGB image with PIL's antialiased bicubic; returns uint8 [height, width, 3].

    Large ones without PIL where that gives the same bytes sooner (`data.resample`).
    """
    if image.size == (width, height):
        return _packed(image, "RGB")
    if image.width * image.height + width * height >= LARGE and (ours := _resampler()):
        if ours.covers(*image.size, width, height):
            return ours.bicubic(_fours(image), width, height)
    return _packed(image.resize((width, height), Image.Resampling.BICUBIC), "RGB")


@functools.cache
def _resampler():
    """Returns `data.resample` where Numba is installed and this PIL resizes as it does, or None."""
    try:
        from inset_jax.data import resample  # half a second, and three before it is compiled
    except ImportError:
        return None
    except Exception as error:  # of a compiler that does not know this machine, of a broken cache
        log.warning("Numba cannot be used, pictures are left to PIL: %r", error)
        return None
    noise = np.random.default_rng(0).integers(0, 256, (97, 89, 4), np.uint8)
    for size in ((40, 33), (120, 140), (88, 50)):
        theirs = Image.fromarray(noise[..., :3]).resize(size, Image.Resampling.BICUBIC)
        if not np.array_equal(resample.bicubic(noise, *size), theirs):
            log.warning("this PIL resizes in a way of its own: pictures are left to it")
            return None
    return resample


def _fours(image: Image.Image) -> np.ndarray:
    """Returns the bytes that PIL keeps of an RGB image: uint8 [height, width, 4]."""
    image.load()
    mapped, pixels = getattr(image, "mapped", (None, None))
    # another one is there once somebody has drawn on it
    return pixels if mapped is image.im else _packed(image, "RGBX")


def _packed(image: Image.Image, mode: str) -> np.ndarray:
    """Returns np.asarray of an RGB image: uint8 [height, width, 3], or 4 of mode "RGBX".

    PIL's own way joins pieces of 64 KB, which takes half as long again; this asks for one.
    """
    image.load()
    width, height = image.size
    encoder = Image._getencoder("RGB", "raw", (mode,))
    encoder.setimage(image.im, (0, 0, width, height))
    _, status, data = encoder.encode(width * height * len(mode))
    assert status == 1, f"PIL's raw encoder: status {status} for {width}x{height}"
    return np.frombuffer(data, np.uint8).reshape(height, width, len(mode))


def store(data: bytes, name: str, keep: Keep = KEEP) -> tuple[bytes, int, int]:
    """Returns what a record holds of an encoded picture: bytes, width and height as it is shown.

    Up to `keep.max_side` the very bytes of the file; beyond it one resize with PIL's antialiased
    bicubic, as a JPEG of high quality without chroma subsampling, or as a PNG.

    Raises:
      ValueError: as `load`; the whole picture is decoded.
    """
    decoded = load(data, name)
    width, height = decoded.size
    scale = keep.max_side / max(width, height)
    if not keep.max_side or scale >= 1:
        return data, width, height
    width, height = (max(1, round(side * scale)) for side in decoded.size)
    smaller = Image.fromarray(resize_to(decoded, width, height))
    return encode(smaller, keep.format), width, height


def encode(picture: Image.Image, kind: str) -> bytes:
    """Returns an RGB picture as a file of bytes: "jpeg" of high quality, or "png"."""
    stream = io.BytesIO()
    if kind == "png":
        picture.save(stream, "PNG", compress_level=3)
    else:
        picture.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def normalize(pixels: np.ndarray) -> np.ndarray:
    """Maps uint8 to float32 in [-1, 1], rounding as the reference does; float32 passes through."""
    if pixels.dtype != np.uint8:
        return pixels.astype(np.float32, copy=False)
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def patchify(image: np.ndarray, patch: int, out: np.ndarray | None = None) -> np.ndarray:
    """Cuts [height, width, 3] into [rows * columns, patch * patch * 3], (row, column, channel).

    Args:
      out: where the patches are written; a new array by default.

    Raises:
      ValueError: a side is not a multiple of `patch`.
    """
    height, width = image.shape[:2]
    if height % patch or width % patch:
        raise ValueError(f"image of {width}x{height} pixels: sides must be multiples of {patch}")
    rows, columns, line = height // patch, width // patch, patch * image.shape[2]
    if out is None:
        out = np.empty((rows * columns, patch * line), image.dtype)
    lines = image.reshape(rows, patch, columns, line)
    out.reshape(rows, columns, patch, line)[:] = lines.swapaxes(1, 2)
    return out


@functools.lru_cache(1 << 8)
def place_ids(rows: int, columns: int, side: int, interpolate: bool = False) -> np.ndarray:
    """Returns each patch's row in a table of side x side: int32 [rows * columns], read-only.

    Args:
      interpolate: spread the patches over the whole table instead of using its corner (an option of
        the reference that its released models do not use).

    Raises:
      ValueError: more patches a side than the table has.
    """
    if not interpolate:
        if max(rows, columns) > side:
            raise ValueError(
                f"an image of {rows}x{columns} (rows x columns) patches does not fit the position "
                f"table of {side}x{side}: resize it to at most {side} patches a side"
            )
        row, column = np.arange(rows), np.arange(columns)
    else:
        row, column = _buckets(rows, side), _buckets(columns, side)
    ids = (row[:, None] * side + column).reshape(-1).astype(np.int32)
    ids.setflags(write=False)  # the next caller gets the same array
    return ids


def _buckets(patches: int, side: int) -> np.ndarray:
    # float32 as in the reference: where a patch lies on a border the rounding decides
    border = np.arange(1, side).astype(np.float64) / side
    start = np.arange(patches).astype(np.float64) / patches
    return np.searchsorted(border.astype(np.float32), start.astype(np.float32), side="right")
