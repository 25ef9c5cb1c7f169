"""The command that measures a person's own photographs, with a stand-in that draws grey."""

import json

import pytest

from inset_jax.core.config import edit
from inset_jax.engine import photographs
from inset_jax.evaluate import held_out
from inset_jax.sample.api import Generator
from tests.tools.test_judge import StandIn
from tools import own_pictures


def test_without_a_checkpoint_the_cut_is_judged_alone(tmp_path, capsys):
    out = tmp_path / "new" / "own.json"
    assert own_pictures.main(["--sentences", "4", "--out", str(out)]) == 0
    facts = json.loads(out.read_text())
    whole = facts["cuts"][-1]
    assert whole["ground"] == "all" and whole["photographs"] == 4 * (1 + 2)
    assert 0.5 < whole["overlap"] <= 1 and "rows" not in facts
    printed = capsys.readouterr().out
    told = next(line.split() for line in printed.splitlines() if line.startswith("all"))
    assert told == ["all", "12", f"{whole['found']:.0%}", f"{whole['overlap']:.2f}"]


def test_every_row_is_drawn_from_every_kind_of_references(tmp_path, monkeypatch, capsys):
    stand_in = StandIn()
    monkeypatch.setattr(Generator, "load", lambda *_: stand_in)
    out = tmp_path / "own.json"
    command = ["--checkpoint", "x", "--out", str(out), "--sentences", "2"]
    assert own_pictures.main(command) == 0
    facts = json.loads(out.read_text())
    kinds = [held_out.AS_WRITTEN, *photographs.KINDS]
    assert [(row["sentences"], row["drawn"]) for row in facts["rows"]] == [
        (row, kind) for row in ("1 reference", "2 references") for kind in kinds
    ]
    assert facts["rows"][-1]["columns"]["identity"]["values"] == 2 * 2
    assert facts["sha256"] and facts["cuts"][-1]["photographs"] == 6
    sizes = [
        [piece.size for piece in prompt.pieces if not isinstance(piece, str)]
        for prompt in stand_in.asked
    ]
    assert sizes[0] == [(32, 32)] and sizes[4] == [(128, 128)] and min(sizes[6][0]) >= 192
    seeds = [prompt.seed for prompt in stand_in.asked]
    assert seeds == [0, 1] * 8  # every kind starts from the same noise
    printed = capsys.readouterr().out
    assert "cut out by hand" in printed and "chance" in printed


def test_sentences_that_the_model_cannot_draw_are_left_out(tmp_path, monkeypatch, capsys):
    stand_in = StandIn()
    stand_in.config = edit(stand_in.config, data__max_example_tokens=110)
    monkeypatch.setattr(Generator, "load", lambda *_: stand_in)
    out = tmp_path / "own.json"
    command = ["--checkpoint", "x", "--out", str(out), "--sentences", "2"]
    assert own_pictures.main([*command, "--rows", "1 reference,5 references"]) == 0
    assert {row["sentences"] for row in json.loads(out.read_text())["rows"]} == {"1 reference"}
    assert "left out: 5 references, 2 of 2 sentences: " in capsys.readouterr().out
    assert own_pictures.main([*command, "--rows", "5 references"]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_a_row_that_does_not_exist_is_refused(tmp_path, capsys):
    assert own_pictures.main(["--rows", "nine"]) == 1
    assert "row 'nine': there are 1 reference" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        own_pictures.main(["--sentences", "1"])
    assert "--sentences: at least 2" in capsys.readouterr().err
