"""Layouts and remat policies for a slice: each compiled as far as its memory is planned, ranked."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterator

from inset_jax.core import checks
from inset_jax.core.config import Config, MeshConfig, edit
from inset_jax.preflight import compiler, report
from inset_jax.preflight.chips import GIB, Slice

CONTEXT, TENSOR = (1, 2, 4), (1, 2, 4)
REMAT = ("full", "attention", "dots", "offload")  # "none" keeps more than "dots" and never less


def candidates(config: Config, slice_: Slice) -> Iterator[Config]:
    """Yields configs with other meshes and remat policies, the packs of each one a mesh row.

    With the remat of the config all meshes; with the mesh of the config all remat policies.
    """
    meshes = [
        (context, tensor)
        for context in CONTEXT
        for tensor in TENSOR
        if not (context > 1 and tensor > 1)
        and config.model.llm.kv_heads % tensor == 0
        and config.model.vit.heads % tensor == 0
        and slice_.devices // slice_.count % (context * tensor) == 0
    ]
    own = (config.mesh.context, config.mesh.tensor)
    rows = [(mesh, config.compute.remat) for mesh in [own, *(m for m in meshes if m != own)]]
    rows += [(own, remat) for remat in REMAT if remat != config.compute.remat]
    for (context, tensor), remat in rows:
        yield edit(
            config,
            compute__remat=remat,
            mesh=MeshConfig(slice_.count, -1, context, tensor),
            data__packs=slice_.devices // (context * tensor),
        )


def main(config: Config, slice_: Slice, out: pathlib.Path, limit: float) -> int:
    """Tries all candidates, prints and saves them ranked; returns 1 if none fits."""
    found, failed = [], []
    for tried in candidates(config, slice_):
        mesh, remat = tried.mesh, tried.compute.remat
        name = f"context={mesh.context} tensor={mesh.tensor} remat={remat}"
        try:
            checks.check(tried)
            with tempfile.TemporaryDirectory() as scratch:
                left = compiler.run(tried, slice_, pathlib.Path(scratch), True, limit)
        except ValueError as error:
            failed.append({"layout": name, "why": str(error)})
            print(f"{name}: {error}", flush=True)
            continue
        one = report.assemble(tried, slice_, left) | {"layout": name}
        found.append(one | {"tokens_a_second": speed(one)})
        print(f"{name}: {report.verdict(one)}", flush=True)
    ranked = rank(found)
    out.mkdir(parents=True, exist_ok=True)
    figures = {"slice": slice_.name, "ranked": ranked, "failed": failed}
    (out / "search.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "search.html").write_text(page(config, slice_, ranked, failed))
    for row in table(ranked):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, (38, 10, 10, 10, 12))))
    print(f"{out / 'search.json'} {out / 'search.html'}")
    return 0 if any(one["memory"]["fits"] for one in found) else 1


def speed(one: dict) -> float | None:
    """Tokens a second and device at the middle of the estimate; None without one."""
    if "estimate" not in one:
        return None
    seconds = [end["step"] for end in one["estimate"].values()]
    return one["tokens_a_device"] / (sum(seconds) / len(seconds))


def rank(found: list[dict]) -> list[dict]:
    """Those that fit by speed, tight ones last; then those that do not, by what they need."""
    fitting = [one for one in found if one["memory"]["fits"]]
    others = [one for one in found if not one["memory"]["fits"]]
    is_tight = lambda one: one["memory"]["free"] < report.MARGIN
    fitting.sort(key=lambda one: (is_tight(one), -(one["tokens_a_second"] or 0)))
    return fitting + sorted(others, key=lambda one: one["memory"]["needed"])


def table(ranked: list[dict]) -> list[list[str]]:
    """One row a layout."""
    rows = [["layout", "GiB", "free", "GB sent", "tokens/s a device (estimate)"]]
    for one in ranked:
        memory, sent = one["memory"], one.get("collectives")
        fits = "not known" if memory["fits"] is None else "no"
        fits = f"{memory['free']:.0%}" if memory["fits"] else fits
        rows.append(
            [
                one["layout"],
                f"{memory['needed'] / GIB:.2f}",
                fits,
                f"{sent['sent'] / 1e9:.1f}" if sent else "",
                f"{one['tokens_a_second']:,.0f}" if one["tokens_a_second"] else "",
            ]
        )
    return rows


def page(config: Config, slice_: Slice, ranked: list[dict], failed: list[dict]) -> str:
    """The ranking as one self-contained HTML page."""
    from inset_jax.core.page import Section, render

    sections = [Section("layouts, the fastest that fit first", table=table(ranked))]
    if failed:
        rows = [["layout", "why"], *([one["layout"], one["why"]] for one in failed)]
        sections.append(Section("refused", table=rows))
    lead = "Compiled as far as the memory is planned; speeds are estimates, nothing was timed."
    return render(f"Layouts of {config.name} on {slice_.name}", lead, sections)
