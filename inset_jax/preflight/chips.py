"""Slices of TPU chips by their names.

v6e-256, v5e-16       named by chips
v5p-128, tpu7x-128    named by TensorCores, two a chip: 64 chips, 4x4x4
v6e:16x16             chips along each axis
2x v5p-128            two slices, joined by the data-centre network
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from inset_jax.core.chips import CHIPS, GIB, Chip

__all__ = ["CHIPS", "GIB", "Chip", "Slice", "described", "parse"]
NAME = re.compile(r"(?:(\d+) ?x ?)?(v\w+|tpu\w+)(?:-(\d+)|:(\d+(?:x\d+){1,2}))")


class Slice(NamedTuple):
    """What a run is to have: `count` slices of chips of one kind."""

    chip: Chip
    topology: tuple[int, ...]  # chips along each axis
    count: int = 1

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return math.prod(self.topology) * self.count

    @property
    def devices(self) -> int:
        """JAX devices in all slices."""
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        """The form that is always understood: 2x v5p:4x4x4."""
        shape = "x".join(map(str, self.topology))
        return f"{self.count}x " * (self.count > 1) + f"{self.chip.name}:{shape}"

    @property
    def wrapped(self) -> int:
        """Axes whose ends are joined: 3D tori of whole cubes of 4, 2D ones 16 chips long."""
        if self.chip.dims == 2:
            return sum(side == 16 for side in self.topology)
        return 3 if all(side % 4 == 0 for side in self.topology) else 0


def parse(text: str) -> Slice:
    """Reads the name of a slice; see the head of this file.

    Raises:
      ValueError: says what was expected, and the nearest number of chips there is.
    """
    found = NAME.fullmatch(text.strip())
    if not found or found[2] not in CHIPS:
        raise ValueError(
            f"--slice={text}: expected a name such as v6e-256, v5p-128, 2x v5p-128 or v6e:16x16, "
            f"with one of {', '.join(CHIPS)}"
        )
    chip, count = CHIPS[found[2]], int(found[1] or 1)
    if count < 1:
        raise ValueError(f"--slice={text}: expected at least one slice")
    if found[4]:
        return Slice(chip, _sides(text, chip, found[4]), count)
    return Slice(chip, _topology(text, chip, int(found[3])), count)


def described(slice_: Slice) -> list:
    """Returns the slice's devices, which are not there, for ahead-of-time compiles."""
    from jax.experimental import topologies

    shape = "x".join(map(str, slice_.topology))
    # a cube without its wrap would turn every all-gather into an all-reduce
    more = {"wrap": (slice_.wrapped == 3,) * 3} if slice_.chip.dims == 3 else {}
    if slice_.count > 1:
        more["num_slices"] = slice_.count
    if math.prod(slice_.topology) == 1:  # less than the host of four that is taken for granted
        more["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{slice_.chip.name}:{shape}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices


def _sides(text: str, chip: Chip, shape: str) -> tuple[int, ...]:
    sides = tuple(map(int, shape.split("x")))
    if len(sides) != chip.dims:
        raise ValueError(
            f"--slice={text}: {chip.name} is wired in {chip.dims} dimensions, such as "
            f"{'x'.join('4' * chip.dims)}"
        )
    if min(sides) < 1:
        raise ValueError(f"--slice={text}: each side is at least 1")
    return sides


def _topology(text: str, chip: Chip, number: int) -> tuple[int, ...]:
    """The topology that a cloud gives to so many chips: the one nearest to a square or cube."""
    chips, odd = divmod(number, chip.cores)
    sides = _nearest_to_cube(chips, chip.dims) if chips and not odd else None
    if sides is None:
        there_are = [2**power for power in range(14) if _nearest_to_cube(2**power, chip.dims)]
        near = min(there_are, key=lambda n: abs(math.log2(n / max(chips, 1))))
        unit = f" ({chip.name} is named by TensorCores, two a chip)" if chip.cores == 2 else ""
        raise ValueError(
            f"--slice={text}: there is no such slice{unit}; the nearest is "
            f"{chip.name}-{near * chip.cores}, or give its shape, {chip.name}:"
            f"{'x'.join('4' * chip.dims)}"
        )
    return sides


def _nearest_to_cube(chips: int, dims: int) -> tuple[int, ...] | None:
    """Sides, powers of two, ascending but for one host of four; of 2D slices none over 16."""
    too_few = chips == 2 or (dims == 3 and chips < 4)
    if chips & (chips - 1) or too_few or (dims == 2 and chips > 256):
        return None
    if dims == 3 and chips == 4:
        return (2, 2, 1)
    power = chips.bit_length() - 1
    sides = [power // dims + (number < power % dims) for number in range(dims)]
    return tuple(1 << side for side in sorted(sides))
