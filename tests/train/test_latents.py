"""Pictures become latents at their rows, whatever else is in the batch."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.data import image
from inset_jax.model import vae
from inset_jax.train.latents import LatentWriter, unit_range


class Picture(NamedTuple):
    pack: int
    row: int
    image: np.ndarray
    posterior_noise: np.ndarray


@pytest.fixture(scope="module")
def coder(config):
    return vae.create(config.model.vae, 0)


def make(pack: int, row: int, seed: int, side: tuple[int, int] = (8, 8)) -> Picture:
    random = np.random.default_rng(seed)
    image = random.uniform(-1, 1, (*side, 3)).astype(np.float32)
    return Picture(pack, row, image, random.standard_normal((side[0] // 2, side[1] // 2, 4), "f4"))


def test_latents_land_in_their_rows_and_ignore_their_neighbours(config, make_pack, batch, coder):
    definition, params = coder
    packs = jax.tree.map(lambda x: x[0], batch(make_pack(0), make_pack(1)))
    # three of one size fill up to four; one of another size stands alone
    pictures = [make(0, 0, 0), make(1, 4, 1), make(1, 0, 2), make(0, 8, 3, (4, 8))]
    written = LatentWriter(config, params)(packs, pictures).gen_latent
    encode = jax.jit(lambda p, x, n: vae.bind(definition, p).encode(x, n))
    for picture in pictures:
        alone = encode(params, picture.image[None], picture.posterior_noise[None])
        tokens = np.asarray(vae.patchify(alone, config.model.latents.patch)[0])
        found = written[picture.pack, picture.row : picture.row + len(tokens)]
        np.testing.assert_allclose(found, tokens, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(written[1, 8:], packs.gen_latent[1, 8:])
    assert not np.shares_memory(written, packs.gen_latent)


def test_mean_of_the_posterior_ignores_the_noise(config, make_pack, batch, coder):
    mean = edit(config, data__posterior="mean")
    packs = jax.tree.map(lambda x: x[0], batch(make_pack(0)))
    writer = LatentWriter(mean, coder[1])
    first = make(0, 0, 0)
    second = first._replace(posterior_noise=first.posterior_noise * 7)
    one, two = (writer(packs, [p]).gen_latent for p in (first, second))
    np.testing.assert_array_equal(one, two)


def test_batch_without_pictures_is_left_alone(config, make_pack, batch, coder):
    packs = jax.tree.map(lambda x: x[0], batch(make_pack(0, draws=False)))
    assert LatentWriter(config, coder[1])(packs, []) is packs


def test_grey_levels_give_the_latents_of_the_numbers_they_stand_for(
    config, make_pack, batch, coder
):
    packs = jax.tree.map(lambda x: x[0], batch(make_pack(0)))
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey = make(0, 0, 0)._replace(image=levels)
    writer = LatentWriter(config, coder[1])
    one = writer(packs, [grey]).gen_latent
    two = writer(packs, [grey._replace(image=image.normalize(levels))]).gen_latent
    np.testing.assert_array_equal(one, two)


def test_the_numbers_of_grey_levels_are_the_references_to_the_bit():
    levels = np.arange(256, dtype=np.uint8)
    found = np.asarray(jax.jit(unit_range)(levels))
    np.testing.assert_array_equal(found, image.normalize(levels))
