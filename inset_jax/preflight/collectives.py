"""What a compiled program sends between chips: bytes by kind and mesh axis, and what hides them.

Bytes on the wire are those that a chip sends in a ring over n chips: (n-1)/n of the whole array for
a gather or a scatter, twice that for an all-reduce. A collective is asynchronous if its start and
its end are two instructions, or a chain of fusions (libtpu's) that carry it along; it is hidden if
a product of matrices or a Pallas kernel runs between them or inside the chain.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.preflight import hlo

KINDS = {  # times the bytes of the whole array are sent, but for the factor (n-1)/n
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-reduce": 2,
    "all-to-all": 1,
    "ragged-all-to-all": 1,
    "collective-permute": 1,
    "send": 1,
}
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r"[^{]*\{([^}]*)\}"
)
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
CHAIN = re.compile(r'chain_id="?(\w+)')
CHANNEL = re.compile(r"channel_id=(\d+)")
OP_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective of the program."""

    kind: str
    axes: tuple[str, ...]  # mesh axes that it crosses
    chips: int  # in a group
    dtype: str
    shape: str  # of the whole array, or of the first of several
    payload: float  # bytes of the whole array
    wire: float  # bytes that a chip sends, once
    times: int  # a step
    computation: str
    is_async: bool
    is_hidden: bool  # matrix work runs meanwhile
    origin: str  # the operation in the source, as JAX names it

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step."""
        return self.wire * self.times


def read(module: hlo.Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns all collectives of a scheduled module, the largest senders first.

    Args:
      mesh: sizes of its axes; partitions are numbered along the mesh, the last axis fastest.
    """
    times, products, outer = hlo.runs(module), hlo.products(module), hlo.callers(module)
    places = {name: _places(module, name, products) for name in times}
    chains = {name: {place.chain for place in own} - {""} for name, own in places.items()}
    found: list[Collective] = []
    for name, count in times.items():
        around: set[str] = set()  # chains that began outside of this loop and go on in it
        caller = outer.get(name)
        while caller is not None:
            around |= chains.get(caller, set())
            caller = outer.get(caller)
        own = [place for place in places[name] if place.chain not in around]
        found += [_collective(place, name, count, mesh) for place in own]
    return sorted(found, key=lambda one: -one.sent)


def stacks_outside(found: Sequence[Collective], stacked: Sequence[Sequence[int]]):
    """Returns the gathers of all layers' parameters at once, outside of loops.

    Args:
      stacked: shapes of the parameters [layer, in, out]; in any order of their dimensions.
    """
    shapes = {tuple(sorted(shape)) for shape in stacked}
    dims = lambda c: tuple(sorted(int(x) for x in c.shape[c.shape.index("[") + 1 : -1].split(",")))
    gathers = [c for c in found if c.kind == "all-gather" and c.times == 1 and "[]" not in c.shape]
    return [c for c in gathers if dims(c) in shapes]


def table(found: Sequence[Collective]) -> list[dict]:
    """Sums by kind, axes, whether inside a loop, and how they run; the largest first."""
    key = lambda c: (c.kind, "+".join(c.axes), c.dtype, c.times > 1, c.is_async, c.is_hidden)
    rows = []
    for group, members in itertools.groupby(sorted(found, key=key), key):
        members = list(members)
        names = ("kind", "axes", "dtype", "in_loop", "async", "hidden")
        row = dict(zip(names, group, strict=True))
        row["count"] = len(members)
        row["payload"] = sum(c.payload * c.times for c in members)
        row["sent"] = sum(c.sent for c in members)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["sent"])


class _Place(NamedTuple):
    """Where a collective stands: the instruction that holds its attributes, and how it runs."""

    line: hlo.Instruction
    kind: str
    is_async: bool
    is_hidden: bool
    chain: str = ""  # of fusions: the same wherever the chain is


def _places(module: hlo.Module, name: str, products: set[str]) -> list[_Place]:
    lines = module.computations[name]
    works = [hlo.is_product(line, products.__contains__) for line in lines]
    result: list[_Place] = []
    started: dict[str, tuple[int, hlo.Instruction]] = {}
    chains: dict[str, list[tuple[int, hlo.Instruction]]] = {}
    for place, line in enumerate(lines):
        held = _inside(module, line)
        own = held or line
        if line.opcode == "send":
            if "megascale" in line.rest:  # between slices; others go to the host
                started[line.name] = (place, line)
        elif line.opcode.endswith("-start") and _kind(own) in KINDS:
            started[line.name] = (place, own)
        elif line.opcode.endswith("-done"):
            for start in started.keys() & set(hlo.operands(line)):
                began, of = started.pop(start)
                result.append(_Place(of, _kind(of), True, any(works[began + 1 : place])))
        elif line.opcode in KINDS:
            result.append(_Place(line, line.opcode, False, False))
        elif held and _is_chain(module, line):
            chains.setdefault(_chain(held), []).append((place, held))
        elif held:
            result.append(_Place(held, _fused_kind(line, held), False, False))
    for chain, links in chains.items():
        (first, held), (last, _) = links[0], links[-1]
        hidden = last > first and any(works[first : last + 1])
        result.append(_Place(held, held.opcode, last > first, hidden, chain))
    # what ends in another computation
    result += [_Place(of, _kind(of), True, False) for _, of in started.values()]
    return result


def _kind(line: hlo.Instruction) -> str:
    return line.opcode.removesuffix("-start")


def _inside(module: hlo.Module, line: hlo.Instruction) -> hlo.Instruction | None:
    """The collective in the computation that a fusion or an asynchronous start calls.

    What libtpu gives to SparseCores is started as a call, whose computation is `to_apply`.
    """
    called = hlo.attribute(line, "to_apply" if line.opcode == "call-start" else "calls")
    for inner in module.computations.get(called, []) if called else ():
        if inner.opcode in KINDS:
            return inner
    return None


def _is_chain(module: hlo.Module, line: hlo.Instruction) -> bool:
    called = hlo.attribute(line, "calls")
    if "async_collective" in called or "async-collective" in called:
        return True
    return any("AsyncCollective" in inner.rest for inner in module.computations[called])


def _chain(line: hlo.Instruction) -> str:
    """What the parts of one chain share; inside shard_map, channels of several may be equal."""
    found = CHAIN.search(line.rest) or CHANNEL.search(line.rest)
    return f"{found[0]} {line.shape.partition('{')[0]}" if found else line.name


def _fused_kind(line: hlo.Instruction, held: hlo.Instruction) -> str:
    """An all-reduce of which each chip keeps a part is a scatter, which is how libtpu runs it."""
    return "reduce-scatter" if "all-reduce-scatter" in line.rest else held.opcode


def _collective(place: _Place, name: str, count: int, mesh: Mapping[str, int]) -> Collective:
    line, kind = place.line, place.kind
    axes, chips = _axes(line, mesh)
    sizes = [size for size in hlo.arrays(line.shape) if size > 64]  # small ones are for the runtime
    total = sum(sizes)
    if kind == "all-gather" and line.opcode.endswith("-start"):  # the shape holds operands too
        total *= chips / (chips + 1)
    elif kind in ("collective-permute", "send") and len(sizes) > 1:
        total = max(sizes)
    elif kind == "reduce-scatter" and line.opcode == kind:
        total *= chips
    share = 1 if kind in ("collective-permute", "send") else (chips - 1) / chips
    arrays = hlo.ARRAY.findall(line.shape)
    shapes = max(arrays, key=lambda a: math.prod(int(x) for x in a[1].split(",") if x))
    origin = OP_NAME.search(line.rest)
    return Collective(
        kind=kind,
        axes=axes,
        chips=chips,
        dtype=shapes[0],
        shape=f"{shapes[0]}[{shapes[1]}]",
        payload=total,
        wire=KINDS[kind] * share * total,
        times=count,
        computation=name,
        is_async=place.is_async,
        is_hidden=place.is_hidden,
        origin=origin[1] if origin else "",
    )


def _axes(line: hlo.Instruction, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes along which the members of a group differ, and the size of a group."""
    if line.opcode == "send":
        return ("dcn",), 2
    members = group(line.rest)
    if not members:
        return tuple(axis for axis, size in mesh.items() if size > 1), math.prod(mesh.values())
    if max(members) >= math.prod(mesh.values()):
        return ("?",), len(members)
    where = np.unravel_index(np.asarray(members), tuple(mesh.values()))
    moved = tuple(axis for axis, own in zip(mesh, where, strict=True) if len(set(own.tolist())) > 1)
    return moved, len(members)


def group(text: str) -> list[int]:
    """Returns the partitions of the first group of a collective, [] where all are one group."""
    found = MESH.search(text)
    if found:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        ids = _numbers(found[2] or str(math.prod(sizes.values())), found[3])
        return _of_mesh(sizes, ids, found[4])
    found = IOTA.search(text)
    if found:
        ids = _numbers(found[3], found[4])
        return ids.reshape(int(found[1]), int(found[2]))[0].tolist()
    found = LISTED.search(text)
    if found:
        return [int(x) for x in found[1].split(",")]
    found = PAIRS.search(text)
    if found:  # a ring: who is reached from the first
        pairs = dict(re.findall(r"(\d+),(\d+)", found[1]))
        ring = ["0" if "0" in pairs else next(iter(pairs), "0")]
        while pairs.get(ring[-1], ring[0]) not in ring:
            ring.append(pairs[ring[-1]])
        return [int(x) for x in ring]
    return []


def _numbers(dims: str, order: str | None) -> np.ndarray:
    """Partitions in the order of "4,8", or of "4,8" with its dimensions in another order "1,0"."""
    shape = [int(x) for x in dims.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(x) for x in order.split(",")]) if order else ids


def _of_mesh(sizes: dict[str, int], ids: np.ndarray, wanted: str) -> list[int]:
    """Members of the first group, of axes 'a' or parts of axes 'a':(before)size."""
    ids = ids.reshape(tuple(sizes.values()))
    parts = {}
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", wanted):
        dim = list(sizes).index(name)
        if before:
            rest = sizes[name] // (int(before) * int(size))
            parts[dim] = [rest * number for number in range(int(size))]
        else:
            parts[dim] = list(range(sizes[name]))
    chosen = [parts.get(dim, [0]) for dim in range(len(sizes))]
    return ids[np.ix_(*chosen)].reshape(-1).tolist()
