"""The command with a stand-in that draws grey pictures."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from inset_jax.core.config import SampleConfig, edit
from inset_jax.data.text import make_small_tokenizer
from inset_jax.engine import artwork, exam
from inset_jax.evaluate import held_out
from inset_jax.sample.api import Generator
from tools import judge, judging

FEW = SampleConfig(num_timesteps=2, alpha=1.0, beta=2.0)


class StandIn:
    """Draws grey pictures of the size that is asked for, up to 96 pixels a side."""

    config = edit(tiny.experiment(), model__latents__max_side=6, data__max_example_tokens=800)
    sampler = types.SimpleNamespace(params={"model": {"a": np.ones(3)}, "vae": {"b": np.ones(2)}})

    tokenizer = make_small_tokenizer(["a cat on a bench"], 512, config.model.tokens)

    def __init__(self):
        self.info = {"path": "somewhere", "step": 7}
        self.asked, self.options = [], []

    def settings(self):
        return FEW

    def draw_all(self, prompts, options):
        self.asked += prompts
        self.options += [options] * len(prompts)
        grey = lambda prompt: Image.new("RGB", (prompt.width, prompt.height), "grey")
        return [
            types.SimpleNamespace(pictures=[grey(prompt)] * options.pictures) for prompt in prompts
        ]


@pytest.fixture
def stand_in(monkeypatch):
    own = StandIn()
    monkeypatch.setattr(Generator, "load", lambda *_: own)
    monkeypatch.setattr(judging, "untrained", lambda generator: own)
    return own


def test_the_command_draws_every_row_and_writes_what_it_prints(stand_in, tmp_path, capsys):
    out = tmp_path / "new" / "table.json"
    command = ["--checkpoint", "nowhere", "--out", str(out), "--seeds", "2", "--sentences", "3"]
    rows = "--rows", "2 references,editing,frames,8 references", "--controls", "2 references"
    assert judge.main([*command, *rows]) == 0
    facts = json.loads(out.read_text())
    drawn = [(row["sentences"], row["drawn"]) for row in facts["rows"]]
    controls = [*held_out.CONDITIONS[1:], judging.UNTRAINED]
    rows = ["2 references", "editing", "frames"]
    unrelated = [(row, judging.UNRELATED) for row in ("editing", "frames")]
    assert drawn == [(row, held_out.AS_WRITTEN) for row in rows] + unrelated + [
        ("2 references", control) for control in controls
    ]
    assert "multiples of 16 from 16 to 96" in facts["left_out"]["8 references"]
    columns = facts["rows"][0]["columns"]
    assert columns["identity"]["values"] == 3 * 2 * 2  # sentences, seeds, places
    assert columns["identity"]["mean"] < 0.5 and columns["PSNR"]["sentences"] == 3
    assert facts["rows"][1]["columns"]["attribute"]["values"] == 3 * 2
    assert len(facts["sha256"]) == 64 and facts["step"] == 7
    assert facts["sampling"]["num_timesteps"] == 2
    printed = capsys.readouterr().out
    assert "untrained weights, judged: 100% of all pictures, 0 s left" in printed
    assert "left out: 8 references" in printed and "chance" in printed


def test_rows_outlive_a_run_that_is_cut(stand_in, tmp_path, monkeypatch):
    out, row = tmp_path / "table.json", judging.row

    def cut(plan, *others):
        if plan.row == "frames":
            raise KeyboardInterrupt
        return row(plan, *others)

    monkeypatch.setattr(judging, "row", cut)
    command = ["--checkpoint", "nowhere", "--out", str(out), "--sentences", "2", "--seeds", "1"]
    assert judge.main([*command, "--rows", "1 reference,frames", "--controls", ""]) != 0
    assert [row["sentences"] for row in json.loads(out.read_text())["rows"]] == ["1 reference"]


def test_controls_are_drawn_from_the_same_noise(stand_in, tmp_path):
    command = ["--checkpoint", "x", "--out", str(tmp_path / "t.json"), "--sentences", "2"]
    assert judge.main([*command, "--rows", "2 references", "--controls", "2 references"]) == 0
    seeds = [prompt.seed for prompt in stand_in.asked]
    assert seeds == [0, 3] * 5
    pictures = lambda prompt: [piece for piece in prompt.pieces if not isinstance(piece, str)]
    written, swapped = stand_in.asked[0], stand_in.asked[2]
    assert pictures(swapped) == pictures(written)[::-1]
    assert pictures(stand_in.asked[6]) == []
    told = [options.settings or FEW for options in stand_in.options]
    used = [(own.text_only_alpha, own.text_only_beta) for own in told]
    assert used[6:8] == [(FEW.alpha, FEW.beta)] * 2  # of texts alone, in the control
    assert {(own.alpha, own.beta) for own in told} == {(FEW.alpha, FEW.beta)}


def test_a_control_that_changes_no_sentence_is_left_out(stand_in):
    art = artwork.load("assets/demo")
    exams = {row: exam.scenes(art, row, 6) for row in ("1 reference", "editing")}
    plans = judging.plans(exams, ["1 reference", "editing"])
    assert judging.Plan("1 reference", held_out.SWAPPED) not in plans
    assert judging.Plan("1 reference", held_out.ABSENT) in plans
    scenes = exams["editing"]
    kept = judging.concerned(held_out.SWAPPED, scenes, range(6))
    assert kept == ([s for s in scenes if len(s.references) > 1], kept[1])
    assert [scenes[number] for number in kept[1]] == kept[0] and len(kept[0]) < 6


def test_an_unrelated_picture_has_the_size_of_the_target(stand_in):
    scenes = exam.scenes(artwork.load("assets/demo"), "frames", 8)
    kept, drawings = judging.unrelated(scenes)
    assert len(kept) > 4
    for scene, (drawing,) in zip(kept, drawings, strict=True):
        pixels = np.asarray(drawing)
        assert pixels.shape == scene.target.shape and (pixels != scene.target).any()


def test_sentences_of_too_many_tokens_leave_their_row_out(stand_in, tmp_path):
    stand_in.config = edit(stand_in.config, data__max_example_tokens=110)
    out = tmp_path / "t.json"
    command = ["--checkpoint", "x", "--out", str(out), "--sentences", "2"]
    assert judge.main([*command, "--rows", "1 reference,5 references"]) == 0
    facts = json.loads(out.read_text())
    assert [row["sentences"] for row in facts["rows"]] == ["1 reference"]
    assert "at most 110 fit" in facts["left_out"]["5 references"]


def test_where_nothing_can_be_drawn_the_reason_is_said(stand_in, tmp_path, capsys):
    stand_in.config = edit(stand_in.config, data__max_example_tokens=20)
    out = tmp_path / "t.json"
    command = ["--checkpoint", "x", "--out", str(out), "--sentences", "2", "--rows", "1 reference"]
    assert judge.main(command) == 1 and not out.exists()
    said = capsys.readouterr().err
    assert "nothing to draw: 1 reference, 2 of 2 sentences: " in said and "at most 20 fit" in said


def test_a_sentence_of_too_many_tokens_leaves_its_row_to_the_others(stand_in):
    scenes = exam.scenes(artwork.load("assets/demo"), "2 references", 12)
    lengths = []
    for most in range(60, 200):
        stand_in.config = edit(stand_in.config, data__max_example_tokens=most)
        can, left_out = judging.drawable({"2 references": scenes}, stand_in)
        lengths.append(len(can.get("2 references", ())))
        told = left_out.get("2 references", "0 of 12 sentences: prompt: ")
        out, _, reason = told.partition(" of 12 sentences: prompt: ")
        assert lengths[-1] in (12 - int(out), 0) and (f"at most {most} fit" in reason) == (
            out != "0"
        )
        assert lengths[-1] != 1  # one sentence has no interval
    assert lengths == sorted(lengths) and {0, 12} < set(lengths)


def test_an_unknown_row_is_refused(stand_in, tmp_path, capsys):
    command = ["--checkpoint", "x", "--out", str(tmp_path / "t.json"), "--rows", "9 references"]
    assert judge.main(command) == 1
    assert "row '9 references': there are" in capsys.readouterr().err
    assert judge.main([*command[:4], "--controls", "two"]) == 1
    assert "controls of two: there are 1 reference" in capsys.readouterr().err


def test_a_scene_is_asked_for_as_its_record_has_it():
    art = artwork.load("assets/demo")
    for row, count in (("editing", 6), ("frames", 6), ("3 references", 2)):
        for scene in exam.scenes(art, row, count):
            asked = judging.sentence(scene)
            pictures = [piece for piece in asked.pieces if not isinstance(piece, str)]
            expected = [scene.references[n] for n in scene.pieces() if isinstance(n, int)]
            expected = [scene.source] * (row == "frames") + expected
            assert len(pictures) == len(expected)
            for picture, pixels in zip(pictures, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(picture), pixels)
            assert (asked.source is not None) == (row == "editing")
            np.testing.assert_array_equal(np.asarray(asked.target), scene.target)
