import dataclasses

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import edit
from inset_jax.data import image, text
from inset_jax.data.prepare import fill, latent_tokens, outline
from inset_jax.data.record import Example, Segment, open_records
from tests.data.conftest import GOLDEN


@pytest.fixture(scope="module")
def tokenizer(world):
    return text.load(world)


@pytest.fixture(scope="module")
def edit_example(world):
    records = open_records(world / "records")
    return next(e for e in map(records.__getitem__, range(len(records))) if e.kind == "editing")


def filled(example, tokenizer, config, dropped=None, epoch=0):
    items = outline(example, tokenizer, config)
    dropped = np.zeros(len(items), bool) if dropped is None else np.array(dropped)
    return fill(example, items, dropped, config, epoch)


def test_an_edit_becomes_items(edit_example, tokenizer, config):
    items = filled(edit_example, tokenizer, config)
    assert [item.kind for item in items] == ["clean", "vit", "text", "target"]
    for item, stride in zip(items, (16, 14, 0, 16)):
        if stride:
            assert item.image.dtype == np.uint8
            assert item.image.shape == (item.size[0] * stride, item.size[1] * stride, 3)
    assert items[2].ids == tokenizer.encode("make it red")
    tokens = items[3].size[0] * items[3].size[1]
    assert items[3].noise.shape == (tokens, 64) and items[3].noise.dtype == np.float32
    assert items[3].posterior_noise.shape == (items[3].size[0] * 2, items[3].size[1] * 2, 16)


def test_pixels_are_resized_from_the_original_by_the_references_rule(
    edit_example, tokenizer, config
):
    items = filled(edit_example, tokenizer, config)
    original = image.load(edit_example.segments[0].image)
    assert np.array_equal(items[0].image, image.resize(original, config.data.vae_size))
    assert np.array_equal(items[1].image, image.resize(original, config.data.vit_size))


def test_what_is_drawn_depends_on_seed_example_and_epoch_only(edit_example, tokenizer, config):
    one = filled(edit_example, tokenizer, config)
    again = filled(edit_example, tokenizer, config, dropped=[1, 1, 1, 0])
    assert np.array_equal(one[3].noise, again[3].noise) and one[3].timestep == again[3].timestep
    assert np.array_equal(one[3].posterior_noise, again[3].posterior_noise)
    for other in (
        filled(edit_example, tokenizer, config, epoch=1),
        filled(edit_example, tokenizer, edit(config, run__seed=1)),
        filled(dataclasses.replace(edit_example, id="other"), tokenizer, config),
    ):
        assert other[3].timestep != one[3].timestep
        assert not np.array_equal(other[3].noise, one[3].noise)
    # each use has numbers of its own
    assert not np.array_equal(one[0].posterior_noise[:2, :2], one[3].posterior_noise[:2, :2])


def test_dropped_images_are_not_decoded(edit_example, tokenizer, config):
    broken = dataclasses.replace(
        edit_example,
        segments=(
            *(dataclasses.replace(s, image=b"broken") for s in edit_example.segments[:2]),
            *edit_example.segments[2:],
        ),
    )
    items = filled(broken, tokenizer, config, dropped=[1, 1, 0, 0])
    assert [item.dropped for item in items] == [True, True, False, False]
    with pytest.raises(ValueError, match=f"{broken.id}: image of segment 0: cannot be read"):
        filled(broken, tokenizer, config)


def test_an_image_of_another_size_than_recorded_is_refused(edit_example, tokenizer, config):
    segments = [dataclasses.replace(edit_example.segments[0], width=999)]
    wrong = dataclasses.replace(edit_example, segments=(*segments, *edit_example.segments[1:]))
    with pytest.raises(ValueError, match=r"segment 0 is .*, the record says 999x"):
        filled(wrong, tokenizer, config)


def test_the_posteriors_mean_takes_no_noise(edit_example, tokenizer, config):
    items = filled(edit_example, tokenizer, edit(config, data__posterior="mean"))
    assert not items[3].posterior_noise.any() and items[3].noise.any()


def test_images_of_an_answer_share_one_budget_of_pixels(tokenizer, config):
    picture = Image.new("RGB", (56, 56))
    import io

    stream = io.BytesIO()
    picture.save(stream, "PNG")
    look = Segment("vit", image=stream.getvalue(), width=56, height=56)
    config = edit(config, data__vit_size__max_pixels=56 * 56)
    answer = Segment("text", text="a", loss=True)
    sizes = lambda *segments: [
        item.size for item in outline(Example("a", segments), tokenizer, config) if item.size
    ]
    assert sizes(look, answer) == [(4, 4)]
    assert sizes(look, look, answer) == [(2, 2), (2, 2)]
    target = Segment("target", image=b"x", width=64, height=64)
    assert sizes(look, look, target)[:2] == [(4, 4), (4, 4)]


def test_a_text_that_draws_predicts_the_start_of_an_image(tokenizer, config):
    example = Example("a", (Segment("text", text="so", loss=True, draws=True),))
    (item,) = outline(example, tokenizer, config)
    assert item.loss and item.special_label == config.model.tokens.image_start


def test_precomputed_moments_give_the_references_latents(config):
    golden = np.load(GOLDEN / "tiny_a" / "vae.npz")
    moments = np.stack(np.split(golden["moments"][0].transpose(1, 2, 0), 2, axis=-1))
    noise = golden["noise"][0].transpose(1, 2, 0)
    found = latent_tokens(moments, noise, config.model)
    expected = golden["latent_tokens"]
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_moments_are_used_when_they_are_of_this_size_and_autoencoder(
    edit_example, tokenizer, config
):
    target = edit_example.segments[3]
    size = outline(edit_example, tokenizer, config)[3].size
    moments = np.random.default_rng(0).normal(size=(2, size[0] * 2, size[1] * 2, 16))

    def item(own, digest="0123456789abcdef", wanted="0123456789abcdef"):
        segment = dataclasses.replace(target, moments=own, moments_vae=digest)
        example = dataclasses.replace(edit_example, segments=(*edit_example.segments[:3], segment))
        return filled(example, tokenizer, edit(config, data__moments=wanted))[3]

    found = item(moments)
    assert found.image is None
    assert np.array_equal(found.latent, latent_tokens(moments, found.posterior_noise, config.model))
    for other in (
        item(moments[:, 1:]),
        item(moments, wanted="fedcba9876543210"),
        item(moments, wanted="none"),
        item(moments, wanted="own"),  # nobody has said whose that is
        item(moments, digest="", wanted="none"),  # version 1 of the schema
    ):
        assert other.latent is None and other.image is not None
