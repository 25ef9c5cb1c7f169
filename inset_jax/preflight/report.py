"""What preflight found, as one dict (the JSON), as text, and as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence

from inset_jax.core.config import Config
from inset_jax.preflight import collectives, estimate, hlo, settings, work
from inset_jax.preflight.chips import GIB, Slice
from inset_jax.preflight.compiler import Found

MARGIN = 0.10  # of the HBM that should stay free
PLANNED = ("activations and other temporaries", "program")  # what the compiler says


def assemble(config: Config, slice_: Slice, found: Found) -> dict:
    """Returns everything there is to say, in plain values."""
    report = {
        "config": config.name,
        "slice": slice_.name,
        "devices": slice_.devices,
        "finished": found.finished,
        "mesh": found.known["mesh"],
        "remat": config.compute.remat,
        "tokens_a_device": _tokens(config, slice_),
        "parameters": found.known["parameters"],
        "memory": memory(slice_, found),
        "refused": found.refused,
        "seconds": found.seconds,
        "kernels": _kernels(config, found),
        "rematerialised": found.rematerialised,
        "warnings": found.warnings,
        "unsplit": found.known["unsplit"],
        "settings": list(settings.useless(config)),
    }
    counted = work.parts(config, slice_.devices)
    report["work"] = {name: part._asdict() for name, part in counted.items()}
    report["work_total"] = work.total(counted)._asdict()
    sent = []
    if found.hlo:
        sent = collectives.read(hlo.parse(found.hlo), found.known["mesh"])
        report["collectives"] = _collectives(sent, found.known["stacked"])
    parts = found.known["parts"]
    state = sum(parts[name] for name in parts if name not in ("batch", "autoencoder"))
    if sent:
        host = work.to_host(config) / slice_.devices
        ends = estimate.estimate(slice_, counted, sent, state, host)
        report["estimate"] = {name: end._asdict() for name, end in ends.items()}
    report["assumed"] = work.words(config) + estimate.words(
        slice_, config.compute.remat == "offload"
    )
    return report


def memory(slice_: Slice, found: Found) -> dict:
    """Returns bytes on a device by part, what they come to, and what is left of the HBM.

    What is needed is the arguments, the plan of the temporaries and the program itself, which the
    compiler holds against the HBM, and what lies beside (the autoencoder). Without a plan
    ("fits" is then None) it is not known what is needed: `needed` holds what could be counted.
    """
    parts = dict(found.known["parts"])
    beside = found.known["beside"]
    arguments = sum(size for name, size in parts.items() if name not in beside)
    padding = 0
    if found.finished:
        padding = max(found.memory["argument_size"] - arguments, 0)
    temporaries = found.heap or 0
    # code and scratch; the compiler says the sum to two digits
    code = max((found.required or 0) - temporaries, 0)
    if found.refused:
        temporaries = max(found.refused["used"] - arguments, 0)
    rows = parts | {
        "padding of arguments": padding,
        **dict(zip(PLANNED, (temporaries, code), strict=True)),
    }
    limit = found.refused["limit"] if found.refused else slice_.chip.hbm
    needed = sum(rows.values())
    is_planned = found.heap is not None or found.required is not None
    fits = needed <= limit if is_planned else None
    return {
        "parts": rows,
        "needed": needed,
        "limit": limit,
        "free": 1 - needed / limit,
        "fits": False if found.refused else fits,
        "compiler": found.memory,
    }


def text(report: dict) -> str:
    """The report for a terminal."""
    return "\n".join(_lines(report))


def _lines(report: dict) -> Iterator[str]:
    how = "compiled to the end" if report["finished"] else "scheduled, not compiled to the end"
    mesh = " ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
    yield (
        f"{report['config']} on {report['slice']}: {report['devices']} devices, "
        f"mesh {mesh or 'one'}, remat {report['remat']}; "
        f"{report['tokens_a_device']:,.0f} tokens a device; {how} in "
        f"{report['seconds']['all']:.0f} s"
    )
    for head, table in tables(report).items():
        yield f"\n{head}"
        yield from (f"  {line}" for line in aligned(table))
    for head, lines in notes(report).items():
        yield f"\n{head}"
        yield from (f"  {line}" for line in lines)
    yield ""
    yield verdict(report)


def aligned(table: list[list[str]]) -> Iterator[str]:
    """Yields the lines of a table, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        yield "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )


def verdict(report: dict) -> str:
    """One sentence: whether it fits, and with what to spare."""
    found = report["memory"]
    need, limit = found["needed"] / GIB, found["limit"] / GIB
    if found["fits"] is None:
        small = (
            "" if report["finished"] else " (small programs have none; without --fast it is known)"
        )
        return (
            f"not known whether it fits: libtpu's log has no plan of the memory{small}; what could "
            f"be counted is {need:.2f} GiB a device of {limit:.2f}"
        )
    if not found["fits"]:
        return f"does not fit: {need:.2f} GiB a device of {limit:.2f}"
    tight = f"; less than {MARGIN:.0%} is tight" if found["free"] < MARGIN else ""
    return f"fits: {need:.2f} GiB a device of {limit:.2f}, {found['free']:.0%} free{tight}"


def tables(report: dict) -> dict[str, list[list[str]]]:
    """All tables by heading; the first row of each is its head."""
    found = report["memory"]
    share = lambda size: f"{size / found['limit']:.1%}"
    rows = [[name, f"{size / GIB:.2f}", share(size)] for name, size in found["parts"].items()]
    if found["fits"] is None:
        rows = [[name, "not known", ""] if name in PLANNED else [name, *r] for name, *r in rows]
    total = "needed" if found["fits"] is not None else "counted"
    rows += [[total, f"{found['needed'] / GIB:.2f}", share(found["needed"])]]
    rows += [["of", f"{found['limit'] / GIB:.2f}", ""]]
    result = {"memory of a device": [["part", "GiB", "of the HBM"], *rows]}
    if report["refused"]:
        largest = [[f"{size / GIB:.2f}", what] for size, what in report["refused"]["largest"]]
        result["largest temporaries"] = [["GiB", "arrays that share the place"], *largest]
    tera = lambda value: f"{value / 1e12:,.1f}"
    rows = [[n, tera(p["model"]), tera(p["executed"])] for n, p in report["work"].items()]
    total = report["work_total"]
    rows.append(["all", tera(total["model"]), tera(total["executed"])])
    result["work of a device and step (TFLOP)"] = [["part", "model", "executed"], *rows]
    if "collectives" in report:
        head = ["kind", "axes", "dtype", "where", "how", "number", "GB sent"]
        rows = [_collective_row(row) for row in report["collectives"]["table"]]
        rows.append(["all", "", "", "", "", "", f"{report['collectives']['sent'] / 1e9:.2f}"])
        result["collectives of a device and step"] = [head, *rows]
    if "estimate" in report:
        ends = report["estimate"]
        names = ("dense", "attention", "hidden", "exposed", "host", "optimizer", "step")
        spelled = ("products", "attention", "collectives beside them", "collectives alone",
                   "layers' inputs to the host and back", "optimizer", "step")  # fmt: skip
        rows = [[word, *(f"{ends[end][name]:.2f}" for end in ("slow", "fast"))]
                for word, name in zip(spelled, names, strict=True)
                if name != "host" or ends["slow"]["host"]]  # fmt: skip
        rows.append(["MFU", *(f"{ends[end]['mfu']:.0%}" for end in ("slow", "fast"))])
        result["estimate, not measured: seconds of a step"] = [["", "slow", "fast"], *rows]
    return result


def _collective_row(row: dict) -> list[str]:
    how = "asynchronous" if row["async"] else "waits"
    how += ", matrix work inside" if row["hidden"] else ""
    where = "layers" if row["in_loop"] else "once"
    return [row["kind"], row["axes"], row["dtype"], where, how, str(row["count"]),
            f"{row['sent'] / 1e9:.2f}"]  # fmt: skip


def notes(report: dict) -> dict[str, list[str]]:
    """All lists of sentences by heading; those with nothing to say are left out."""
    result = {}
    kernels = report["kernels"]
    names = ", ".join(f"{name} x {count}" for name, count in kernels["names"].items())
    result["kernels"] = [
        f"{names or 'none'}; attention {kernels['attention']}, tiles of {kernels['tile']}"
    ]
    if "collectives" in report:
        found = report["collectives"]
        result["collectives"] = [
            f"{found['gathers_hidden']:.1%} of the bytes that layers gather have matrix work "
            "beside them",
            *(f"gathers a stack of layers at once: {line}" for line in found["stacks"]),
        ]
    problems = []
    if report["rematerialised"]:
        problems.append(f"involuntary full rematerialization: {report['rematerialised']} warnings")
    if report["unsplit"]:
        excess = sum(row["excess"] for row in report["unsplit"]) / GIB
        first = report["unsplit"][0]
        problems.append(
            f"{len(report['unsplit'])} arrays of the state are not split evenly, {excess:.2f} GiB "
            f"a device too much; the largest is {first['array']} {first['shape']}: the mesh does "
            "not divide its sides"
        )
    problems += [f"the compiler warns: {line}" for line in report["warnings"]]
    result["to look at"] = problems
    result["settings"] = report["settings"]
    result["flags that the run needs for the same"] = report.get("flags", [])
    result["the data's plan"] = report.get("plan", [])
    result["assumed"] = report["assumed"]
    return {head: lines for head, lines in result.items() if lines}


def page(report: dict) -> str:
    """The report as one self-contained HTML page."""
    title = f"Preflight: {report['config']} on {report['slice']}"
    return sheet(title, verdict(report), tables(report), notes(report))


def sheet(title: str, verdict: str, tables: Mapping, notes: Mapping[str, Sequence[str]]) -> str:
    """An HTML page of tables and then lists, by their heads."""
    from inset_jax.core.page import Section, render

    listed = lambda lines: "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    sections = [Section(head, table=table) for head, table in tables.items()]
    sections += [Section(head, html=f"<ul>{listed(lines)}</ul>") for head, lines in notes.items()]
    return render(title, f"{verdict}. Compiled without a TPU; nothing was timed.", sections)


def _tokens(config: Config, slice_: Slice) -> float:
    room = config.data.capacity
    packs = config.data.packs * config.optimizer.accumulation
    return (room.und + room.gen) * packs / slice_.devices


def _kernels(config: Config, found: Found) -> dict:
    block = found.known["block"]
    return {
        "names": found.known["kernels"],
        "attention": config.compute.attention,
        "tile": f"{block[0]} x {block[1]}",
    }


def _collectives(sent: list[collectives.Collective], stacked: list[list[int]]) -> dict:
    gathers = [c for c in sent if c.kind == "all-gather" and c.times > 1]
    total = sum(c.sent for c in gathers)
    stacks = collectives.stacks_outside(sent, stacked)
    return {
        "table": collectives.table(sent),
        "sent": sum(c.sent for c in sent),
        "sent_dcn": sum(c.sent for c in sent if "dcn" in c.axes),
        "gathers_hidden": sum(c.sent for c in gathers if c.is_hidden) / total if total else 1.0,
        "stacks": [f"{c.shape}, {c.origin}" for c in stacks],
        "largest": [c._asdict() for c in sent[:20]],
    }
