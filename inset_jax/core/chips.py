"""TPU chips: published figures, and the flags of runs on them."""

from __future__ import annotations

from typing import NamedTuple

GIB = 1 << 30

# XLA's asynchronous all-gathers with matrix work inside; launch/chips.sh gives the same to the run,
# and a test holds the two together
ASYNC = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)
# libtpu 0.0.42 moves gathers of rows to the SparseCores and then fails to compile one of them
ON_TENSOR_CORE = ("--xla_tpu_offload_gather_to_sparsecore=false",)


class Chip(NamedTuple):
    """One kind of chip. Rates are of the whole chip, as published."""

    name: str
    dims: int  # of its torus
    cores: int  # that a slice's name counts a chip
    devices: int  # that JAX sees of a chip
    hbm: int  # bytes that a program on one device may use, as libtpu says
    flops: float  # bfloat16 operations a second
    bandwidth: float  # bytes a second of its memory
    link: float  # bytes a second and direction of one of its 2 * dims links
    dcn: float  # bytes a second of its share of the host's network
    flags: tuple[str, ...]  # LIBTPU_INIT_ARGS of runs

    @property
    def device_flops(self) -> float:
        return self.flops / self.devices


# Sources: Google Cloud's pages of each chip (operations, memory, interconnect: gigabits a second of
# all links together); HBM by libtpu 0.0.42's own messages.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 2, 1, 1, int(15.75 * GIB), 197e12, 819e9, 50e9, 6.25e9, ()),
        Chip("v5p", 3, 2, 1, int(95.74 * GIB), 459e12, 2765e9, 100e9, 6.25e9, ASYNC),
        Chip("v6e", 2, 1, 1, int(31.25 * GIB), 918e12, 1640e9, 112e9, 12.5e9, ASYNC),
        Chip("tpu7x", 3, 2, 2, int(94.75 * GIB), 2307e12, 7380e9, 200e9, 12.5e9, ON_TENSOR_CORE),
    )
}

# as JAX names their devices
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def of_kind(kind: str) -> Chip | None:
    """Returns the chip of a device kind such as "TPU v6 lite"; None for one without figures."""
    return CHIPS[KINDS[kind]] if kind in KINDS else None
