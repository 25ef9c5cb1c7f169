import pytest
from PIL import Image

from inset_jax.data.sentence import PicturePath, parse_sentence, read_sentence


def test_text_is_kept_verbatim_and_empty_text_vanishes():
    assert parse_sentence("A [img:a.png] sits, [img: b c.png ][img:d.png]") == [
        "A ",
        PicturePath("a.png"),
        " sits, ",
        PicturePath("b c.png"),
        PicturePath("d.png"),
    ]
    assert parse_sentence("  two  spaces ") == ["  two  spaces "]
    assert parse_sentence("") == []


def test_white_space_alone_is_no_text():
    both = [PicturePath("a.png"), PicturePath("b.png")]
    assert parse_sentence(" [img:a.png] \n\t[img:b.png] ") == both


def test_an_escaped_mark_is_text():
    assert parse_sentence(r"write \[img:x.png] or [img:y.png]") == [
        "write [img:x.png] or ",
        PicturePath("y.png"),
    ]
    assert parse_sentence(r"an open \[img: stays, so does \n") == [
        r"an open [img: stays, so does \n"
    ]


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [("a [img:cat.png sits", "no closing ]"), ("a [img:] sits", "names no file")],
)
def test_a_broken_mark_is_refused_with_its_place(sentence, fault):
    with pytest.raises(ValueError, match=f"character 2 .*{fault}"):
        parse_sentence(sentence)


def test_paths_are_relative_to_the_folder_and_missing_ones_are_named(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    text, picture = read_sentence("see [img:a.png]", str(tmp_path))
    assert text == "see " and picture.size == (3, 2)
    with pytest.raises(ValueError, match=r"b\.png"):
        read_sentence("see [img:b.png]", str(tmp_path))
    (tmp_path / "c.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"c\.png"):
        read_sentence("see [img:c.png]", str(tmp_path))
