"""Parts of the demo's page that look into a model, drawn with a random one."""

import dataclasses
import json
import os
import pathlib
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from inset_jax.checkpoint import autoencoder, differences, load, provenance
from inset_jax.core import checks, overrides
from inset_jax.core.config import SampleConfig, edit
from inset_jax.data import prepare, text
from inset_jax.data.text import make_small_tokenizer
from inset_jax.engine import artwork, exam, world_records
from inset_jax.evaluate import held_out, table
from inset_jax.sample.api import Generator
from inset_jax.sample.plan import Picture
from inset_jax.sample.prompt import start_noise
from tests.sample.small import CONFIG, make_sampler
from tools import demo, demo_attention, demo_page, demo_report, demo_strips, demo_table, judging

FEW = SampleConfig(num_timesteps=3, alpha=2.0, beta=1.5)
TEXT = re.compile(r"<[^>]*>")


@pytest.fixture(scope="module")
def scenes():
    return exam.scenes(artwork.load(demo_page.ARTWORK), "2 references", 2)


@pytest.fixture(scope="module")
def generator(scenes):
    config = edit(tiny.experiment(), model=CONFIG, sample=FEW, data__max_example_tokens=300)
    words = make_small_tokenizer([scene.words() for scene in scenes], 512, CONFIG.tokens)
    return Generator(config, make_sampler(CONFIG).params, words)


def apart(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()


def test_strips_are_what_drawing_one_by_one_gives(generator, scenes, monkeypatch):
    for name, few in (("ALPHAS", (0.0, 1.0)), ("BETAS", (0.0, 1.5)), ("TIMESTEPS", (2, 4))):
        monkeypatch.setattr(demo_strips, name, few)
    monkeypatch.setattr(demo_strips, "SEEDS", 2)
    sentence = judging.sentence(scenes[0])
    strips = demo_strips.draw(generator, sentence)
    assert list(strips.scales) == [(a, b) for a in (0.0, 1.0, 2.0) for b in (0.0, 1.5)]
    assert list(strips.timesteps) == [2, 3, 4] and len(strips.seeds) == 2
    usual = strips.scales[2.0, 1.5]
    (plain,) = held_out.draw(generator, [sentence])[0]
    for same in (plain, strips.seeds[0], strips.timesteps[3]):
        assert apart(usual, same) <= 1
    for other in (strips.seeds[1], strips.timesteps[2], strips.scales[0.0, 1.5]):
        assert apart(usual, other) > 1
    request, settings = generator.request(held_out.prompt(sentence, sentence.pieces))
    second = Picture(request.pictures[0].size, start_noise(1, 16, CONFIG))
    alone = generator.draw_requests([(request._replace(pictures=(second,)), settings)])
    assert apart(alone[0][0], strips.seeds[1]) <= 1
    text = demo_strips.section(strips).html
    assert text.count("tile usual") == 2 and text.count("<figure>") == 6 + 2 + 3 + 1
    assert [f"{n} step" in text for n in (1, 2, 3)] == [True] * 3


def test_a_look_shares_all_attention_but_that_of_markers(generator, scenes):
    own = demo_attention.look(generator, scenes[0])
    things = [thing.noun for thing in scenes[0].things]
    assert set(own.regions) == {*things, demo_attention.GROUND}
    assert own.drawing.size == (64, 64) and own.where.evaluation == 2 and own.where.layer == 1
    said = "".join("*" if isinstance(p, Image.Image) else "".join(p) for p in own.pieces)
    written = ["*" if isinstance(p, int) else p for p in scenes[0].pieces()]
    assert said == "".join(written)
    for read in own.regions.values():
        total = sum(share.sum() for share in read.shares) + read.itself
        assert 0.5 < total < 1
    article = demo_attention.section([own]).html
    assert article.count("class=look") == 3 and article.count("<b style") == 2
    line = TEXT.sub("", article.split("class=sentence>")[1].split("</p>")[0])
    assert line == said.replace("*", "")
    strong = demo_attention.FULLEST
    for shown in article.split("class=look")[1:]:  # words and patches have their own scales
        assert f"opacity:{strong:.2f}" in shown and f"--share:{strong:.0%}" in shown


def test_regions_cover_each_latent_token_once(scenes):
    (place, *_), stride = scenes[0].places, 16
    regions = demo_attention.shares_of_regions(scenes[0], (4, 4), stride)
    box, inside = regions[scenes[0].things[place.thing].noun]
    assert inside.sum() * stride**2 == pytest.approx(place.side**2)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    assert abs((column + 0.5) * stride - place.x) <= stride
    assert abs((row + 0.5) * stride - place.y) <= stride
    assert box[2] - box[0] == place.side
    others = [share for name, (_, share) in regions.items() if name != demo_attention.GROUND]
    np.testing.assert_allclose(regions[demo_attention.GROUND][1], 1 - np.max(others, axis=0))


def test_copies_of_an_object_are_numbered():
    art = artwork.load(demo_page.ARTWORK)
    (scene,) = exam.scenes(art, "counts", 1)
    names = demo_attention.shares_of_regions(scene, (8, 8), 16)
    assert len(names) == len(scene.places) + 1
    assert any(name.endswith(" #2") for name in names)


def test_a_table_of_the_judge_comes_back_with_its_controls_below(tmp_path):
    share = table.estimate([[1.0], [0.0], [1.0], [1.0]] * 8)
    rows = [
        table.Row("2 references", condition, {"identity": share, table.PSNR: share})
        for condition in held_out.CONDITIONS
    ]
    assert table.from_json(table.to_json(rows)) == rows
    path = tmp_path / "table.json"
    facts = {"sentences": 32, "seeds": 3, "candidates": 64, "left_out": {"8 references": "<big>"}}
    path.write_text(json.dumps({**facts, "rows": table.to_json(rows)}))
    section = demo_table.section(path)
    assert "32 sentences of each kind" in section.text
    assert "Left out: 8 references, <big>." in section.text
    plain, controls = section.html.split("<tbody class=controls>")
    assert held_out.AS_WRITTEN in plain and held_out.SWAPPED not in plain
    assert held_out.SWAPPED in controls and "--share:75.0%" in plain and "1.6%" in controls
    assert "relation" not in plain  # nothing was measured of it


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "JSONDecodeError"), ('{"rows": [{"sentences": "a"}]}', "row 0"), ("{}", "'rows'")],
)
def test_what_is_no_table_is_named(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"table.json: not a table.*{message}"):
        demo_table.section(path)


def test_notes_of_people_are_facts_and_those_of_programs_are_not():
    earlier = {"kind": "checkpoint", "step": 9, "tools": {}, "cost": "2 h on two cores"}
    own = {"kind": "checkpoint", "step": 3, "folder": "x", "data": "40,000 scenes"}
    notes = demo_page.notes([earlier, own])
    assert notes == {"cost, earlier weights": "2 h on two cores", "data": "40,000 scenes"}


def test_small_scenes_of_several_objects_are_explored(generator, monkeypatch):
    art = artwork.load(demo_page.ARTWORK)
    one, two, five = (
        exam.scenes(art, row, 1)[0] for row in ("1 reference", "2 references", "5 references")
    )
    drawn, looked = [], []
    monkeypatch.setattr(demo_strips, "draw", lambda _, sentence: drawn.append(sentence))
    monkeypatch.setattr(demo_attention, "look", lambda _, scene: looked.append(scene))
    monkeypatch.setattr(demo_strips, "section", lambda _: "strips")
    monkeypatch.setattr(demo_attention, "section", lambda _: "attention")
    assert demo_page.explore(generator, [one, five, two]) == ["strips", "attention"]
    assert drawn[0].words == two.words() and looked[0] is five and len(looked) == 1


def test_the_report_of_no_checkpoint_says_so(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert demo_report.main(["--checkpoint", str(tmp_path), "--out", str(out)]) == 1
    assert str(tmp_path) in capsys.readouterr().err and not out.exists()


def test_shipped_weights_are_those_of_the_preset_and_of_the_table():
    """The table that the page, README.md and docs/demo.md show was measured with what ships."""
    shipped = load.read_config(demo.WEIGHTS)
    assert differences.models(shipped, overrides.load(demo.CONFIG).model) == []
    told = json.loads(demo_page.MEASURED.read_text())
    assert told["sha256"] == judging.weights_hash(load.load_any(demo.WEIGHTS).params)
    assert told["seeds"] == 3 and told["candidates"] == 64
    sampling = dataclasses.asdict(overrides.load(demo.CONFIG).sample)
    assert told["sampling"] == json.loads(json.dumps(sampling))
    drawn = {row.condition for row in table.from_json(told["rows"])}
    assert drawn == {*held_out.CONDITIONS, judging.UNTRAINED, judging.UNRELATED}
    assert told["world"]["version"] == world_records.VERSION and not told["world"]["changes"]


def test_every_row_of_the_table_fits_what_ships():
    config, art = overrides.load(demo.CONFIG), artwork.load(demo.ARTWORK)
    words = text.load(demo.TOKENIZER, config.model.tokens, config.model.llm.vocab_size)
    able = types.SimpleNamespace(config=config, tokenizer=words)
    exams = {row: exam.scenes(art, row, 24) for row in exam.ROWS}
    can, left_out = judging.drawable(exams, able)
    assert list(can) == list(exam.ROWS) and not left_out


def test_what_ships_is_small_and_says_where_it_comes_from():
    files = [file for file in pathlib.Path(demo.ARTWORK).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    assert provenance.ancestry(demo.WEIGHTS)
    assert autoencoder.read_facts(demo.AUTOENCODER)
    terms = pathlib.Path(demo.ARTWORK) / "ATTRIBUTION.md"
    told = terms.read_text()
    for file in set(files) - {terms}:
        inside = file.relative_to(demo.ARTWORK).parts
        assert (f"{inside[0]}/" if inside[0] == "weights" else inside[-1]) in told


@pytest.mark.parametrize("scratch", [[], ["--from-scratch"]])
@pytest.mark.parametrize("short", [[], ["--scenes", "64", "--steps", "8"]])
def test_training_is_asked_for_what_a_config_can_be(scratch, short, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "_show", asked.append)
    assert demo.main(["--out", str(tmp_path), *scratch, *short]) == 0
    command = demo.train_command(tmp_path, asked[0])
    config = overrides.parse(command[2:], {"workdir": ""}).config
    checks.check(config)
    assert config.run.steps == 8 or not short
    halves = demo.train_command(tmp_path, asked[0], devices=2)
    halves = overrides.parse(halves[2:], {"workdir": ""}).config
    checks.check(halves)
    assert halves.mesh.dcn == 2 and halves.data.packs % 2 == 0
    assert bool(config.run.init_from) != bool(scratch)
    longest = overrides.load(demo.CONFIG).data.max_example_tokens  # for a reader's own sentences
    assert scratch or config.data.max_example_tokens == longest
    assert len(config.data.train) == len(demo.parts_of(asked[0])) == len(config.data.weights or "1")
    words = text.load(demo.TOKENIZER, config.model.tokens, config.model.llm.vocab_size)
    art, room = artwork.load(demo.ARTWORK), config.data.capacity
    for part in demo.parts_of(asked[0]):
        world = world_records.config_of(part.objects, part.kinds, part.world)
        for number, scene in enumerate(world_records.scenes(art, "train", demo.SEED, 100, world)):
            example = world_records.to_example(scene, f"{number}")
            items = prepare.outline(example, words, config)
            takes = np.sum([prepare.segment_tokens(item) for item in items], axis=0)
            assert (takes <= (room.und, room.gen, room.vit, room.cross_entropy)).all()
            assert takes[:2].sum() <= config.data.max_example_tokens


def test_an_earlier_demo_makes_room_and_nothing_else_does(tmp_path, capsys):
    folder = tmp_path / "demo"
    demo.clear(folder)
    for name in ("one/records", "two", "run/checkpoints", "held_out"):
        (folder / name).mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    demo.clear(folder)
    assert not folder.exists() and "removed" in capsys.readouterr().out
    (folder / "run").mkdir(parents=True)
    (folder / "holiday.jpg").write_text("dear")
    arguments = ["--out", str(tmp_path), "--scenes", "4", "--held-out", "2"]
    assert demo.main(arguments) == 1
    assert "holds holiday.jpg, which no demo wrote" in capsys.readouterr().err
    assert (folder / "holiday.jpg").read_text() == "dear" and (folder / "run").exists()


def test_training_that_ends_by_itself_is_told_in_words(tmp_path):
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(ValueError, match="by itself with status 3, before it could be killed"):
        demo.run_until_checkpoint(fails, tmp_path / "run", dict(os.environ))
