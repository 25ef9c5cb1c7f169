"""The page with placeholders for drawings; `tests/test_readme.py` runs the whole demo, short."""

import json
import re
import types

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from inset_jax.core import page
from inset_jax.core.config import SampleConfig
from inset_jax.engine import artwork, exam, world, world_records
from inset_jax.evaluate import held_out, table
from inset_jax.sample.api import Generator
from tools import demo_page, judging


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three scenes and placeholder results: the targets, and grey pictures under controls."""
    folder = tmp_path_factory.mktemp("held_out")
    art = artwork.load(demo_page.ARTWORK)
    config = world.WorldConfig(objects=(0, 1), kinds=(1, 0, 0, 0, 0), counts=0.0)
    scenes = [world.draw_scene(art, "validation", 0, n, config) for n in range(3)]
    sentences = held_out.read(world_records.write_prompts(folder, scenes))
    grey = Image.new("RGB", (64, 64), "grey")
    drawings = {condition: [[grey]] * 3 for condition in held_out.CONDITIONS}
    drawings[held_out.AS_WRITTEN] = [[sentence.target] for sentence in sentences]
    return scenes, demo_page.Results(sentences, drawings, 0.25)


def test_figures_tell_good_drawings_from_grey_ones(drawn):
    scenes, results = drawn
    rows = demo_page.measure(results, scenes)
    assert [row.condition for row in rows] == list(held_out.CONDITIONS)
    right, *grey = [row.columns for row in rows]
    assert right["identity"].mean == right["relation"].mean == right["sharp identity"].mean == 1.0
    assert right["PSNR"].mean == 100.0
    for columns in grey:
        assert columns["identity"].mean <= 1 / 3 and columns["PSNR"].mean < 30
    lines = demo_page.figures_table(rows)
    assert [line[1] for line in lines[1:]] == [*held_out.CONDITIONS, "chance"]
    assert lines[1][2].startswith("100% (") and lines[1][-1].startswith("100.0 dB")


def test_page_shows_every_sentence_with_its_pictures_in_place(drawn, tmp_path, monkeypatch):
    scenes, results = drawn
    monkeypatch.setattr(demo_page, "_facts", lambda run: {"parameters": "1,234"})
    figures = demo_page.measure(results, scenes)
    times = {"training": 61.0, "everything": 120.0}
    text = demo_page.render(tmp_path, results, figures, times, killed=7)
    assert text.count("<article>") == 3
    assert "1,234" in text and "kill -9 after step 7" in text and "1 min 1 s" in text
    for article, sentence in zip(re.findall(r"<article>.*?</article>", text), results.sentences):
        line = re.search(r"<p class=sentence>(.*?)</p>", article).group(1)
        expected = "".join(p if isinstance(p, str) else "*" for p in sentence.pieces)
        assert re.sub(r"<img[^>]*>", "*", line) == expected
        assert article.count("<figure>") == 3
    assert "chance" in text and not np.any([f"{name}=" in text for name in ("onload", "onclick")])


def test_edits_are_shown_with_their_source_and_judged_by_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_page, "_facts", lambda run: {})
    scenes = exam.scenes(artwork.load(demo_page.ARTWORK), "editing", 4)
    sentences = [judging.sentence(scene) for scene in scenes]
    drawings = {held_out.AS_WRITTEN: [[sentence.source] for sentence in sentences]}
    results = demo_page.Results(sentences, drawings, 0.25)
    [row] = figures = demo_page.measure(results, scenes)
    assert row.columns["attribute"].mean == 0.0
    assert "attribute" in demo_page.figures_table(figures)[0]
    text = demo_page.render(tmp_path, results, figures, {"everything": 9.0}, 0)
    for article in re.findall(r"<article>.*?</article>", text):
        assert re.findall("<figcaption>(.*?)<", article) == ["source", "drawn", "target"]


def test_what_was_drawn_before_training_stands_beside_it(drawn, tmp_path, monkeypatch):
    scenes, results = drawn
    grey = results.drawings[held_out.SWAPPED]
    loaded, told = [], held_out.draw

    def load(path):
        loaded.append(types.SimpleNamespace(path=path, config=tiny.experiment()))
        return loaded[-1]

    monkeypatch.setattr(Generator, "load", load)
    monkeypatch.setattr(held_out, "draw", lambda *_, watch: watch(3) or grey)
    monkeypatch.setattr(held_out, "read", lambda prompts: results.sentences)
    earlier = demo_page.draw_before("shipped", tmp_path, SampleConfig(beta=7.0))
    both = demo_page.draw(tmp_path, tmp_path, earlier)
    assert [one.path for one in loaded] == ["shipped", str(tmp_path)] and 0 < both.seconds < 60
    assert loaded[0].config.sample == SampleConfig(beta=7.0)  # the run's
    assert list(both.drawings) == [demo_page.BEFORE, *held_out.CONDITIONS]
    monkeypatch.setattr(held_out, "draw", told)
    both = both._replace(drawings={**both.drawings, **results.drawings})
    figures = demo_page.measure(both, scenes)
    monkeypatch.setattr(demo_page, "_facts", lambda run: {})
    (tmp_path / "curves.png").write_bytes(b"curves")
    text = demo_page.render(tmp_path, both, figures, {"everything": 9.0}, 0)
    for article in re.findall(r"<article>.*?</article>", text):
        assert re.findall("<figcaption>(.*?)<", article) == ["drawn", "target", "swapped", "before"]
    table_of_page = text[text.index("What these drawings are worth") :]
    plain, controls = table_of_page.split("<tbody class=controls>")
    assert demo_page.BEFORE in plain and demo_page.BEFORE not in controls
    assert "<th>a picture</th><td>" in text and "<h2>Losses</h2>" in text


def test_a_measured_table_and_extras_are_shown_and_nothing_is_loaded_from_elsewhere(
    drawn, tmp_path, monkeypatch
):
    scenes, results = drawn
    monkeypatch.setattr(demo_page, "_facts", lambda run: {"parameters": "1,234"})
    figures = demo_page.measure(results, scenes)
    told = {"sentences": 48, "seeds": 3, "candidates": 64, "rows": table.to_json(figures)}
    monkeypatch.setattr(demo_page, "MEASURED", tmp_path / "table.json")
    demo_page.MEASURED.write_text(json.dumps(told))
    extras = [page.Section("More", html="<p>of it</p>")]
    text = demo_page.render(tmp_path, results, figures, {"everything": 9.0}, 0, extras)
    assert "<p>of it</p>" in text and "48 sentences of each kind" in text and "kill -9" not in text
    assert not re.search('(src|href)=(?!"data:)', text) and "<script" not in text
