"""Whether a slice can draw, and how fast: the sampler's three programs as JSON, text and a page."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping

from inset_jax.core.config import Config
from inset_jax.model import flow
from inset_jax.preflight import collectives, compiler, estimate, hlo, report, sampling, work
from inset_jax.preflight.chips import GIB, Slice
from inset_jax.preflight.compiler import Found
from inset_jax.sample import guidance

ENDS = ("slow", "fast")


def main(
    config: Config, slice_: Slice, out: pathlib.Path, fast: bool, limit: float, is_int8: bool
) -> int:
    """Compiles and reports what draws; returns 1 unless it is known to fit."""
    options = ("int8",) if is_int8 else ()
    found = {}
    for name in sampling.PROGRAMS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            found[name] = compiler.run(config, slice_, folder, fast, limit, (name, *options))
    figures = assemble(config, slice_, found, is_int8)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sampling.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "sampling.html").write_text(page(figures))
    print(text(figures))
    print(f"{out / 'sampling.json'} {out / 'sampling.html'}")
    return 0 if figures["fits"] else 1


def assemble(
    config: Config, slice_: Slice, found: Mapping[str, Found], is_int8: bool = False
) -> dict:
    """Returns everything there is to say, in plain values."""
    mesh = found["evaluation"].known["mesh"]
    packs = mesh["dcn"] * mesh["fsdp"]
    times, _ = flow.schedule(config.sample.num_timesteps, config.sample.shift)
    guided = sum(guidance.acts_at(config.sample, t) for t in times)
    programs = {}
    for name, one in found.items():
        read = sampling.read_bytes(config, name, mesh, is_int8)
        programs[name] = _program(config, slice_, name, one, read)
    runs = {"prefill": 1, "evaluation": len(times), "decoding": 1}
    seconds = {
        end: sum(programs[name]["seconds"][end] * count for name, count in runs.items())
        for end in ENDS
    }
    fits = [one["memory"]["fits"] for one in programs.values()]
    return {
        "config": config.name,
        "slice": slice_.name,
        "devices": slice_.devices,
        "mesh": mesh,
        "weights": f"int8 and {config.compute.dtype}" if is_int8 else config.compute.dtype,
        "parameters": found["evaluation"].known["parameters"],
        "finished": all(one.finished for one in found.values()),
        "fits": False if False in fits else None if None in fits else True,
        "programs": programs,
        "runs": runs,
        "pictures": packs,
        "side": sampling.picture_side(config),
        "branches": sampling.layout(config).guided.rows.shape[1],
        "guided": int(guided),
        "seconds": seconds,
        "assumed": words(slice_),
    }


def _program(config: Config, slice_: Slice, name: str, one: Found, read: float) -> dict:
    mesh = one.known["mesh"]
    sent = collectives.read(hlo.parse(one.hlo), mesh) if one.hlo else []
    # decoding is split over packs alone
    ways = 1 if name == "decoding" else mesh["context"] * mesh["tensor"]
    counted = sampling.work(config, name, 1 / ways)
    ends = estimate.estimate(slice_, counted, sent, 0)
    rate = slice_.chip.bandwidth / slice_.chip.devices
    return {
        "memory": report.memory(slice_, one),
        "refused": one.refused,
        "finished": one.finished,
        "compile": one.seconds,
        "kernels": one.known["kernels"],
        "rematerialised": one.rematerialised,
        "warnings": one.warnings,
        "work": {part: own.executed for part, own in counted.items()},
        "work_total": work.total(counted).executed,
        "collectives": collectives.table(sent),
        "sent": sum(c.sent for c in sent),
        "read": read,
        "estimate": {end: ends[end]._asdict() for end in ENDS},
        "seconds": {end: max(ends[end].step, read / rate) for end in ENDS},
    }


def words(slice_: Slice) -> list[str]:
    """What was assumed, in sentences."""
    return [
        f"every pack draws one picture from a sentence of {sampling.REFERENCES} references of "
        f"{sampling.REFERENCE_SIDE} px (or the largest the model reads) between texts of "
        f"{sampling.TEXT_TOKENS} tokens",
        "the autoencoder's weights are float32; sizes count as they are padded",
        "every evaluation is taken as guided, also outside sample.interval",
        "a program takes as long as its operations, or as reading the layers' weights once, if that"
        " is longer; then the collectives that nothing hides",
        *estimate.words(slice_),
    ]


def verdict(figures: dict) -> str:
    """One sentence: whether it fits, and how long a picture takes by the estimate."""
    worst = max(figures["programs"].values(), key=lambda one: one["memory"]["needed"])["memory"]
    need = f"{worst['needed'] / GIB:.2f} GiB a device of {worst['limit'] / GIB:.2f}"
    if figures["fits"] is None:
        return f"not known whether it fits: libtpu's log has no plan of the memory; counted: {need}"
    if not figures["fits"]:
        return f"does not fit: {need}"
    low, high = (figures["seconds"][end] for end in reversed(ENDS))
    count, together = figures["pictures"], _pictures(figures)
    return (
        f"fits: {need}, {worst['free']:.0%} free; {low:.1f} to {high:.1f} s for {together} "
        f"together, {low / count:.2f} to {high / count:.2f} s a picture (estimate, not measured)"
    )


def _pictures(figures: dict) -> str:
    return f"{figures['pictures']} picture{'s' * (figures['pictures'] > 1)}"


def tables(figures: dict) -> dict[str, list[list[str]]]:
    """All tables by heading; the first row of each is its head."""
    programs = figures["programs"]
    names = list(dict.fromkeys(p for one in programs.values() for p in one["memory"]["parts"]))
    cell = lambda one, part: (
        f"{one['memory']['parts'][part] / GIB:.2f}" if part in one["memory"]["parts"] else ""
    )
    rows = [[part, *(cell(one, part) for one in programs.values())] for part in names]
    rows.append(["needed", *(f"{p['memory']['needed'] / GIB:.2f}" for p in programs.values())])
    limit = next(iter(programs.values()))["memory"]["limit"]
    rows.append(["of", *[f"{limit / GIB:.2f}"] * len(programs)])
    result = {"memory of a device (GiB)": [["part", *programs], *rows]}
    head = ["program", "times", "TFLOP", "GB of weights read", "GB sent", "slow (s)", "fast (s)"]
    rows = [
        [
            name,
            str(figures["runs"][name]),
            f"{one['work_total'] / 1e12:.2f}",
            f"{one['read'] / 1e9:.2f}",
            f"{one['sent'] / 1e9:.2f}",
            *(f"{one['seconds'][end]:.3f}" for end in ENDS),
        ]
        for name, one in programs.items()
    ]
    total = [f"{figures['seconds'][end]:.2f}" for end in ENDS]
    each = [f"{figures['seconds'][end] / figures['pictures']:.2f}" for end in ENDS]
    rows += [["all", "", "", "", "", *total], ["a picture", "", "", "", "", *each]]
    result["estimate, not measured: one run of a device"] = [head, *rows]
    return result


def text(figures: dict) -> str:
    """The report for a terminal."""
    mesh = " ".join(f"{axis}={size}" for axis, size in figures["mesh"].items() if size > 1)
    how = "compiled to the end" if figures["finished"] else "scheduled, not compiled to the end"
    seconds = sum(one["compile"]["all"] for one in figures["programs"].values())
    lines = [
        f"{figures['config']} draws on {figures['slice']}: {figures['devices']} devices, mesh "
        f"{mesh or 'one'}; {_pictures(figures)} of {figures['side']} px at a time, "
        f"{figures['branches']} branches, {figures['runs']['evaluation']} evaluations, "
        f"{figures['guided']} of them guided; weights {figures['weights']}; {how} in "
        f"{seconds:.0f} s"
    ]
    for head, table in tables(figures).items():
        lines += ["", head, *(f"  {line}" for line in report.aligned(table))]
    for head, notes in _notes(figures).items():
        lines += ["", head, *(f"  {line}" for line in notes)]
    return "\n".join([*lines, "", verdict(figures)])


def _notes(figures: dict) -> dict[str, list[str]]:
    programs = figures["programs"]
    kernels = [
        f"{name}: " + (", ".join(f"{k} x {n}" for k, n in one["kernels"].items()) or "none")
        for name, one in programs.items()
    ]
    problems = [
        f"{name}: involuntary full rematerialization: {one['rematerialised']} warnings"
        for name, one in programs.items()
        if one["rematerialised"]
    ]
    problems += sorted(
        {f"the compiler warns: {w}" for p in programs.values() for w in p["warnings"]}
    )
    problems += [
        f"{name} does not fit; the largest: {size / GIB:.2f} GiB {what}"
        for name, one in programs.items()
        for size, what in (one["refused"] or {"largest": []})["largest"][:3]
    ]
    found = {"kernels": kernels, "to look at": problems, "assumed": figures["assumed"]}
    return {head: lines for head, lines in found.items() if lines}


def page(figures: dict) -> str:
    """The report as one self-contained HTML page."""
    title = f"Preflight: {figures['config']} draws on {figures['slice']}"
    return report.sheet(title, verdict(figures), tables(figures), _notes(figures))
