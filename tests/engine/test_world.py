import itertools
import json

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import TokenConfig
from inset_jax.data import record
from inset_jax.data.sentence import PicturePath, parse_sentence
from inset_jax.engine import artwork, world, world_records

ASSETS = "assets/demo"


@pytest.fixture(scope="module")
def art():
    return artwork.load(ASSETS)


def draw(art, count, split="train", **changes):
    config = world.WorldConfig(**changes)
    return [world.draw_scene(art, split, 0, number, config) for number in range(count)]


def test_shipped_artwork_is_small_and_held_out_by_look_alike_group(art):
    groups = [{thing.group for thing in art.things[split]} for split in artwork.SPLITS]
    assert not groups[0] & groups[1]
    assert [len(art.things[split]) for split in artwork.SPLITS] == [499, 64]
    assert len(art.grounds) == 6


def test_a_group_in_two_splits_is_refused(tmp_path, art):
    Image.new("RGBA", (128, 64)).save(tmp_path / "objects.webp", lossless=True)
    (tmp_path / "grounds").mkdir()
    rows = [
        {"name": "cat", "noun": "cat", "group": "cat", "split": "train"},
        {"name": "cat2", "noun": "cat", "group": "cat", "split": "validation"},
    ]
    (tmp_path / "objects.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"look-alike group 'cat' lies in both splits"):
        artwork.load(tmp_path)


def test_a_scene_is_a_function_of_seed_split_and_number(art):
    first, again = (world.draw_scene(art, "train", 3, 17) for _ in range(2))
    other = world.draw_scene(art, "train", 3, 18)
    np.testing.assert_array_equal(first.target, again.target)
    assert first.words() == again.words()
    for one, two in zip(first.references, again.references, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.target, other.target)


def test_validation_scenes_show_held_out_objects_only(art):
    held_out = {thing.name for thing in art.things["validation"]}
    shown = {thing.name for scene in draw(art, 60, "validation") for thing in scene.things}
    assert shown <= held_out and len(shown) > 30


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_the_picture_obeys_the_relation(art, relation):
    """A red and a green disc: their centres of mass lie as the sentence says."""
    discs = []
    for colour in ((255, 0, 0), (0, 255, 0)):
        sprite = Image.new("RGBA", (64, 64))
        sprite.paste((*colour, 255), (8, 8, 56, 56))
        discs.append(artwork.Thing(str(colour), "disc", str(colour), sprite))
    plain = artwork.Artwork({"train": [], "validation": discs}, {})
    config = world.WorldConfig(alone=0.0)
    scenes = (world.draw_scene(plain, "validation", 0, n, config) for n in itertools.count())
    scene = next(scene for scene in scenes if scene.relation == relation)
    centres = []
    for thing in scene.things:
        colour = (255, 0, 0) if thing.name == discs[0].name else (0, 255, 0)
        rows, columns = np.nonzero(np.abs(scene.target - np.int32(colour)).sum(-1) < 12)
        centres.append((columns.mean(), rows.mean()))
    step = np.sign(np.round(np.subtract(*centres) / 16)).astype(int)
    assert tuple(step) == world.OFFSETS[relation]


def test_every_phrase_names_each_object_once_and_the_ground(art):
    for relation, phrases in world.PHRASES.items():
        for phrase in phrases:
            scene = draw(art, 1)[0]._replace(
                relation=relation,
                phrase=phrase,
                ground="orange",
                things=tuple(
                    art.things["train"][:1] if relation == "alone" else art.things["train"][:2]
                ),
            )
            pieces = scene.pieces()
            assert sorted(p for p in pieces if isinstance(p, int)) == list(range(len(scene.things)))
            assert "an orange ground" in "".join(p for p in pieces if isinstance(p, str))
            assert "" not in pieces and "{" not in scene.words()


def test_references_are_rendered_apart_from_the_target(art):
    for scene in draw(art, 20):
        assert scene.target.shape == (64, 64, 3) and scene.target.dtype == np.uint8
        assert all(reference.shape == (48, 48, 3) for reference in scene.references)
        corner = scene.references[0][0, 0].astype(int)
        assert np.abs(corner - scene.target[0, 0]).sum() > 3


def test_records_have_the_sentence_with_pictures_in_place(art):
    scenes = draw(art, 60, shares=(0.5, 0.25, 0.25))
    assert {scene.kind for scene in scenes} == set(world.KINDS)
    for number, scene in enumerate(scenes):
        example = world_records.to_example(scene, f"train-{number}")
        record.check(example)
        kinds = [segment.kind for segment in example.segments]
        assert example.kind == scene.kind and example.licence
        if scene.kind == "understanding":
            assert kinds == ["text", "vit", "text", "text"]
            assert example.segments[-1].loss and example.segments[-1].text == scene.words()
        else:
            assert kinds[-world_records.DRAWS :] == ["target"] * world_records.DRAWS
            assert not any(segment.loss for segment in example.segments)
            expected = len(scene.things) if scene.kind == "image-interleaved" else 0
            assert kinds.count("vit") == expected


def test_prompts_say_what_the_records_say(art, tmp_path):
    scenes = [s for s in draw(art, 8, "validation") if s.kind == "image-interleaved"]
    file = world_records.write_prompts(tmp_path / "held_out", scenes)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(scenes)
    for number, (row, scene) in enumerate(zip(rows, scenes, strict=True)):
        example = world_records.to_example(scene, "x")
        for piece, segment in zip(parse_sentence(row["prompt"]), example.segments, strict=False):
            if isinstance(piece, PicturePath):
                assert (file.parent / piece.path).read_bytes() == segment.image
            else:
                assert piece == segment.text
        target = file.with_name(f"{number}_target.png")
        assert target.read_bytes() == example.segments[-1].image


def test_the_tokenizer_fits_the_sentences(art):
    scenes = draw(art, 300)
    tokens = TokenConfig(508, 509, 510, 511)
    tokenizer = world_records.tokenizer_of(scenes, 512, tokens)
    text = " sits to the left of a "
    assert tokenizer.special_ids() == tokens
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) <= 7  # one token a word
