"""How many parameters a model has, by part and expert."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import NamedTuple

# part -> patterns of parameter paths; every parameter is in exactly one part
PARTS: dict[str, tuple[str, ...]] = {
    "token embedding": ("model/llm/embed/*",),
    "und expert": ("model/llm/layers/und/*", "model/llm/norm/und/*"),
    "gen expert": ("model/llm/layers/gen/*", "model/llm/norm/gen/*"),
    "language head": ("model/llm/head/*",),
    "ViT": ("model/vit/*",),
    "connector": ("model/connector/*",),
    "time embedding": ("model/time/*",),
    "latents in": ("model/latent_in/*",),
    "latents out": ("model/latent_out/*",),
    "null token": ("model/null/*",),
    "frozen position tables": ("model/latent_position/*", "model/connector_position/*"),
    "VAE encoder": ("vae/encoder/*",),
    "VAE decoder": ("vae/decoder/*",),
}


class Part(NamedTuple):
    """One line of the table."""

    name: str
    arrays: int
    parameters: int


def count(shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    """Counts by part the arrays and numbers of a tree, given as path -> shape."""
    sizes: dict[str, list[int]] = {name: [] for name in PARTS}
    for path, shape in shapes.items():
        sizes[part_of(path)].append(math.prod(shape))
    return [Part(name, len(found), sum(found)) for name, found in sizes.items() if found]


def part_of(path: str) -> str:
    """Returns the part that a parameter belongs to."""
    found = [
        name
        for name, patterns in PARTS.items()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    ]
    assert len(found) == 1, f"{path} is in {found or 'no part'}"
    return found[0]


def table(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the printable table, with sums of the model, of the VAE and of both."""
    parts = count(shapes)
    model = [part for part in parts if not part.name.startswith("VAE")]
    vae = [part for part in parts if part.name.startswith("VAE")]
    total = lambda name, rows: Part(name, sum(r.arrays for r in rows), sum(r[2] for r in rows))
    groups = [model, [total("model", model)], vae, [total("VAE", vae)], [total("all", parts)]]
    whole = groups[-1][0].parameters
    lines = [f"{'part':<24}{'arrays':>8}{'parameters':>18}{'share':>9}"]
    for number, group in enumerate(groups):
        if number in (1, 3, 4):
            lines.append("-" * len(lines[0]))
        for name, arrays, parameters in group:
            share = parameters / max(whole, 1)
            lines.append(f"{name:<24}{arrays:>8}{parameters:>18,}{share:>9.2%}")
    return "\n".join(lines)
