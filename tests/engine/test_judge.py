import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from inset_jax.engine import artwork, judge, world


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


def pairs(art, count):
    config = world.WorldConfig(objects=(0, 1), kinds=(1, 0, 0, 0, 0), counts=0.0)
    scenes = (world.draw_scene(art, "validation", 0, n, config) for n in itertools.count())
    return list(itertools.islice((s for s in scenes if s.relation != "front"), count))


def verdicts(art, scenes, drawings):
    return [
        verdict
        for scene, drawing in zip(scenes, drawings, strict=True)
        for verdict in judge.judge(scene, drawing, art.things["validation"])
    ]


def test_targets_are_recognised_and_in_order(art):
    scenes = pairs(art, 12)
    found = verdicts(art, scenes, [scene.target for scene in scenes])
    assert len(found) == 24
    assert all(verdict == judge.Verdict(0, True) for verdict in found)


def test_blur_is_forgiven(art):
    scenes = pairs(art, 12)
    soft = lambda scene: Image.fromarray(scene.target).filter(ImageFilter.GaussianBlur(1.5))
    found = verdicts(art, scenes, [np.asarray(soft(scene)) for scene in scenes])
    assert np.mean([verdict.rank == 0 for verdict in found]) > 0.75
    assert all(verdict.in_order for verdict in found)


def test_targets_of_other_scenes_are_at_chance_and_empty_grounds_are_nothing(art):
    scenes = pairs(art, 24)
    others = [scene.target for scene in scenes[1:] + scenes[:1]]
    empty = [scene.backdrop for scene in scenes]
    for drawings in (others, empty):
        found = verdicts(art, scenes, drawings)
        assert np.mean([verdict.rank == 0 for verdict in found]) < 0.13
        assert 0.25 < np.mean([verdict.in_order for verdict in found]) < 0.75
