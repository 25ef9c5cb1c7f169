"""Devices that are simulated on CPUs, for whatever a mesh can show without chips."""

from __future__ import annotations


def several(count: int, more_flags: str = "") -> dict[str, str]:
    """The environment of a process that sees `count` CPU devices; JAX counts once a process.

    XLA runs operations in a pool of one thread a core, and a collective holds its thread until all
    devices have come: with more devices than threads they can wait for one another for ever. NPROC
    is the number of threads that XLA believes in; two a device leave room for other work.
    """
    return {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {more_flags}".strip(),
        "JAX_PLATFORMS": "cpu",
        "NPROC": str(2 * count),
    }
