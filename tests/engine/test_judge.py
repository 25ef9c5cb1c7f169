import numpy as np
import pytest
from PIL import Image, ImageFilter

from inset_jax.engine import artwork, edits, judge, world

INTERLEAVED = (1, 0, 0, 0, 0)  # weights of world.KINDS


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


def draw(art, count, objects=(0, 1), kinds=INTERLEAVED, seed=0, **changes):
    config = world.WorldConfig(objects=objects, kinds=kinds, **changes)
    return [world.draw_scene(art, "validation", seed, n, config) for n in range(count)]


def judged(art, scenes, drawings):
    return [
        judge.judge(scene, drawing, art.things["validation"], art)
        for scene, drawing in zip(scenes, drawings, strict=True)
    ]


def share(verdicts, field):
    """Of all verdicts, the share of first ranks or of what is true."""
    values = [value for verdict in verdicts for value in getattr(verdict, field)]
    assert values
    return np.mean([value == 0 if field.endswith("ranks") else value for value in values])


@pytest.fixture(scope="module")
def mixed(art):
    """Scenes of one to eight objects."""
    return draw(art, 16, objects=(1,) * 8)


@pytest.fixture(scope="module")
def pairs(art):
    return draw(art, 16, counts=0.0)


def test_targets_are_right_in_everything(art, mixed):
    found = judged(art, mixed, [scene.target for scene in mixed])
    for verdict, scene in zip(found, mixed, strict=True):
        assert verdict.ranks == verdict.sharp_ranks == (0,) * len(scene.places), scene.words()
        assert all(verdict.relations) and all(verdict.counts), scene.words()
        different = {place.thing for place in scene.places}
        assert len(verdict.relations) == 0 or len(different) > 1
    assert sum(len(verdict.counts) for verdict in found) > 1


def test_targets_of_other_scenes_are_at_chance(art):
    scenes = draw(art, 30, counts=0.0)
    found = judged(art, scenes, [scene.target for scene in scenes[1:] + scenes[:1]])
    assert share(found, "ranks") < 0.1 and share(found, "sharp_ranks") < 0.1
    assert 0.2 < share(found, "relations") < 0.8


def test_an_empty_ground_is_nothing(art, pairs):
    found = judged(art, pairs, [scene.backdrop for scene in pairs])
    assert share(found, "ranks") < 0.15


def test_a_picture_that_tells_no_order_has_half_of_it(art, pairs):
    alike = lambda scene: len({(place.side, place.turn) for place in scene.places}) == 1
    level = [scene for scene in pairs if alike(scene)]
    found = judged(art, level, [np.full_like(scene.target, 128) for scene in level])
    ties = [verdict.relations for verdict in found].count((0.5,))
    assert ties > len(level) / 2 > 3  # of the others one stands a little in the other's half
    assert 0.3 < share(found, "relations") < 0.7


def blurred(scene, radius):
    return np.asarray(Image.fromarray(scene.target).filter(ImageFilter.GaussianBlur(radius)))


def test_blur_is_forgiven_and_sharpness_says_so(art, pairs):
    soft, softer = (
        judged(art, pairs, [blurred(scene, radius) for scene in pairs]) for radius in (1.5, 3.0)
    )
    assert share(soft, "ranks") > 0.9 > 0.5 > share(soft, "sharp_ranks")
    assert share(soft, "relations") == share(softer, "relations") == 1.0
    assert 0.4 < share(softer, "ranks") < share(soft, "ranks")


def shifted(scene, down, across):
    """The target with its edge repeated, moved by so many pixels."""
    padded = np.pad(scene.target, ((12, 12), (12, 12), (0, 0)), mode="edge")
    height, width = scene.target.shape[:2]
    return padded[12 - down : 12 - down + height, 12 - across : 12 - across + width]


def test_small_shifts_are_forgiven_and_large_ones_are_not(art, pairs):
    near = judged(art, pairs, [shifted(scene, 3, -4) for scene in pairs])
    far = judged(art, pairs, [shifted(scene, 9, 9) for scene in pairs])
    assert share(near, "ranks") > 0.95 and share(near, "sharp_ranks") > 0.9
    assert share(far, "ranks") < 0.6


def repainted(scene, things=None, places=None):
    canvas = scene.backdrop.copy()
    shown = scene._replace(places=places or scene.places)
    world.show(shown, canvas, things)
    return canvas


def test_a_little_larger_or_smaller_is_forgiven(art, pairs):
    for scale in (0.92, 1.08):
        drawings = [
            repainted(
                scene,
                places=tuple(p._replace(side=round(scale * p.side)) for p in scene.places),
            )
            for scene in pairs
        ]
        assert share(judged(art, pairs, drawings), "ranks") > 0.95


def test_exchanged_objects_are_wrong_in_identity_and_relation(art, pairs):
    drawings = [repainted(scene, scene.things[::-1]) for scene in pairs]
    found = judged(art, pairs, drawings)
    assert share(found, "ranks") == share(found, "relations") == 0.0


def test_a_look_alike_is_told_from_the_same_object_in_other_light(art):
    groups = {}
    for thing in art.things["validation"]:
        groups.setdefault(thing.group, []).append(thing)
    alike = [own for own in groups.values() if len(own) > 1]
    assert len(alike) > 5
    scenes, others, relit = [], [], []
    for number, (one, two, *_) in enumerate(alike):
        scene = draw(art, number + 1, objects=(1,))[number]
        scene = scene._replace(things=(one,))
        scene = scene._replace(target=repainted(scene))
        scenes.append(scene)
        others.append(repainted(scene, (two,)))
        lit = scene.target * (0.85, 0.9, 0.8) + 8
        stands = (scene.target != scene.backdrop).any(-1, keepdims=True)
        relit.append(np.where(stands, lit, scene.backdrop).astype(np.uint8))
    assert share(judged(art, scenes, others), "ranks") == 0.0
    assert share(judged(art, scenes, relit), "ranks") > 0.9


def test_a_missing_copy_is_counted(art):
    scenes = [s for s in draw(art, 14, objects=(0, 1, 1, 1), counts=1.0) if len(s.places) > 1]
    assert share(judged(art, scenes, [scene.target for scene in scenes]), "counts") == 1.0
    drawings = []
    for scene in scenes:
        numbers = [place.thing for place in scene.places]
        copied = next(n for n in numbers if numbers.count(n) > 1)
        gone = numbers.index(copied)
        drawings.append(repainted(scene, places=scene.places[:gone] + scene.places[gone + 1 :]))
    assert share(judged(art, scenes, drawings), "counts") == 0.0


def test_wrong_objects_are_not_counted(art):
    """Neither as many of another, nor the counted one at every place."""
    scenes = draw(art, 12, objects=(0, 0, 1, 1), counts=1.0)
    pool = art.things["validation"]
    others = [
        [next(t for t in pool[n:] if t.group not in {s.group for s in scene.things})]
        * len(scene.things)
        for n, scene in enumerate(scenes)
    ]
    drawings = [repainted(scene, things) for scene, things in zip(scenes, others, strict=True)]
    assert share(judged(art, scenes, drawings), "counts") == 0.0
    drawings, several = [], [scene for scene in scenes if len(scene.things) > 1]
    for scene in several:
        numbers = [place.thing for place in scene.places]
        copied = next(n for n in numbers if numbers.count(n) > 1)
        drawings.append(repainted(scene, [scene.things[copied]] * len(scene.things)))
    assert share(judged(art, several, drawings), "counts") == 0.0


def test_who_stands_behind_is_not_in_front(art):
    scenes = draw(art, 12, relations=("front",), counts=0.0)
    back = lambda scene: repainted(scene, places=scene.places[::-1])
    overlapping = [scene for scene in scenes if (back(scene) != scene.target).any()]
    assert len(overlapping) > 8
    exchanged = judged(art, overlapping, [back(scene) for scene in overlapping])
    assert share(exchanged, "relations") == 0.0 and share(exchanged, "ranks") > 0.9
    assert share(judged(art, scenes, [scene.target for scene in scenes]), "relations") == 1.0
    soft = judged(art, scenes, [blurred(scene, 2.0) for scene in scenes])
    assert share(soft, "relations") == 1.0


def test_a_bare_ground_is_no_edit(art):
    kinds = tuple(float(name == "editing") for name in world.KINDS)
    scenes = draw(art, 20, objects=(1, 2, 1, 1), kinds=kinds)
    assert {"remove", "ground"} <= {scene.relation for scene in scenes}
    for verdict in judged(art, scenes, [scene.backdrop for scene in scenes]):
        assert verdict.attribute is False


@pytest.mark.parametrize("kind", ["editing", "video-interleaved"])
def test_a_picture_of_one_colour_is_no_edit(art, kind):
    """Whatever the colour: on white, black is not a dark object that was to be added."""
    kinds = tuple(float(name == kind) for name in world.KINDS)
    scenes = draw(art, 20, objects=(1, 2, 1, 1), kinds=kinds)
    for level in (0, 90, 255):
        plain = [np.full_like(scene.target, level) for scene in scenes]
        assert not any(verdict.attribute for verdict in judged(art, scenes, plain)), level
    for scene in scenes:  # nor is a picture of an object's own colour
        colour = np.rint(scene.things[scene.places[-1].thing].sprite.colour).astype(np.uint8)
        [verdict] = judged(art, [scene], [np.broadcast_to(colour, scene.target.shape)])
        assert not verdict.attribute


@pytest.mark.parametrize("kind", ["editing", "video-interleaved"])
def test_what_was_to_change_has_changed_in_the_target_and_not_in_the_source(art, kind):
    kinds = tuple(float(name == kind) for name in world.KINDS)
    scenes = draw(art, 20, objects=(1, 2, 1, 1), kinds=kinds)
    assert len({scene.relation for scene in scenes}) >= 3
    for scene, done, undone in zip(
        scenes,
        judged(art, scenes, [scene.target for scene in scenes]),
        judged(art, scenes, [scene.source for scene in scenes]),
        strict=True,
    ):
        assert done.attribute is True, scene.words()
        assert undone.attribute is False, scene.words()
        assert set(done.ranks) <= {0}, scene.words()


def test_another_paint_is_not_the_one_that_was_said(art):
    kinds = tuple(float(name == "editing") for name in world.KINDS)
    scenes = [s for s in draw(art, 40, kinds=kinds) if s.relation == "paint"]
    assert scenes
    for scene in scenes:
        changed = next(p.thing for p in scene.places if p not in scene.source_places)
        said = scene.things[changed].look.paint
        other = artwork.COLOURS["purple" if said != artwork.COLOURS["purple"] else "green"]
        things = [
            t._replace(look=t.look._replace(paint=other)) if n == changed else t
            for n, t in enumerate(scene.things)
        ]
        drawing = repainted(scene, things)
        [verdict] = judged(art, [scene], [drawing])
        assert not verdict.attribute
    assert set(edits.PAINTS) <= set(artwork.COLOURS)


def test_wrong_sizes_and_strange_objects_are_refused(art, pairs):
    things = art.things["validation"]
    with pytest.raises(ValueError, match="32x32 pixels for a scene of 64x64"):
        judge.judge(pairs[0], np.zeros((32, 32, 3), np.uint8), things, art)
    own = pairs[0].things[0]
    with pytest.raises(ValueError, match=rf"{own.name} of the scene: not among"):
        judge.judge(pairs[0], pairs[0].target, [t for t in things if t.name != own.name], art)
