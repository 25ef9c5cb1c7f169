"""Seconds of a step, roughly: what must be computed, moved and sent, over published rates.

An estimate, never a measurement. Both ends of each range are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inset_jax.preflight.chips import Slice
from inset_jax.preflight.collectives import Collective
from inset_jax.preflight.work import Part

DENSE = (0.60, 0.75)  # share of the peak rate that products of matrices reach
# of attention, scores made again in the backward pass counted: 0.73 on v5p and 0.29 on v6e by the
# bundles of the compiled kernels for packs of the presets' mix (docs/kernels.md, packs of the
# planner); of the other two nothing is known, and v6e's range stands in
ATTENTION = {"v5p": (0.62, 0.76), "v6e": (0.24, 0.30), "tpu7x": (0.24, 0.30), "v5e": (0.24, 0.30)}
MODELLED = ("v5p", "v6e")
HOST = 32e9  # bytes a second each way between a device and its host: PCIe of the fourth generation
LINKS = 0.8  # share of the wires' rate that a ring over all of them reaches


class Estimate(NamedTuple):
    """One end of the range; seconds of a step on one device."""

    dense: float
    attention: float
    hidden: float  # collectives that matrix work runs beside
    exposed: float  # other collectives
    host: float  # layers' inputs to the host and back
    optimizer: float  # the state read and written once
    step: float
    mfu: float  # work of the model / (step x peak)


def estimate(
    slice_: Slice,
    work: dict[str, Part],
    found: Sequence[Collective],
    state: int,
    to_host: float = 0.0,
) -> dict[str, Estimate]:
    """Returns the slow and the fast end.

    Args:
      state: bytes of parameters, optimizer state and average on a device.
      to_host: bytes that a device sends to its host in a step, and gets back: the slow end waits
        for them, in the fast one they go beside other work.
    """
    ends = {}
    for name, end in (("slow", 0), ("fast", 1)):
        rate = slice_.chip.device_flops
        is_attention = lambda part: "attention" in part
        dense = sum(p.executed for n, p in work.items() if not is_attention(n))
        pairs = sum(p.executed for n, p in work.items() if is_attention(n))
        dense = dense / (rate * DENSE[end])
        attention = pairs / (rate * ATTENTION[slice_.chip.name][end])
        seconds = lambda c: c.sent / bandwidth(slice_, c.axes)
        hidden = sum(seconds(c) for c in found if c.is_hidden)
        exposed = sum(seconds(c) for c in found if not c.is_hidden)
        optimizer = 2 * state / (slice_.chip.bandwidth / slice_.chip.devices)
        host = 2 * to_host / HOST
        beside, alone = (hidden, host) if name == "slow" else (max(hidden, host), 0.0)
        step = max(dense + attention, beside) + exposed + alone + optimizer
        model = sum(p.model for p in work.values())
        ends[name] = Estimate(
            dense, attention, hidden, exposed, host, optimizer, step, model / (step * rate)
        )
    return ends


def bandwidth(slice_: Slice, axes: Sequence[str]) -> float:
    """Bytes a second that one device sends along mesh axes.

    "fsdp" is taken to reach over all wires of the torus, "context" and "tensor" over those of one
    of its axes; a torus whose ends are joined sends both ways. In a single slice "dcn" is an axis
    like "fsdp".
    """
    chip = slice_.chip
    if "dcn" in axes and slice_.count > 1:
        return chip.dcn / chip.devices
    dims = 1 if set(axes) <= {"context", "tensor"} else chip.dims
    both = 2 if slice_.wrapped else 1
    return chip.link * dims * both * LINKS / chip.devices


def words(slice_: Slice, is_offloading: bool = False) -> list[str]:
    """The assumptions, in sentences."""
    chip = slice_.chip
    between = f", {bandwidth(slice_, ('dcn',)) / 1e9:,.1f} GB/s between slices"
    return [
        f"products of matrices reach {DENSE[0]:.0%} to {DENSE[1]:.0%} of "
        f"{chip.device_flops / 1e12:,.0f} TFLOP/s",
        "attention reaches {:.0%} to {:.0%} of it, {}".format(
            *ATTENTION[chip.name],
            "modelled from compiled kernels" if chip.name in MODELLED else "as assumed for v6e",
        ),
        f"collectives reach {LINKS:.0%} of the wires: "
        f"{bandwidth(slice_, ('fsdp',)) / 1e9:,.0f} GB/s over the slice"
        + between
        * (slice_.count > 1),
        "collectives with matrix work inside cost nothing until they last longer than it; others"
        " wait alone",
        *[
            f"{HOST / 1e9:,.0f} GB/s each way between a device and its host; the slow end waits, "
            "in the fast one they go beside other work"
        ]
        * is_offloading,
        "no time is counted for norms, rotations, loading of data, or other memory traffic",
    ]
