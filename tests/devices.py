"""Processes with several CPU devices, for tests of meshes."""

from inset_jax.core.simulated import several

__all__ = ["several"]
