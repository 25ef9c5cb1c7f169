import hashlib
import json

import numpy as np
import pytest

from inset_jax.core.config import TokenConfig
from inset_jax.data import record
from inset_jax.data.sentence import PicturePath, parse_sentence
from inset_jax.engine import artwork, stage, world, world_records
from tools import draw_world

EVERY = (0.3, 0.2, 0.2, 0.2, 0.1)  # weights of world.KINDS


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


def draw(art, count, split="train", **changes):
    return list(world_records.scenes(art, split, 0, count, world.WorldConfig(**changes)))


def test_records_have_the_sentence_with_pictures_in_place(art):
    scenes = draw(art, 80, kinds=EVERY)
    assert {scene.kind for scene in scenes} == set(world.KINDS)
    before = {"editing": ["vae", "vit"], "video-interleaved": ["vit"]}
    for number, scene in enumerate(scenes):
        example = world_records.to_example(scene, f"train-{number}", draws=2)
        record.check(example)
        kinds = [segment.kind for segment in example.segments]
        assert example.kind == scene.kind and example.licence
        if scene.kind == "understanding":
            assert kinds == ["text", "vit", "text", "text"]
            assert example.segments[-1].loss and example.segments[-1].text == scene.words()
            continue
        first = before.get(scene.kind, [])
        assert kinds[: len(first)] == first and kinds[-2:] == ["target", "target"]
        assert not any(segment.loss for segment in example.segments)
        shown = [] if scene.kind == "t2i" else scene.references
        assert kinds[len(first) : -2].count("vit") == len(shown)
        assert example.segments[-1].width == scene.target.shape[1]
        assert len({segment.image for segment in example.segments[: len(first)]}) <= 1


def test_moments_go_to_targets_and_sources_of_their_size(art, tmp_path):
    scenes = draw(art, 30, kinds=(1, 0, 1, 0, 0))

    class Encode:
        digest = "means"

        def __call__(self, pictures):
            assert pictures.ndim == 4
            mean = pictures[:, ::8, ::8, :2].astype(np.float16)
            return np.stack([mean, mean], axis=1)

    tokenizer = world_records.tokenizer_of(scenes, 512, TokenConfig(508, 509, 510, 511))
    world_records.write_world(tmp_path, {"train": scenes}, tokenizer, Encode())
    stored = record.open_records(tmp_path / "records")
    for number, scene in enumerate(scenes):
        for segment in stored[number].segments:
            if segment.kind not in ("vae", "target"):
                assert segment.moments is None
                continue
            pixels = scene.target if segment.kind == "target" else scene.source
            np.testing.assert_array_equal(segment.moments[0], pixels[::8, ::8, :2])
            assert segment.moments_vae == "means"


def test_prompts_say_what_the_records_say(art, tmp_path):
    scenes = draw(art, 12, "validation", kinds=(1, 1, 1, 0, 0))
    file = world_records.write_prompts(tmp_path / "held_out", scenes)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(scenes)
    for number, (row, scene) in enumerate(zip(rows, scenes, strict=True)):
        segments = list(world_records.to_example(scene, "x").segments)
        assert (row["height"], row["width"]) == scene.target.shape[:2]
        assert ("source" in row) == (scene.kind == "editing")
        if "source" in row:
            assert (file.parent / row["source"]).read_bytes() == segments.pop(0).image
            segments.pop(0)  # the same as ViT patches
        for piece, segment in zip(parse_sentence(row["prompt"]), segments, strict=False):
            if isinstance(piece, PicturePath):
                assert (file.parent / piece.path).read_bytes() == segment.image
            else:
                assert piece == segment.text
        target = file.with_name(f"{number}_target.png")
        assert target.read_bytes() == segments[-1].image


def test_the_tokenizer_fits_the_sentences(art):
    scenes = draw(art, 300)
    tokens = TokenConfig(508, 509, 510, 511)
    tokenizer = world_records.tokenizer_of(scenes, 512, tokens)
    text = " to the left of a "
    assert tokenizer.special_ids() == tokens
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) <= 6  # one token a word


def files(folder):
    """Name -> digest of the shards and the tokenizer."""
    found = [*folder.glob("*.array_record*"), folder / "tokenizer.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def test_the_command_draws_shard_by_shard_and_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(world_records, "SPOKEN", 40)
    options = "--train 24 --validation 6 --per-shard 8 --workers 0".split()
    for name in ("one", "two"):
        assert draw_world.main(["--out", str(tmp_path / name), *options]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert "24 examples in split 'train'" in capsys.readouterr().out
    assert len(files(tmp_path / "one")) == 5
    stored = record.open_records(tmp_path / "one", "train")
    assert [stored[n].id for n in (0, 8, 23)] == ["train-0", "train-8", "train-23"]
    assert len(record.open_records(tmp_path / "one", "validation")) == 6


def test_shares_are_said_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(world_records, "SPOKEN", 10)
    command = ["--out", str(tmp_path / "w"), "--train", "8", "--validation", "2", "--draws", "1"]
    assert draw_world.main([*command, "--objects", "0,0,1", "--kinds", "1"]) == 0
    stored = record.open_records(tmp_path / "w", "train")
    for number in range(8):
        kinds = [segment.kind for segment in stored[number].segments]
        assert kinds.count("target") == 1 and stored[number].kind == "image-interleaved"
        assert max(stored[number].segments[-1].width, stored[number].segments[-1].height) == 96
    assert draw_world.main([*command[:1], str(tmp_path / "v"), "--kinds", "1,1,1,1,1,1"]) == 1
    assert "expected at most 5" in capsys.readouterr().err


def test_a_target_stands_in_its_record(tmp_path, capsys):
    with pytest.raises(SystemExit):
        draw_world.main(["--out", str(tmp_path), "--draws", "0"])
    assert "--draws: at least 1" in capsys.readouterr().err


def test_other_fields_of_the_world_are_said_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(world_records, "SPOKEN", 10)
    command = ["--out", str(tmp_path / "w"), "--train", "12", "--validation", "1"]
    world_flags = ["--world", "relations=left,above", "phrasings=1", "photographs=0", "counts=0"]
    weights = ["--objects", "0,1", "--kinds", "1"]
    assert draw_world.main([*command, *weights, *world_flags]) == 0
    stored = record.open_records(tmp_path / "w", "train")
    first = {next(s.text for s in stored[n].segments if s.kind == "text") for n in range(12)}
    assert {text.replace("small ", "").replace("big ", "") for text in first} == {
        "On the left a ",
        "At the top a ",
    }


@pytest.mark.parametrize(
    "text, found",
    [
        ("phrasings=1", {"phrasings": 1}),
        ("photographs=0", {"photographs": 0.0}),
        ("side=20,24", {"side": (20, 24)}),
        ("relations=front", {"relations": ("front",)}),
    ],
)
def test_a_change_of_the_world_has_its_field_s_type(text, found):
    config = world_records.config_of(changes=[text])
    assert config == world.WorldConfig(**found)
    assert [type(value) for value in found.values()] == [type(getattr(config, n)) for n in found]


@pytest.mark.parametrize(
    "text, message",
    [
        ("phrasing=1", "NAME one of relations, ways, phrasings"),
        ("kinds=1", "NAME one of"),
        ("phrasings=few", "a value like phrasings=5"),
        ("phrasings=0", "phrasings=0: expected 1 to "),
        ("phrasings=99", "phrasings=99: expected 1 to "),
        ("side=20", "a value like side=(26, 26)"),
        ("side=40,20", "side=40,20: expected 1 to 64, the first not above the second"),
        ("big_side=29,65", "big_side=29,65: expected 1 to 64"),
        ("relations=left,beside", "at least one of left,right"),
        ("relations=left,left", "relations=left,left: expected at least one of left,right"),
        ("ways=spots,circle", "ways=spots,circle: expected at least one of lines,spots,chain"),
        ("photographs=2", "photographs=2.0: expected 0 to 1"),
        ("turned=nan", "turned=nan: expected 0 to 1"),
        ("filled=2,3", "filled=2.0,3.0: expected 0.1 to 1, the first"),
        ("filled=0.5,nan", "filled=0.5,nan: expected 0.1 to 1"),
        ("shifted=3", "shifted=3.0: expected 0 to 1"),
        ("shifted=-1", "shifted=-1.0: expected 0 to 1"),
        ("reference=0", "reference=0: expected 8 to 128"),
        ("reference_turn=-5", "reference_turn=-5: expected 0 to 180"),
        ("jitter=-1", "jitter=-1: expected 0 to 64"),
        ("alone=inf", "alone=inf: expected 0.1 to 64"),
        ("alone=3", "alone=3.0: a single object has 51 to 90 pixels a side, expected 1 to 64"),
    ],
)
def test_a_change_that_the_world_does_not_know_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        world_records.config_of(changes=[text])
    assert message in str(error.value)


def test_a_field_that_is_changed_twice_is_refused():
    with pytest.raises(ValueError, match="sizes: given 2 times, expected once"):
        world_records.config_of(changes=["sizes=0", "counts=0", "sizes=0.1"])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (1.0, np.nan), (np.inf,)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights of objects .* expected at most 8"):
        world_records.config_of(objects=weights)


def test_every_field_but_names_has_bounds_that_the_usual_world_keeps():
    assert {*stage.BOUNDS, "relations", "ways"} == set(world_records.CHANGEABLE)
    stage.check(world_records.USUAL)
