import copy

import pytest

from inset_jax.engine import artwork, world
from inset_jax.engine.stage import WorldConfig


def test_artwork_with_too_few_kinds_of_objects_is_an_error_not_a_hang():
    art = artwork.load("assets/demo")
    one = art.things["validation"][0].group
    few = [thing for thing in art.things["validation"] if thing.group == one]
    small = copy.copy(art)
    small.things = {**art.things, "validation": few}
    pairs = WorldConfig(objects=(0.0, 1.0), kinds=(1.0, 0.0, 0.0, 0.0, 0.0), counts=0.0)
    with pytest.raises(ValueError, match="after 1 others: the artwork has 1 look-alike groups"):
        world.draw_scene(small, "validation", 0, 0, pairs)
