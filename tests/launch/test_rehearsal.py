"""The rehearsal of a pod's life: `make pod-rehearsal`."""

import json

import pytest

from tools import rehearse


@pytest.mark.slow
def test_the_whole_life_ends_well(tmp_path, capsys):
    assert rehearse.main(["--out", str(tmp_path / "life")]) == 0
    report = json.loads((tmp_path / "life" / "report.json").read_text())
    assert [phase["name"] for phase in report] == list(rehearse.PHASES)
    assert "SIGTERM, saved at step" in capsys.readouterr().out


def test_a_phase_that_fails_ends_the_rehearsal_with_its_last_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rehearse, "PHASES", ("convert",))
    monkeypatch.setattr(rehearse, "MODEL", str(tmp_path / "none"))
    assert rehearse.main(["--out", str(tmp_path / "life")]) == 1
    assert "none" in capsys.readouterr().err
    monkeypatch.setattr(rehearse, "PHASES", ("records",))
    monkeypatch.setattr(rehearse, "CONFIG", str(tmp_path / "none.py"))
    assert rehearse.main(["--out", str(tmp_path / "life")]) == 1
    assert "records: exit status 1, expected 0:" in capsys.readouterr().err


def test_a_path_that_the_launcher_cannot_take_is_refused(tmp_path, capsys):
    assert rehearse.main(["--out", str(tmp_path / "a life")]) == 1
    assert "a path without spaces" in capsys.readouterr().err
