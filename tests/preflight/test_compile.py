"""Real compiles by libtpu, without a TPU: the step of the smallest preset, and the bars of the 7B.

The golden figures are those of docs/preflight.md; a step that takes more memory or sends more bytes
shows here. They hold for the jax and libtpu of requirements/constraints.txt.
"""

import importlib.util
import json
import pathlib

import pytest

from inset_jax.preflight.__main__ import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
GIB = 1 << 30
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ROOM = {"und": 17408, "gen": 15360, "vit": 15360}  # 32,768 tokens in the ratio of the mix
# GiB of temporaries, GB that a chip sends in a step, of these between slices, rematerializations
GOLDEN = {
    ("v6e-256", "full"): (16.02, 114.0, 0.0, 0),
    ("v6e-256", "offload"): (12.01, 114.9, 0.0, 0),
    ("v5p-128", "full"): (16.66, 113.2, 0.0, 0),
    ("tpu7x-128", "full"): (18.93, 111.0, 0.0, 0),
    ("2x v6e-256", "full"): (21.23, 118.0, 0.142, 0),
    ("2x v6e-256", "offload"): (13.46, 118.9, 0.142, 0),
}
# GiB that prefill, evaluation and decoding need, GB that a chip sends in an evaluation
DRAWING = {
    "v5e-16": (3.91, 4.59, 5.54, 26.2),
    "v6e-8": (5.68, 6.25, 7.24, 26.2),
    "v5p-8": (8.99, 9.51, 11.65, 19.6),
}


def preflight(tmp_path, config: str, slice_: str, *flags) -> tuple[int, dict]:
    argv = [
        "x",
        f"--config={CONFIGS / config}.py",
        f"--slice={slice_}",
        f"--out={tmp_path}",
        *flags,
    ]
    return main(argv), json.loads((tmp_path / "preflight.json").read_text())


def test_the_step_of_the_smallest_preset_is_scheduled_for_a_described_slice(tmp_path):
    status, found = preflight(tmp_path, "tiny", "v6e-4", "--fast", "--config.data.capacity.vit=128")
    # of a program so small libtpu logs no plan of the memory
    assert (status, found["memory"]["fits"]) == (1, None)
    assert not found["finished"] and found["rematerialised"] == 0
    assert found["mesh"] == {"dcn": 1, "fsdp": 4, "context": 1, "tensor": 1}
    # the kernels were chosen as a TPU chooses them, on a machine without one
    assert {"flow_loss", "interval_forward", "interval_backward"} <= set(found["kernels"]["names"])
    assert found["memory"]["parts"]["parameters, trained"] > 0
    assert found["collectives"]["sent"] > 0
    assert {row["axes"] for row in found["collectives"]["table"]} == {"fsdp"}
    loops = [c for c in found["collectives"]["largest"] if c["times"] == 2]  # two layers
    assert loops


@pytest.mark.slow
@pytest.mark.parametrize(("sums", "dtype"), [("compute", "bf16"), ("float32", "f32")])
def test_gradients_of_kernels_are_summed_in_the_dtype_of_the_config(tmp_path, sums, dtype):
    flags = ("--config.data.capacity.vit=128", "--config.compute.dtype=bfloat16")
    own = f"--config.compute.gradient_sums={sums}"
    _, found = preflight(tmp_path, "tiny", "v6e-4", "--fast", *flags, own)
    kinds = ("all-reduce", "reduce-scatter")
    summed = [c for c in found["collectives"]["largest"] if c["kind"] in kinds and c["times"] == 2]
    matrices = [c for c in summed if c["payload"] >= 2 * 64 * 64]
    assert matrices and {c["dtype"] for c in matrices} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("slice_", DRAWING)
def test_the_7b_draws_within_what_it_did(tmp_path, slice_):
    flags = (f"--slice={slice_}", "--task=sample", "--fast", f"--out={tmp_path}")
    assert main(["x", f"--config={CONFIGS / 'inset_7b'}.py", *flags]) == 0
    found = json.loads((tmp_path / "sampling.json").read_text())
    programs = found["programs"].values()
    *needed, sent = DRAWING[slice_]
    got = [program["memory"]["needed"] / GIB for program in programs]
    assert got == pytest.approx(needed, rel=0.03)
    assert found["programs"]["evaluation"]["sent"] / 1e9 == pytest.approx(sent, rel=0.03)
    assert not any(program["rematerialised"] for program in programs)


@pytest.mark.slow
@pytest.mark.parametrize(("slice_", "remat"), GOLDEN)
def test_the_7b_takes_and_sends_what_it_did(tmp_path, slice_, remat):
    flags = [f"--config.data.capacity.{name}={size}" for name, size in ROOM.items()]
    flags += [f"--config.compute.remat={remat}"]
    status, found = preflight(tmp_path, "inset_7b", slice_, "--fast", *flags)
    temporaries, sent, between, rematerialised = GOLDEN[slice_, remat]
    assert status == 0
    assert found["memory"]["free"] > (0.08 if (slice_, remat) == ("2x v6e-256", "full") else 0.10)
    assert found["rematerialised"] == rematerialised
    assert found["collectives"]["stacks"] == []
    got = found["memory"]["parts"]["activations and other temporaries"] / GIB
    assert got == pytest.approx(temporaries, rel=0.03)
    assert found["collectives"]["sent"] / 1e9 == pytest.approx(sent, rel=0.03)
    assert found["collectives"]["sent_dcn"] / 1e9 == pytest.approx(between, abs=0.02)
    assert found["collectives"]["gathers_hidden"] > 0.9
