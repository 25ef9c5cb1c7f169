import json

import pytest
from PIL import Image

from inset_jax.evaluate import held_out


@pytest.fixture
def sentences(tmp_path):
    for number, colours in enumerate((("red", "blue"), ("green", "white"), ("black",))):
        for at, colour in enumerate(colours):
            Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}_{at}.png")
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}_target.png")
    prompts = [
        "A [img:0_0.png] left of a [img:0_1.png].",
        "A [img:1_0.png] above a [img:1_1.png].",
        "A [img:2_0.png].",
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (tmp_path / "words.txt").write_text("one\ntwo\nthree\n")
    return held_out.read(file)


def shown(pieces):
    names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green"}
    names |= {(255, 255, 255): "white", (0, 0, 0): "black"}
    return [p if isinstance(p, str) else names[p.getpixel((0, 0))] for p in pieces]


def test_controls_change_the_pictures_and_nothing_else(sentences):
    expected = {
        held_out.AS_WRITTEN: ["A ", "red", " left of a ", "blue", "."],
        held_out.SWAPPED: ["A ", "blue", " left of a ", "red", "."],
        held_out.FOREIGN: ["A ", "green", " left of a ", "white", "."],
        held_out.ABSENT: ["A ", " left of a ", "."],
    }
    for condition, pieces in expected.items():
        assert shown(held_out.under(condition, sentences)[0]) == pieces
    assert [sentence.words for sentence in sentences] == ["one", "two", "three"]


def test_foreign_pictures_come_from_a_sentence_with_as_many(sentences):
    foreign = held_out.under(held_out.FOREIGN, sentences)
    assert shown(foreign[1]) == ["A ", "red", " above a ", "blue", "."]
    assert shown(foreign[2]) == ["A ", "red", "."]  # no other has one picture: the first of all
    with pytest.raises(ValueError, match="sentence 0 has 2, the others 1 in all"):
        held_out.under(held_out.FOREIGN, sentences[::2])


def test_of_several_pictures_none_keeps_its_place_when_they_are_swapped(sentences):
    (one, two), text = (sentences[number].pieces for number in (0, 1)), "."
    several = [one[1], text, one[3], text, two[1]]
    longer = sentences[0]._replace(pieces=several)
    swapped = held_out.under(held_out.SWAPPED, [longer])[0]
    assert shown(several) == ["red", ".", "blue", ".", "green"]
    assert shown(swapped) == ["blue", ".", "green", ".", "red"]


def test_of_one_picture_none_can_be_swapped(sentences):
    pair, single = sentences[0], sentences[2]
    none = single._replace(pieces=["A cat."])
    for condition in held_out.CONDITIONS:
        assert held_out.applies(condition, pair)
        assert held_out.applies(condition, single) is (condition != held_out.SWAPPED)
        assert held_out.applies(condition, none) is (condition == held_out.AS_WRITTEN)


def test_unknown_condition_is_refused(sentences):
    with pytest.raises(ValueError, match="pictures swapped"):
        held_out.under("swapped", sentences)


def test_psnr():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    lighter = Image.new("RGB", (4, 4), (110, 110, 110))
    assert held_out.psnr(grey, lighter) == pytest.approx(28.13, abs=0.01)
    assert held_out.psnr(grey, grey) == 100.0
    with pytest.raises(ValueError, match="8, 8"):
        held_out.psnr(grey, Image.new("RGB", (8, 8)))
