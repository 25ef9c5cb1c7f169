"""Which objects look alike: what is held out must be new to whoever saw the others."""

from PIL import Image, ImageDraw

from inset_jax.engine import artwork
from tools import demo_assets


def sprite(colour, box=(8, 8, 56, 56)):
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse(box, fill=colour)
    return picture


def test_a_shared_word_or_a_similar_picture_makes_a_group():
    sprites = {
        "ball": sprite("red"),
        "sun": sprite("blue", (30, 30, 40, 40)),
        "black_sun2": sprite("green", (0, 40, 64, 60)),  # by its word
        "apple": sprite((240, 10, 10)),  # by its look
        "door": sprite("yellow", (0, 0, 20, 64)),
        "gate": sprite("yellow", (44, 0, 64, 64)),  # mirrored
    }
    ball, sun, sun2, apple, door, gate = demo_assets.look_alike_groups(
        list(sprites), list(sprites.values())
    )
    assert ball == apple and sun == sun2 and door == gate
    assert len({ball, sun, door}) == 3


def test_whole_groups_are_held_out():
    group = [number // 3 for number in range(120)] + [99] * 10
    names = [f"object {number}" for number in range(len(group))]
    chosen = demo_assets.held_out_groups(group, names)
    assert sum(one in chosen for one in group) <= demo_assets.HELD_OUT
    assert len(chosen) == demo_assets.HELD_OUT // 3 and 99 not in chosen


def test_nothing_that_is_held_out_looks_like_what_is_trained_on():
    art = artwork.load("assets/demo")
    things = [thing for split in artwork.SPLITS for thing in art.things[split]]
    group = demo_assets.look_alike_groups(
        [thing.name for thing in things], [thing.sprite.picture for thing in things]
    )
    first = len(art.things["train"])
    assert not set(group[:first]) & set(group[first:])
