"""Photographs are such as people have, say where their object is, and replace references."""

import numpy as np
import pytest

from inset_jax.engine import artwork, cutting, exam, photographs

SEED = 7


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


@pytest.fixture(scope="module")
def some(art):
    things = art.things["validation"]
    return [photographs.draw(art, thing, SEED, n) for n, thing in enumerate(things[:24])]


def test_the_key_alone_decides_a_photograph(art):
    thing, other = art.things["validation"][:2]
    one, same = (photographs.draw(art, thing, SEED, 3) for _ in range(2))
    np.testing.assert_array_equal(one.picture, same.picture)
    for changed in ((thing, SEED, 4), (thing, SEED + 1, 3), (other, SEED, 3)):
        another = photographs.draw(art, *changed)
        assert another.picture.size != one.picture.size or another.picture != one.picture


def test_the_object_is_whole_small_and_off_the_middle(some):
    for one in some:
        height, width = one.shown.shape
        assert one.picture.size == (width, height)
        assert all(192 <= side <= 320 for side in (width, height))
        left, top, right, bottom = cutting.bounds(one.shown)
        assert left > 0 and top > 0 and right < width and bottom < height
        longer = max(right - left, bottom - top)
        assert longer < 0.72 * min(width, height)  # half, turned by 20 degrees
        off = abs((left + right) / width - 1), abs((top + bottom) / height - 1)
        assert max(off) > 0.15


def test_the_mask_is_where_the_object_is(some):
    """On plain grounds, in light that falls off slowly, next to nothing else changes."""
    plain = [one for one in some if one.ground == photographs.PLAIN]
    assert 4 < len(plain) < len(some) - 4  # about half of them
    for one in plain:
        pixels = np.asarray(one.picture, float)
        ground = pixels[~one.shown]
        assert ground.std(0).max() < 30  # a fall of 30% of 255 levels and the noise
        inside = np.abs(pixels[one.shown] - ground.mean(0)).sum(-1)
        assert np.mean(inside > 60) > 0.5


def test_boxes_overlap_by_what_they_share():
    assert photographs.overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert photographs.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert photographs.overlap((0, 0, 2, 2), (3, 3, 4, 4)) == 0


def test_nearly_every_object_is_found(some):
    shares = {one.ground == photographs.PLAIN: [] for one in some}
    for one in some:
        shares[one.ground == photographs.PLAIN].append(photographs.find_in(one)[1])
    assert np.mean(np.array(shares[True]) > 0.7) >= 0.9
    assert np.mean(np.array(shares[False]) > 0.5) >= 0.8


def test_scenes_get_their_objects_as_cuts_and_as_whole_photographs(art):
    scenes = exam.scenes(art, "2 references", 3)
    found = photographs.in_scenes(art, scenes, SEED)
    assert len(found.cuts) == 6
    for kind in photographs.KINDS:
        for old, new in zip(scenes, found.scenes[kind], strict=True):
            assert new.sentence == old.sentence and new.target is old.target
            assert len(new.references) == 2
            squares = {one.shape[0] == one.shape[1] == cutting.CROP for one in new.references}
            assert squares == {True} or kind != "cut out by hand"
            assert min(min(one.shape[:2]) for one in new.references) >= cutting.CROP
    for number, (old, new) in enumerate(zip(scenes, found.scenes["cut out by hand"], strict=True)):
        for thing, picture in zip(old.things, new.references, strict=True):
            own = photographs.draw(art, thing, SEED, number)
            crop = cutting.crop(own.picture, photographs.by_hand(own))
            np.testing.assert_array_equal(picture, crop)  # each object in its own place


def test_a_scene_without_references_stays_as_it_is(art):
    edits = exam.scenes(art, "editing", 12)
    bare = [scene for scene in edits if not scene.references]
    assert bare and photographs.in_scenes(art, bare[:1], SEED).scenes["cut out"] == bare[:1]


def test_an_object_that_is_not_found_is_shown_by_its_whole_photograph(art, monkeypatch):
    def nothing(photograph):
        raise ValueError("nothing stands out")

    monkeypatch.setattr(cutting, "find", nothing)
    found = photographs.in_scenes(art, exam.scenes(art, "1 reference", 1), SEED)
    [cut], [hand], [whole] = (found.scenes[kind] for kind in photographs.KINDS)
    np.testing.assert_array_equal(cut.references[0], whole.references[0])
    assert hand.references[0].shape == (cutting.CROP, cutting.CROP, 3)
    assert found.cuts[0][1] == 0


def test_quality_is_said_by_ground_and_of_all():
    rows = photographs.quality([("wood", 0.9), ("plain", 1.0), ("wood", 0.3)])
    assert [row["ground"] for row in rows] == ["plain", "wood", "all"]
    assert rows[1] == {"ground": "wood", "photographs": 2, "found": 0.5, "overlap": 0.6}
    assert rows[2]["photographs"] == 3 and rows[2]["found"] == pytest.approx(2 / 3)
