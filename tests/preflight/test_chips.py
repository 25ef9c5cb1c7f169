"""Names of slices, and that a run gets the flags its preflight was compiled with."""

import pathlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

from inset_jax.preflight import chips, compiler

LAUNCH = pathlib.Path(__file__).parents[2] / "launch" / "chips.sh"


@pytest.mark.parametrize(
    ("name", "topology", "count", "devices"),
    [
        ("v6e-256", (16, 16), 1, 256),
        ("v6e-8", (2, 4), 1, 8),
        ("v5e-16", (4, 4), 1, 16),
        ("v5p-128", (4, 4, 4), 1, 64),  # TensorCores
        ("v5p-32", (2, 2, 4), 1, 16),
        ("tpu7x-128", (4, 4, 4), 1, 128),  # two devices a chip
        ("2x v5p-128", (4, 4, 4), 2, 128),
        ("2xv6e:16x16", (16, 16), 2, 512),
        ("v6e:16x16", (16, 16), 1, 256),
        ("v5p:4x4x8", (4, 4, 8), 1, 128),
    ],
)
def test_a_name_is_a_topology(name, topology, count, devices):
    found = chips.parse(name)
    assert (found.topology, found.count, found.devices) == (topology, count, devices)
    assert chips.parse(found.name) == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v6e", "expected a name such as v6e-256"),
        ("h100-8", "one of v5e, v5p, v6e, tpu7x"),
        ("v6e-250", "the nearest is v6e-256"),
        ("v5p-100", "named by TensorCores, two a chip"),
        ("v5p-129", "no such slice"),
        ("v6e:4x4x4", "wired in 2 dimensions"),
        ("v5p:8x8", "wired in 3 dimensions"),
        ("0x v6e-8", "at least one slice"),
    ],
)
def test_other_names_are_refused_with_what_was_expected(name, words):
    with pytest.raises(ValueError, match=words):
        chips.parse(name)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_single_chip_can_be_described_too():
    code = (
        "from inset_jax.preflight import chips; print(len(chips.described(chips.parse('v6e-1'))))"
    )
    slice_ = chips.parse("v6e-1")
    command = [sys.executable, "-c", code]
    own = compiler.environment(slice_, None)
    assert subprocess.run(command, env=own, capture_output=True, text=True).stdout == "1\n"


def test_cubes_have_their_ends_joined():
    assert chips.parse("v5p:4x4x4").wrapped == 3
    assert chips.parse("v5p:2x2x4").wrapped == 0
    assert chips.parse("v6e:16x16").wrapped == 2
    assert chips.parse("v6e:4x4").wrapped == 0


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_runs_get_the_flags_that_preflight_compiles_with(chip):
    lines = subprocess.run(
        ["bash", "-c", f"source {LAUNCH}; CHIP={chip} WORKDIR=x; chip_environment"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    given = [line.split("=", 1)[1] for line in lines if line.startswith("LIBTPU_INIT_ARGS=")]
    assert " ".join(given).split() == list(chips.CHIPS[chip].flags)


def test_one_host_of_three_dimensions_is_flat():
    assert chips.parse("v5p-8").topology == chips.parse("tpu7x-8").topology == (2, 2, 1)


@pytest.mark.parametrize(
    ("text", "near"), [("v6e-512", "v6e-256"), ("v6e-2", "v6e-1"), ("v5p-4", "v5p-8")]
)
def test_the_nearest_slice_that_is_named_is_there(text, near):
    with pytest.raises(ValueError, match=f"no such slice.*the nearest is {near},"):
        chips.parse(text)
    chips.parse(near)
