"""Figures that two machines compare: they follow the weights, and a wrong one is named."""

import contextlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import tiny
from inset_jax.core import mesh as meshes
from inset_jax.core import overrides
from inset_jax.core.config import MeshConfig, edit
from inset_jax.data import text
from inset_jax.model import bridge
from inset_jax.parity import canary
from tools import canary as tool

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODEL = tiny.experiment().model
CONFIG = canary.experiment(MODEL, "float32")
MESH = meshes.build(MeshConfig(), jax.devices()[:1])


@contextlib.contextmanager
def as_the_command():
    """So that what is compiled serves the command too."""
    with jax.set_mesh(MESH), jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def measured():
    """The inputs, the keyed weights and their figures."""
    given = canary.inputs(MODEL, canary.encode_bytes)
    with as_the_command():
        params = canary.keyed_params(CONFIG, MESH)
        return given, params, canary.figures(CONFIG, params, given)


def failed(path, found, given, dtype="float32"):
    return {r.array for r in canary.compare(path, found, given, dtype) if not r.passed}


def test_figures_of_the_same_weights_pass_and_of_a_perturbed_one_fail(measured, tmp_path):
    given, params, found = measured
    canary.save(tmp_path / "a.json", found, given, "tiny", "float32")
    assert failed(tmp_path / "a.json", found, given) == set()
    kernel = params["model"]["llm"]["layers"]["gen"]["mlp"]["down"]["kernel"]
    perturbed = jax.tree.map(lambda x: 1.05 * x if x is kernel else x, params)
    with as_the_command():
        wrong = failed(tmp_path / "a.json", canary.figures(CONFIG, perturbed, given), given)
    assert {"grad_norm/gen", "velocity/some", "latent/some"} <= wrong
    # no text sees what is drawn
    assert not wrong & {"loss/cross_entropy", "loss/cross_entropy/understanding"}


def test_every_kind_has_its_losses_and_every_part_its_gradient(measured):
    *_, found = measured
    flow = {name for name in found if name.startswith("loss/flow/")}
    assert flow == {f"loss/flow/{kind}" for kind in ("t2i", "interleaved", "editing")}
    assert all(found[f"grad_norm/{part}"][0] > 0 for part in ("und", "gen", "vit", "rest"))
    assert all(np.isfinite(values).all() for values in found.values())


def test_frozen_tables_of_keyed_weights_are_those_of_the_model():
    model = edit(MODEL, position_ratio=4.0, position_step=2.8, position_scale=2.0)
    with as_the_command():
        params = canary.keyed_params(canary.experiment(model, "float32"), MESH)["model"]
    for name, side in (
        ("latent_position", model.latents.max_side),
        ("connector_position", model.connector_side),
    ):
        rows = 2 * bridge.sincos_table(model.llm.model_dim, side, 4.0, 2.8)
        np.testing.assert_array_equal(params[name]["table"], rows)


def test_missing_figures_and_another_input_are_no_match(measured, tmp_path):
    given, _, found = measured
    canary.save(tmp_path / "a.json", found, given, "tiny", "float32")
    assert failed(tmp_path / "a.json", {**found, "loss/total": [np.nan]}, given) == {"loss/total"}
    more = {**found, "picture/mean, std": [1.0]}
    assert failed(tmp_path / "a.json", more, given) == {"picture/mean, std"}
    other = canary.inputs(MODEL, lambda text: [1, *text.encode()])
    drawn = given._replace(request=given.request._replace(items=other.request.items))
    for unlike in (other, drawn):
        with pytest.raises(ValueError, match="figures of another input"):
            failed(tmp_path / "a.json", found, unlike)
    with pytest.raises(ValueError, match="no figures of a canary"):
        failed(tmp_path / "nothing.json", found, given)


def test_command_ends_with_1_where_a_figure_is_off(monkeypatch, tmp_path, capsys):
    # the command's own model is that of the 7B; here the tiny one
    monkeypatch.setattr(canary, "thin", lambda model: MODEL)
    out = tmp_path / "here.json"
    assert tool.main(["--out", str(out)]) == 0
    assert tool.main(["--against", str(out)]) == 0
    told = json.loads(out.read_text())
    told["figures"]["grad_norm/und"][0] *= 1.01
    out.write_text(json.dumps(told))
    assert tool.main(["--against", str(out)]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert tool.main(["--against", str(out), "--dtype", "float32", "--mesh", "moon=2"]) == 1


def test_checkpoint_is_measured_with_its_tokenizer_and_its_pictures(tmp_path, capsys):
    folder = tmp_path / "bagel"
    shutil.copytree(GOLDEN / "tiny_a" / "ckpt", folder)
    assert tool.main(["--checkpoint", str(folder)]) == 1
    assert "tokenizer" in capsys.readouterr().err
    words = text.make_small_tokenizer(["a lamp on a table"], MODEL.llm.vocab_size, MODEL.tokens)
    words.save(folder)
    here = tmp_path / "here.json"
    assert tool.main(["--checkpoint", str(folder), "--out", str(here)]) == 0
    assert len(json.loads(here.read_text())["figures"]["picture/mean, std"]) == 6
    assert tool.main(["--checkpoint", str(folder), "--against", str(here)]) == 0
    assert "0 failed" in capsys.readouterr().out


def test_figures_that_ship_are_of_the_input_as_it_is_now():
    stored = json.loads(tool.EXPECTED.read_text())
    model = canary.thin(overrides.load(tool.CONFIG).model)
    given = canary.inputs(model, canary.encode_bytes)
    assert stored["input"] == canary.fingerprint(given)
    assert (stored["weights"], stored["dtype"]) == (canary.KEYED, "float32")


@pytest.mark.slow  # widths of the 7B: 50 s, 4 GB
def test_figures_that_ship_are_those_of_the_model_as_it_is_now(capsys):
    assert tool.main([]) == 0
    assert "0 failed" in capsys.readouterr().out
