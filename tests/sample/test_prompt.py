import dataclasses

import numpy as np
import pytest
from PIL import Image

from configs import demo, inset_7b, tiny
from inset_jax.core.config import TokenConfig, edit
from inset_jax.data.text import make_small_tokenizer
from inset_jax.sample.prompt import (
    Prompt,
    check_length,
    check_side,
    compose,
    picture_size,
    start_noise,
    upright,
    vae_limits,
    vit_limits,
)

CONFIG = tiny.experiment()
TOKENIZER = make_small_tokenizer(["a cat on a bench"] * 3, 512, TokenConfig(500, 501, 502, 503))
CAT = Image.new("RGB", (60, 40), "red")


def shapes(items):
    return [(i.kind, None if i.image is None else i.image.shape) for i in items]


def test_pieces_become_items_in_reading_order():
    items = compose(Prompt(["A ", CAT, "  ", " sits"]), CONFIG, TOKENIZER)
    assert shapes(items) == [("text", None), ("vit", (42, 56, 3)), ("text", None)]
    assert items[0].ids == TOKENIZER.encode("A ") and items[2].ids == TOKENIZER.encode(" sits")


def test_a_source_comes_first_as_clean_latents_and_then_as_patches():
    items = compose(Prompt(["put ", CAT], source=CAT, seed=4), CONFIG, TOKENIZER, think="edit")
    assert [kind for kind, _ in shapes(items)] == ["text", "clean", "vit", "text", "vit"]
    assert items[1].image.dtype == np.float32 and items[1].image.min() >= -1
    assert items[1].posterior_noise.shape == (4, 8, 16)  # 60x40 px become 64x32
    mean = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, posterior="mean"))
    assert compose(Prompt(["x"], source=CAT), mean, TOKENIZER)[0].posterior_noise is None


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000)])
def test_extreme_images_are_resized_into_the_tables(size):
    items = compose(Prompt(["a", Image.new("RGB", size)]), CONFIG, TOKENIZER)
    rows, columns = (side // 14 for side in items[1].image.shape[:2])
    assert 1 <= rows <= 16 and 1 <= columns <= 16


def test_an_image_of_another_mode_becomes_rgb():
    see_through = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    (_, item) = compose(Prompt(["a", see_through]), CONFIG, TOKENIZER)
    assert (item.image == 255).all()  # transparent is white


def test_the_size_is_asked_for_or_follows_the_source_but_never_a_reference():
    assert picture_size(Prompt(["a", CAT]), CONFIG) == (64, 64)
    assert picture_size(Prompt(["a", CAT]), edit(CONFIG, sample__side=32)) == (32, 32)
    assert picture_size(Prompt(["a", CAT], source=Image.new("RGB", (40, 80))), CONFIG) == (64, 32)
    assert picture_size(Prompt(["a"], source=CAT, height=32), CONFIG) == (32, 64)


def test_a_rotated_source_counts_as_it_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = Image.new("RGB", (64, 32))
    turned.info["exif"] = exif.tobytes()
    assert upright(Prompt(["a"], source=turned)).source.size == (32, 64)


@pytest.mark.parametrize(
    ("side", "nearest"),
    [(50, "48 and 64"), (1, "16"), (0, "16"), (-5, "16"), (255, "240 and 256"), (300, "256")],
)
def test_an_impossible_side_is_refused_with_the_nearest_ones(side, nearest):
    with pytest.raises(
        ValueError, match=f"line 3: height {side} px.*16 to 256; nearest: {nearest}$"
    ):
        check_side("line 3", "height", side, CONFIG.model)
    check_side("line 3", "height", 48, CONFIG.model)


def test_no_text_and_strange_pieces_are_refused_by_name():
    with pytest.raises(ValueError, match="line 2: there is no text"):
        compose(Prompt([CAT, " "], name="line 2"), CONFIG, TOKENIZER)
    with pytest.raises(ValueError, match="line 2: piece 2 is a ndarray"):
        compose(Prompt(["a", np.zeros(3)], name="line 2"), CONFIG, TOKENIZER)


def test_a_sentence_longer_than_the_model_knows_is_refused_with_its_parts():
    prompt = Prompt(["a", CAT])
    items = compose(prompt, CONFIG, TOKENIZER)
    check_length(prompt, items, 18, CONFIG)
    with pytest.raises(
        ValueError, match=r"prompt: 135 tokens \(3 of text, 14 of pictures.*128 fit"
    ):
        check_length(prompt, items, 118, CONFIG)


def test_noise_depends_on_the_seed_alone():
    first, again, other = (start_noise(seed, 6, CONFIG.model) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (6, CONFIG.model.latent_dim) and first.dtype == np.float32


def test_limits_stay_within_the_tables():
    for experiment in (tiny, demo, inset_7b):
        config = experiment.experiment()
        vit, vae = vit_limits(config), vae_limits(config)
        assert vit.max_side // vit.stride <= config.model.vit.side
        assert vae.max_side // vae.stride <= config.model.latents.max_side
        assert vit.stride == config.model.vit.patch and vae.stride == config.model.latent_stride
