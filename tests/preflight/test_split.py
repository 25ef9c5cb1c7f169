"""The table of what a device holds, without any."""

import pathlib

import pytest

from configs import inset_7b, tiny
from inset_jax.core.config import MeshConfig, edit
from inset_jax.preflight import chips, split
from inset_jax.preflight.__main__ import main
from tests.train.conftest import CONFIG as SMALL

GIB = 1 << 30


def held(config, slice_: str):
    return split.rows(config, split.mesh_of(config, chips.parse(slice_)))


def test_the_7b_over_a_slice_holds_an_even_share_but_for_what_does_not_divide():
    found = held(inset_7b.experiment(), "v6e-256")
    kernels = {row.axes: row for row in found if row.names == ("layer", "embed", "mlp")}
    # those of both experts are split; the ViT's width, 1,152, does not divide by 256
    assert set(kernels) == {("", "fsdp", ""), ("", "", "")}
    assert all(row.bytes["opt_state"] == 2 * row.bytes["params"] for row in kernels.values())
    total = sum(sum(row.bytes.values()) for row in found)
    assert total / GIB == pytest.approx(6.8, abs=0.1)  # an even share would be 0.85


def test_moments_in_bfloat16_take_half_and_frozen_arrays_have_none():
    sums = lambda config: [
        sum(row.bytes[item] for row in held(config, "v6e-4")) for item in split.ITEMS
    ]
    params, average, moments = sums(SMALL)
    less = sums(edit(SMALL, optimizer__moments_dtype="bfloat16"))
    assert less[:2] == [params, average]
    assert less[2] == pytest.approx(moments / 2, abs=8)  # a count beside them
    frozen = sums(edit(SMALL, optimizer__frozen=("llm/layers/und/*",)))
    assert frozen[0] == params and frozen[1] < average and frozen[2] < moments


def test_an_array_is_split_by_as_many_axes_as_its_names_have():
    config = edit(tiny.experiment(), mesh=MeshConfig(dcn=2, fsdp=2, tensor=2))
    found = {row.axes for row in held(config, "2x v6e-4") if row.names == ("layer", "embed", "mlp")}
    assert ("", "fsdp", "tensor") in found


def test_the_command_prints_rules_and_shares_and_compiles_nothing(capsys, tmp_path):
    config = pathlib.Path(tiny.__file__)
    argv = ["x", f"--config={config}", "--slice=v6e-4", f"--out={tmp_path}", "--table"]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "tiny on v6e:2x2: 4 devices; GiB of each" in told
    assert any(line.split() == ["embed", "fsdp=4"] for line in told.splitlines())
    assert "layer, embed: fsdp, mlp" in told
    assert not list(tmp_path.iterdir())


def test_a_mesh_that_does_not_fit_the_slice_is_refused_with_the_nearest(capsys):
    config = pathlib.Path(tiny.__file__)
    argv = ["x", f"--config={config}", "--slice=v6e-4", "--table", "--config.mesh.fsdp=3"]
    argv += ["--config.data.packs=3"]
    assert main(argv) == 1
    assert "there are 4" in capsys.readouterr().err
