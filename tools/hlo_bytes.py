"""Counts the bytes that a compiled program moves to and from the main memory; and kernels' VMEM.

Every instruction outside a fusion reads its operands and writes its result once; loops count as
often as they run. XLA's own cost analysis counts a loop's body once and leaves kernels out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from inset_jax.preflight.hlo import arrays

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"(?:^|[\s)}])([a-z][a-z\-]*[a-z])\(([^)]*)\)")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
KERNEL = re.compile(r'op_name="[^"]*?(\w+)\)*/pallas_call')
SCOPED = tuple(
    re.compile(rf'"{part}":\[{{[^}}]*"size":"(\d+)"')
    for part in ("used_scoped_memory_configs", "scoped_memory_configs")
)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "after-all"}


def moved(text: str) -> int:
    """Returns the bytes that the entry computation of an HLO text moves."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name and INSTRUCTION.match(line):
            computations[name].append(line)
    return _moved(entry, computations)


class FastMemory(NamedTuple):
    """What a kernel has of a core's fast memory (VMEM), in bytes."""

    used: int
    allowed: int


def fast_memory(text: str) -> dict[str, FastMemory]:
    """Returns what each Pallas kernel in an HLO text has, by its name; the most of each."""
    found: dict[str, FastMemory] = {}
    for line in text.splitlines():
        if 'custom_call_target="tpu_custom_call"' not in line:
            continue
        named = KERNEL.search(line)
        own = FastMemory(*(int(size[1]) if (size := part.search(line)) else 0 for part in SCOPED))
        name = named[1] if named else "unnamed"
        found[name] = max(own, found.get(name, own))
    return found


def _moved(name: str, computations: dict[str, list[str]]) -> int:
    total, sizes = 0, {}
    for line in computations[name]:
        own, rest = INSTRUCTION.match(line).groups()
        found = OPCODE.search(rest)
        if not found:
            continue
        opcode, operands = found.groups()
        sizes[own] = sum(arrays(rest[: found.start(1)]))
        if opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)[1]
            times = re.search(r'known_trip_count"?:\s*\{"n":"(\d+)"', rest)
            total += int(times[1] if times else 1) * _moved(body, computations)
        elif opcode == "copy-start":  # its result is a tuple that holds its operand too
            total += 2 * sum(sizes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", operands))
        elif opcode not in FREE and not opcode.endswith("-done"):
            reads = set(re.findall(r"%([\w.\-]+)", operands))
            total += sizes[own] + sum(sizes.get(x, 0) for x in reads)
    return total
