"""Latents of records computed once: mean and log variance of the autoencoder, beside the images.

What training would encode at every visit is stored in half precision, with the digest of the
encoder that made it. `data.prepare` uses it where the digest and the size are those of the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.checkpoint import autoencoder, bagel, convert, differences, load, names
from inset_jax.core import mesh as meshes
from inset_jax.core.config import Config, MeshConfig, ModelConfig, VaeConfig
from inset_jax.data import image, prepare
from inset_jax.data.record import Example, Segment
from inset_jax.data.rewrite import Rewrite
from inset_jax.data.sources.base import Part, Row
from inset_jax.model import vae

AT_ONCE = 8  # pictures a device in one call; smaller groups are filled up to a power of two
TOGETHER = 64  # examples whose pictures are sorted by size and encoded together
LATENT_KINDS = ("vae", "target")


def load_autoencoder(source: str, config: ModelConfig) -> dict[str, Any]:
    """Returns an autoencoder's tree, as a run that starts from `source` would have it.

    Args:
      source: an ae.safetensors, a BAGEL folder, or a run's folder or checkpoint.

    Raises:
      ValueError: there is no autoencoder, or one of other sizes than the config's.
    """
    path = pathlib.Path(source)
    if path.is_file() or bagel.is_bagel(path):
        file = path / "ae.safetensors" if path.is_dir() else path
        return convert.load_autoencoder(file, config)
    from inset_jax.checkpoint import store

    directory, step = load.locate(path)
    unlike = differences.models(store.model_config(store.read_meta(directory, step)), config)
    if unlike:
        raise ValueError(f"{source} is another model: {'; '.join(unlike)}")
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=first)
        for name, shape in convert.shapes(config).items()
        if name.startswith("vae/")
    }
    trees = {load.PARAMS: names.unflatten(wanted)}
    return store.restore(directory, trees, step, partial=True)[load.PARAMS]["vae"]


class Encoder:
    """The first half of an autoencoder, on all devices of this host."""

    def __init__(self, config: VaeConfig, params: Mapping[str, Any], dtype: str = "float32"):
        """params: the autoencoder's tree; dtype: of activations, as `compute.dtype` of training."""
        self.digest = autoencoder.digest(params)
        self._mesh = meshes.build(MeshConfig(), jax.local_devices())
        everywhere = jax.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        self._params = jax.device_put(params, everywhere)
        definition, _ = vae.abstract(config)

        def encode(params, images: jax.Array) -> jax.Array:
            """[B, H, W, 3] -> [B, 2, h, w, c], float32."""
            bound = vae.bind(definition, params)
            return jnp.stack(bound.encode_moments(images, jnp.dtype(dtype)), axis=1)

        self._encode = jax.jit(encode)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> mean and log variance, float16 [B, 2, h, w, c]."""
        devices = self._mesh.size
        parts = []
        for start in range(0, len(pictures), AT_ONCE * devices):
            some = pictures[start : start + AT_ONCE * devices]
            each = -(-len(some) // devices)
            filled = devices << (each - 1).bit_length()
            images = np.concatenate([some, np.repeat(some[-1:], filled - len(some), axis=0)])
            images = image.normalize(images)
            split = meshes.sharding(self._mesh, ("pack", None, None, None), images.shape)
            with jax.set_mesh(self._mesh):
                found = self._encode(self._params, jax.device_put(images, split))
            parts.append((found, len(some)))
        # after all are under way
        return np.concatenate([np.asarray(own)[:count] for own, count in parts]).astype(np.float16)


@dataclasses.dataclass(frozen=True)
class Encoded(Rewrite):
    """Records with the moments of every target and clean image; those that fit already stay."""

    digest: str
    config: Config = dataclasses.field(repr=False)
    encoder: Encoder = dataclasses.field(repr=False)
    sizes: str  # the rule that gives the sizes, so that another rule is another build

    @classmethod
    def of(cls, folder: str, config: Config, encoder: Encoder) -> Encoded:
        return cls(folder, encoder.digest, config, encoder, repr(config.data.vae_size))

    def rows(self, part: Part) -> Iterator[Row]:
        with ThreadPoolExecutor() as pool:
            for some in _groups(self.examples(part), TOGETHER):
                decoded = list(pool.map(self._decode, [example for _, example in some]))
                moments = self._encoded([own for own in decoded if not isinstance(own, ValueError)])
                for (number, example), own in zip(some, decoded, strict=True):
                    made = (
                        own if isinstance(own, ValueError) else _with(example, own, moments, self)
                    )
                    where = f"{part.name}: record {number}"
                    yield Row(where, partial(self.make, part, number, made))

    def _decode(self, example: Example | ValueError) -> dict[int, np.ndarray] | ValueError:
        """Pixels of the segments that need moments, at their training size: number -> [H, W, 3]."""
        if isinstance(example, ValueError):
            return example
        images, pixels, found = prepare.sharing(example), {}, {}
        try:
            for number, segment in enumerate(example.segments):
                if segment.kind not in LATENT_KINDS or self._fits(segment, images):
                    continue
                size = prepare.training_size(segment, self.config, images)
                key = (id(segment.image), size)
                if key not in pixels:
                    name = f"{example.id}: image of segment {number}"
                    pixels[key] = image.resize_to(image.load(segment.image, name), *size)
                found[number] = pixels[key]
        except ValueError as error:
            return error
        return found

    def _fits(self, segment: Segment, images: int) -> bool:
        if segment.moments is None or segment.moments_vae != self.digest:
            return False
        width, height = prepare.training_size(segment, self.config, images)
        down = self.config.model.vae.downsample
        return segment.moments.shape[1:3] == (height // down, width // down)

    def _encoded(self, decoded: Sequence[dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
        """Moments of all pictures, those of one size together: id of the pixels -> [2, h, w, c]."""
        distinct = {id(pixels): pixels for own in decoded for pixels in own.values()}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for key, pixels in distinct.items():
            by_size.setdefault(pixels.shape, []).append(key)
        moments: dict[int, np.ndarray] = {}
        for keys in by_size.values():
            found = self.encoder(np.stack([distinct[key] for key in keys]))
            moments |= dict(zip(keys, found, strict=True))
        return moments


def _with(example: Example, pixels: dict[int, np.ndarray], moments, source: Encoded) -> Example:
    segments = [
        dataclasses.replace(segment, moments=moments[id(pixels[n])], moments_vae=source.digest)
        if n in pixels
        else segment
        for n, segment in enumerate(example.segments)
    ]
    return dataclasses.replace(example, segments=tuple(segments))


def _groups(values: Iterator, size: int) -> Iterator[list]:
    while group := list(itertools.islice(values, size)):
        yield group
