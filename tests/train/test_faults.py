"""Bad records are counted and listed; a checkpoint knows by which plan it was trained."""

import json
from types import SimpleNamespace

import pytest

from inset_jax.data.loader import Fault
from inset_jax.train.faults import FaultLog, check_plan, go_on

BAD = Fault("x3", "damaged", "x5")


def test_ids_go_to_a_file_and_counts_are_taken(tmp_path):
    log = FaultLog(tmp_path, 0)
    log.add(1, [])
    assert log.take() == 0 and not list(tmp_path.iterdir())
    log.add(2, [BAD, BAD])
    log.add(4, [BAD])
    assert log.take() == 3 and log.take() == 0
    lines = [json.loads(line) for line in (tmp_path / "bad_records.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 2, 4]
    assert lines[0] == {"step": 2, "id": "x3", "replaced_by": "x5", "reason": "damaged"}


def test_a_resumed_run_forgets_what_came_after_its_step(tmp_path):
    for process in (0, 1):
        log = FaultLog(tmp_path, 0, process)
        log.add(2, [BAD])
        log.add(4, [BAD])
    FaultLog(tmp_path, 3)
    assert len((tmp_path / "bad_records.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "bad_records.1.jsonl").read_text().splitlines()) == 2


def test_a_plan_of_other_records_stops_the_run_or_is_told():
    loader = SimpleNamespace(hash="a", records_hash="r")
    assert check_plan({"step": 3}, loader, "stop") == ""  # saved before plans had names
    assert check_plan({"plan": "a", "records": "r"}, loader, "stop") == ""
    assert "planned anew" in check_plan({"plan": "b", "records": "r"}, loader, "stop")
    with pytest.raises(ValueError, match=r"records or the tokenizer have changed .*=replace"):
        check_plan({"plan": "b", "records": "q"}, loader, "stop")
    assert "have changed" in check_plan({"plan": "b", "records": "q"}, loader, "replace")


def test_data_goes_on_with_the_pack_of_the_checkpoint():
    loader = SimpleNamespace(pack=6)
    assert go_on({"step": 3}, loader) == ""  # saved before packs were counted
    assert go_on({"step": 3, "pack": 6}, loader) == "" and loader.pack == 6
    told = go_on({"step": 3, "pack": 4}, loader)
    assert "optimizer.accumulation has changed" in told and "with pack 4" in told
    assert loader.pack == 4
