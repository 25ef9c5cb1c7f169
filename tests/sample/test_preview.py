import io

import pytest
from PIL import Image

from configs import tiny
from inset_jax.core.config import SampleConfig, TokenConfig, edit
from inset_jax.data.record import Example, Segment, write_records
from inset_jax.data.text import make_small_tokenizer
from inset_jax.sample import preview
from inset_jax.sample.preview import during_training, from_example, grid
from tests.sample.small import CONFIG


def encoded(color, size=(40, 60)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def segment(kind, color, size=(40, 60)):
    return Segment(kind, image=encoded(color, size), width=size[0], height=size[1])


WORDS = Segment("text", text="a cat")
T2I = Example("t", (WORDS, segment("target", "red")))
EDIT = Example(
    "e",
    (
        segment("vae", "blue"),
        segment("vit", "blue"),
        WORDS,
        segment("vit", "green"),
        segment("target", "red", (80, 40)),
    ),
)
ANSWER = Example("a", (segment("vit", "blue"), Segment("text", text="sky", loss=True)))


def test_a_record_becomes_the_prompt_that_asks_for_its_target():
    prompt, target = from_example(EDIT, tiny.experiment())
    assert prompt.source.getpixel((0, 0)) == (0, 0, 255)
    assert [type(piece) is str for piece in prompt.pieces] == [True, False]
    assert prompt.pieces[1].getpixel((0, 0)) == (0, 128, 0)
    assert (prompt.height, prompt.width) == (32, 64) and target.size == (80, 40)
    assert from_example(ANSWER, tiny.experiment()) is None


def test_a_preview_is_one_grid_with_pictures_targets_and_drawings(sampler, tmp_path):
    write_records(tmp_path / "records", {"validation": [ANSWER, T2I, EDIT]})
    words = make_small_tokenizer(["a cat"] * 3, 512, TokenConfig(500, 501, 502, 503))
    words.save(tmp_path / "tokenizer.json")
    config = edit(
        tiny.experiment(),
        model=CONFIG,
        sample=SampleConfig(num_timesteps=2),
        data__validation=(str(tmp_path / "records"),),
        data__tokenizer=str(tmp_path),
    )
    (path,) = during_training(config, sampler.params, 12, tmp_path)
    assert path.name == "00000012.png"
    with Image.open(path) as page:
        # the widest row: source, reference, target, drawing; cells as the largest drawing
        assert page.size == (4 * 64 + 3 * 4, 2 * 64 + 4)


def test_what_cannot_be_drawn_gives_way_to_the_next_of_each_folder(tmp_path, monkeypatch):
    """Damaged pictures, too long sentences, and a folder whose records have nothing to draw."""
    broken = Example(
        "b", (WORDS, Segment("vit", image=b"no picture", width=4, height=4), T2I.segments[1])
    )
    long = Example("l", (Segment("text", text="a cat " * 200), T2I.segments[1]))
    answers = [Example(f"a{n}", ANSWER.segments) for n in range(20)]
    write_records(tmp_path / "answers", {"validation": answers})
    write_records(tmp_path / "records", {"validation": [broken, long, T2I, EDIT]})
    words = make_small_tokenizer(["a cat"] * 3, 512, TokenConfig(500, 501, 502, 503))
    words.save(tmp_path / "tokenizer.json")
    config = edit(
        tiny.experiment(),
        model=CONFIG,
        data__validation=(str(tmp_path / "answers"), str(tmp_path / "records")),
        data__tokenizer=str(tmp_path),
    )
    asked = []

    def draw(params, config, tokenizer, prompts, targets):
        asked.extend(prompt.name for prompt in prompts)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(preview, "preview", draw)
    preview.during_training(config, {}, 1, tmp_path)
    assert asked == ["t", "e"]


def test_records_without_anything_to_draw_are_said(tmp_path):
    write_records(tmp_path / "records", {"train": [ANSWER]})
    words = make_small_tokenizer(["a cat"] * 3, 512, TokenConfig(500, 501, 502, 503))
    words.save(tmp_path / "tokenizer.json")
    config = edit(
        tiny.experiment(),
        data__train=(str(tmp_path / "records"),),
        data__tokenizer=str(tmp_path),
    )
    with pytest.raises(ValueError, match=r"data\.train has no example"):
        during_training(config, {}, 1, tmp_path)


def test_a_grid_aligns_rows_to_the_right():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (16, 16), "blue")
    page = grid([[red, blue], [blue]])
    assert page.size == (36, 36)
    assert page.getpixel((0, 0)) == (255, 0, 0) and page.getpixel((0, 35)) == (255, 255, 255)
    assert page.getpixel((35, 35)) == (0, 0, 255)
