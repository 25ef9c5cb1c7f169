"""A compiled program as text: its computations, how often each runs, where matrix work is.

XLA's own cost analysis counts the body of a loop once; here loops count as often as they run, read
from the constant that their condition compares with.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
SIZES |= {"f8e4m3fn": 1, "f8e5m2": 1, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")
HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"([a-z][\w\-]*)\(")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-<>]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # of the result
    opcode: str
    rest: str  # operands and attributes


class Module(NamedTuple):
    """A program: instructions by computation, in the order in which they run."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Module:
    """Reads a module; lines that are no instruction are left out.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            head = HEAD.match(line)
            if head:
                lines = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            continue
        named = NAMED.match(line)
        if named:
            shape, rest = _shape(line[named.end() :])
            opcode = OPCODE.match(rest)
            if opcode:
                lines.append(Instruction(named[2], shape, opcode[1], rest[opcode.end() :]))
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return Module(computations, entry)


def _shape(text: str) -> tuple[str, str]:
    """Cuts a line behind its ` = ` into the shape and what follows."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 2 :]
    return text, ""


def arrays(shape: str) -> list[float]:
    """Bytes of every array in the text of a shape."""
    found = []
    for kind, dims in ARRAY.findall(shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        found.append(count * SIZES.get(kind, 4))
    return found


def attribute(instruction: Instruction, name: str) -> str:
    """The computation that an attribute names, such as body; "" if there is none."""
    found = re.search(rf"\b{name}=%?([\w.\-<>]+)", instruction.rest)
    return found[1] if found else ""


def operands(instruction: Instruction) -> list[str]:
    """Names of the instructions whose results this one reads."""
    depth = 1
    for place, letter in enumerate(instruction.rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return re.findall(r"%([\w.\-]+)", instruction.rest[:place])
    return []


def runs(module: Module) -> dict[str, int]:
    """Returns how often each computation runs that is not part of a fusion; loops multiplied.

    Of branches, each counts as taken.
    """
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for line in module.computations.get(name, []):
            if line.opcode == "while":
                body, condition = attribute(line, "body"), attribute(line, "condition")
                step = _step(module, condition, body)
                visit(body, count * -(-trips(module, condition) // step))
            elif line.opcode in ("call", "conditional"):
                for called in _called(line):
                    visit(called, count)

    visit(module.entry, 1)
    return times


def callers(module: Module) -> dict[str, str]:
    """Returns, of each computation that a loop, call or branch runs, the one that holds it."""
    return {
        called: name
        for name, lines in module.computations.items()
        for line in lines
        if line.opcode in ("while", "call", "conditional")
        for called in _called(line)
    }


def trips(module: Module, condition: str) -> int:
    """The number that a loop's condition compares its counter with; 1 if it has none."""
    found = []
    for line in module.computations.get(condition, []):
        if line.opcode == "constant":
            found += [int(number) for number in re.findall(r"^(\d+)\)", line.rest)]
        for name in _called(line):
            found.append(trips(module, name))
    return max(found, default=1)


def _step(module: Module, condition: str, body: str) -> int:
    """What a loop's body adds to the counter that its condition reads; 1 if that is not plain."""
    read = [line for line in module.computations.get(condition, []) if "index=" in line.rest]
    lines = module.computations.get(body, [])
    results = operands(lines[-1]) if lines and lines[-1].opcode == "tuple" else []
    by_name = {line.name: line for line in lines}
    for line in read:
        place = int(re.findall(r"index=(\d+)", line.rest)[0])
        after = by_name.get(results[place]) if place < len(results) else None
        if after is None or after.opcode != "add":
            continue
        for name in operands(after):
            if name in by_name and by_name[name].opcode == "constant":
                return max(int(re.findall(r"^(\d+)\)", by_name[name].rest)[0]), 1)
    return 1


def products(module: Module) -> set[str]:
    """Names of the computations that hold a product of matrices, themselves or by a fusion."""
    known: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False
            lines = module.computations.get(name, [])
            known[name] = any(is_product(line, holds) for line in lines)
        return known[name]

    return {name for name in module.computations if holds(name)}


def is_product(line: Instruction, holds) -> bool:
    """Whether an instruction is a product of matrices or a Pallas kernel, or calls one."""
    if line.opcode in ("convolution", "dot"):
        return True
    if line.opcode == "custom-call":
        return 'custom_call_target="tpu_custom_call"' in line.rest
    return any(holds(name) for name in _called(line))


def _called(line: Instruction) -> list[str]:
    names = CALLED.findall(line.rest)
    for branches in BRANCHES.findall(line.rest):
        names += re.findall(r"%?([\w.\-<>]+)", branches)
    return names
