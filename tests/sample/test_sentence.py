import pytest
from PIL import Image

from inset_jax.sample.sentence import PicturePath, parse, read


def test_text_is_kept_verbatim_and_empty_text_vanishes():
    assert parse("A [img:a.png] sits, [img: b c.png ][img:d.png]") == [
        "A ",
        PicturePath("a.png"),
        " sits, ",
        PicturePath("b c.png"),
        PicturePath("d.png"),
    ]
    assert parse("  two  spaces ") == ["  two  spaces "]
    assert parse("") == []


def test_an_escaped_mark_is_text():
    assert parse(r"write \[img:x.png] or [img:y.png]") == [
        "write [img:x.png] or ",
        PicturePath("y.png"),
    ]
    assert parse(r"an open \[img: stays") == ["an open [img: stays"]


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [("a [img:cat.png sits", "no closing ]"), ("a [img:] sits", "names no file")],
)
def test_a_broken_mark_is_refused_with_its_place(sentence, fault):
    with pytest.raises(ValueError, match=f"character 2 .*{fault}"):
        parse(sentence)


def test_paths_are_relative_to_the_folder_and_missing_ones_are_named(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    text, picture = read("see [img:a.png]", str(tmp_path))
    assert text == "see " and picture.size == (3, 2)
    with pytest.raises(ValueError, match=r"b\.png"):
        read("see [img:b.png]", str(tmp_path))
    (tmp_path / "c.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"c\.png"):
        read("see [img:c.png]", str(tmp_path))
