import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from inset_jax import convert
from tests.checkpoint.folders import FOLDER, GOLDEN, change, contents


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "bagel")
    return tmp_path / "bagel"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    target = tmp_path_factory.mktemp("command") / "orbax"
    assert convert.main(["to-orbax", str(FOLDER), str(target), "--quiet"]) == 0
    return target


def run(*arguments):
    return convert.main(list(map(str, arguments)))


def test_the_way_there_and_back_by_command(converted, tmp_path, capsys):
    assert run("to-bagel", converted, tmp_path / "back", "--jobs", 1) == convert.DONE
    assert contents(tmp_path / "back").items() >= contents(FOLDER).items()
    out = capsys.readouterr().out
    assert f"wrote 287 tensors, 5.57 MB, to {tmp_path / 'back'}" in out
    assert "read back and compared" in out and "sha256 035afc21cc94" in out
    assert run("inspect", tmp_path / "back") == convert.DONE
    out = capsys.readouterr().out
    assert "a BAGEL folder; weights: ema" in out and "1. bagel " in out and "2. checkpoint " in out
    assert "035afc21cc9417c6  written as ema.safetensors" in out
    assert run("verify", tmp_path / "back", converted) == convert.DONE
    assert "287 of 287 tensors are equal in shape, dtype and bytes" in capsys.readouterr().out


def test_json_is_one_object_on_standard_output(converted, folder, tmp_path, capsys):
    assert run("inspect", converted, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["weights"], found["parameters"]) == (
        "checkpoint",
        ["ema"],
        1383763,
    )
    assert found["parts"]["gen expert"] == {
        "tensors": 29,
        "parameters": 62080,
        "dtypes": {"float32": 62080},
    }
    assert found["provenance"][0]["files"][0]["name"] == "ema.safetensors"
    assert (
        run("to-orbax", folder, tmp_path / "x", "--dry-run", "--json", "--dtype", "bfloat16") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["dry_run"] and found["dtypes"] == ["bfloat16", "float32"]
    change(folder, lambda tensors: tensors["vae2llm.bias"].__setitem__(0, 9))
    assert run("verify", converted, folder, "--json") == convert.DIFFERENT
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["different"]] == ["vae2llm.bias"]


def test_every_kind_of_failure_has_its_status(converted, folder, tmp_path, capsys):
    change(folder, lambda tensors: tensors.pop("vae2llm.bias"))
    assert run("to-orbax", folder, tmp_path / "a") == convert.REFUSED
    assert "error:   missing: vae2llm.bias" in capsys.readouterr().err
    assert run("to-orbax", folder, tmp_path / "a", "--allow-missing", "vae2llm.*", "--quiet") == 0
    assert "    vae2llm.bias: random, seed 0" in capsys.readouterr().out
    content = (folder / "ae.safetensors").read_bytes()
    (folder / "ae.safetensors").write_bytes(content[:-3])
    assert run("to-orbax", folder, tmp_path / "b") == convert.DAMAGED
    assert run("to-bagel", converted, tmp_path / "a") == convert.UNWRITABLE
    assert "is not empty" in capsys.readouterr().err
    assert run("inspect", tmp_path / "nowhere", "--json") == convert.REFUSED
    assert json.loads(capsys.readouterr().out)["status"] == convert.REFUSED
    for flags in (["to-orbax"], ["to-orbax", "a", "b", "--dtype", "int8"], ["other"]):
        with pytest.raises(SystemExit) as stop:
            convert.main(flags)
        assert stop.value.code == convert.USAGE
    for flags in (["--mesh", "x=1"], ["--mesh", "fsdp"], ["--jobs", "0"]):
        assert run("to-orbax", FOLDER, tmp_path / "c", *flags) == convert.REFUSED
    assert run("verify", converted) == convert.REFUSED


def test_of_many_tensors_json_names_all(folder, tmp_path, capsys):
    gone = []
    change(
        folder,
        lambda found: gone.extend(
            n for n in [*found] if "_moe_gen" in n and found.pop(n) is not None
        ),
    )
    assert len(gone) == 29
    assert run("to-orbax", folder, tmp_path / "a", "--json") == convert.REFUSED
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert sorted(found["missing"]) == sorted(gone)
    assert found["unexpected"] == found["misshapen"] == []
    assert "missing: and 9 more" in found["error"] and "error:   missing: and 9 more" in err


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from inset_jax.checkpoint import streaming

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "_write", stop)
    assert run("to-orbax", FOLDER, tmp_path / "x") == convert.INTERRUPTED
    assert "the same command goes on from here" in capsys.readouterr().err
    assert run("inspect", tmp_path / "x") == convert.REFUSED
    assert "unfinished, 0 tensors are written" in capsys.readouterr().out


def test_progress_tells_bytes_rate_and_time_left(monkeypatch, capsys):
    from inset_jax.checkpoint import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for as_json in (False, True):
        now[0] = 0.0
        bar = progress.Progress("converting", 4_000_000_000, as_json)
        bar.skip(1_000_000_000)
        now[0] = 5.0
        bar.add(100_000_000)  # too early to say anything
        now[0] = 20.0
        bar.add(900_000_000)
    words, line = capsys.readouterr().err.splitlines()
    assert words == "converting 2 GB of 4 GB (50%), 50 MB/s, 0:40 left"
    found = json.loads(line)
    assert found.pop("what") == "converting"
    assert found == {
        "bytes": 2_000_000_000,
        "total": 4_000_000_000,
        "bytes_per_second": 50_000_000,
        "seconds_left": 40.0,
    }


def test_help_costs_no_heavy_import():
    code = (
        "import sys; from inset_jax import convert\n"
        "try: convert.main(['to-orbax', '--help'])\n"
        "except SystemExit: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n") and "exit status: 0 done; 1 verify" in done.stdout


def test_the_tool_is_the_same_command(capsys):
    from tools import convert_weights

    assert convert_weights.main is convert.main


def test_two_forms_compute_the_same(converted, folder, capsys):
    assert run("verify", converted, FOLDER, "--activations", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["activations"] == {"arrays": 10, "failed": [], "worst": 0.0}

    def swap(tensors):  # equal shapes, so that names and shapes say nothing
        a, b = (f"language_model.model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up"))
        tensors[a], tensors[b] = tensors[b], tensors[a]

    change(folder, swap)
    assert run("verify", converted, folder, "--activations", "--json") == convert.DIFFERENT
    failed = json.loads(capsys.readouterr().out)["activations"]["failed"]
    assert "fixed input:velocity" in failed and "fixed input:VAE mean" not in failed


def test_a_converted_model_gives_the_stored_activations(converted, folder, tmp_path, capsys):
    golden = tmp_path / "golden"
    golden.mkdir()
    shutil.copytree(FOLDER, golden / "ckpt")
    shutil.copy(GOLDEN / "tiny_a" / "vit.npz", golden)
    assert run("verify", converted, "--activations", golden, "--json") == 0
    found = json.loads(capsys.readouterr().out)["activations"]
    assert found["arrays"] == 10 and found["worst"] < 1e-4 and not found["failed"]
    change(folder, lambda t: t.update({"connector.fc1.bias": t["connector.fc1.bias"] + 1}))
    assert run("verify", folder, "--activations", golden) == convert.DIFFERENT
    out = capsys.readouterr().out
    assert "vit.npz:connector " in out and "FAIL" in out
    assert run("verify", converted, "--activations", tmp_path / "no") == convert.REFUSED
    assert np.load(golden / "vit.npz")["connector"].shape == (61, 64)
