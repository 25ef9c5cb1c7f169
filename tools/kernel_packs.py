"""What attention costs in whole packs: tiles that are visible, and modelled milliseconds a layer.

The packs come from the data pipeline's layout (`inset_jax.data.pack`), with sentences and pictures
of realistic sizes and no pixels. Time is modelled: bundles of the compiled kernels over the clock,
and a fixed cost a step; nothing ran on a TPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tools import bundles, kernel_table
from tools.kernel_table import GROUP, KV_HEADS, Row

STEP_SECONDS = 0.35e-6  # of a grid's step beside its body: about 390 bundles of control and waits
CORES = {"v5p": 2, "v6e": 1, "tpu7x": 1}  # that share the heads of one device
UND, GEN = 16384, 16384
SPLASH_TILE = 512
EXAMPLES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40)


class Work(NamedTuple):
    """The forward pass of attention over one pack, both streams."""

    examples: int
    pairs: int  # of query and key that see each other
    tiles: int  # that hold any
    masked: int  # of them with hidden pairs too
    all_tiles: int  # of the two dense masks
    rows: int  # of tiles


def random_pack(examples: int, seed: int = 0):
    """Returns a full pack of so many examples: sentences with pictures, each with one target.

    The more examples, the smaller the pictures: together they fill both streams.
    """
    from inset_jax.core.config import CapacityConfig, ModelConfig
    from inset_jax.data import pack as packs

    random = np.random.default_rng((seed, examples))
    config = ModelConfig()
    room = int(0.9 * UND / examples), int(0.95 * GEN / examples)

    def picture(kind: str, tokens: float, side: int) -> packs.Item:
        rows = int(np.clip(np.sqrt(tokens * random.uniform(0.6, 1.6)), 1, side))
        columns = int(np.clip(tokens // rows, 1, side))
        return packs.Item(kind, size=(rows, columns))

    def sentence() -> list[packs.Item]:
        und, gen = (size * random.uniform(0.75, 1.0) for size in room)
        references = int(random.integers(1, 6))
        text = max(int(0.06 * und / (references + 1)), 1)
        items = []
        for _ in range(references):
            items.append(packs.Item("text", ids=[0] * int(random.integers(1, 2 * text + 1))))
            items.append(picture("vit", 0.8 * und / references, 70))
        items.append(packs.Item("text", ids=[0] * text))
        while gen > 0:  # a picture holds at most 64 x 64 latents; a long example draws several
            items.append(picture("target", min(gen, 4096), 64))
            gen -= 4096
        return items

    laid = packs.layout([sentence() for _ in range(examples)], config)
    return packs.assemble(laid, CapacityConfig(und=UND, gen=GEN, vit=UND), config)


def work(pack, examples: int, block) -> Work:
    """Counts tiles of a pack, both streams, for tiles of block[0] queries x block[1] keys."""
    from inset_jax.core import visibility as intervals

    counts = np.zeros(5, np.int64)
    for name, queries in (("und", UND), ("gen", GEN)):
        seen = pack.visibility[name]
        tiles = intervals.tiles(seen, queries, *block[:2])
        pairs = np.maximum(seen.high - seen.low, 0).sum(dtype=np.int64)
        hidden = (tiles.seen & ~tiles.whole).sum()
        counts += pairs, tiles.seen.sum(), hidden, tiles.seen.size, len(tiles.seen)
    return Work(examples, *map(int, counts))


def milliseconds(chip: str, row: Row, work: Work, small: bool) -> float:
    """Models one layer with the kernel of `row` over the visible tiles."""
    whole, masked = (row.small_whole, row.small_masked) if small else (row.whole, row.masked)
    cycles = (work.tiles - work.masked) * whole + work.masked * masked + work.rows * row.outside
    return _milliseconds(chip, cycles, work.tiles)


def splash_milliseconds(chip: str, row: Row, tile: int, dense: bool) -> float:
    """Models splash attention over UND + GEN tokens in reading order, causal with segment ids.

    It cannot express the mask of a pack (noise, full segments): this is the time of a mask of the
    same length. It walks over every tile below the diagonal, a head at a time; dense: over all.
    """
    side = (UND + GEN) // tile
    tiles = side * side if dense else side * (side + 1) // 2
    return _milliseconds(chip, tiles * row.whole, tiles * GROUP)


def _milliseconds(chip: str, cycles: int, steps: int) -> float:
    seconds = cycles / (bundles.CLOCK_GHZ[chip] * 1e9) + steps * STEP_SECONDS
    return 1e3 * seconds * KV_HEADS / CORES[chip]


def report(chips: list[str], dump, path) -> tuple[dict, list[str]]:
    """Prints modelled milliseconds a layer for packs of 1 to 40 examples; draws them to `path`."""
    from inset_jax.kernels import interval_form as forms

    packs = {examples: random_pack(examples) for examples in EXAMPLES}
    figures = {}
    for chip in chips:
        block = forms.BLOCKS[bundles.KINDS[chip]]
        forward, backward = kernel_table.ours(chip, block[:2], dump)
        theirs = kernel_table.splash(chip, SPLASH_TILE, dump)[0]
        dense = splash_milliseconds(chip, theirs, SPLASH_TILE, dense=True)
        causal = splash_milliseconds(chip, theirs, SPLASH_TILE, dense=False)
        figures[chip] = [
            work(pack, examples, block)._asdict() | {"splash_ms": causal, "dense_ms": dense}
            for examples, pack in packs.items()
        ]
        for row in figures[chip]:
            found = Work(*(row[name] for name in Work._fields))
            row["forward_ms"] = milliseconds(chip, forward, found, small=False)
            row["small_scores_ms"] = milliseconds(chip, forward, found, small=True)
            row["backward_ms"] = milliseconds(chip, backward, found, small=False)
        print("\n".join(lines(chip, block, figures[chip])), flush=True)
    if path:
        plot(figures, path)
    return {"packs": figures}, []


def lines(chip: str, block, rows: list[dict]) -> list[str]:
    """The table of one chip as text."""
    told = [
        f"{chip}, tiles of {block.query} x {block.key}, forward of a layer: splash "
        f"{rows[0]['splash_ms']:.1f} ms, dense {rows[0]['dense_ms']:.1f} ms",
        "examples  visible pairs (M)  tiles  partly masked  forward ms  small scores  backward ms",
    ]
    for row in rows:
        told.append(
            f"{row['examples']:8d}  {row['pairs'] / 1e6:17.1f}  {row['tiles']:5d}  "
            f"{row['masked'] / row['tiles']:13.0%}  {row['forward_ms']:10.2f}  "
            f"{row['small_scores_ms']:12.2f}  {row['backward_ms']:11.2f}"
        )
    return told


def plot(figures: dict[str, list[dict]], path) -> None:
    """Draws modelled time over visible pairs, and over examples beside splash attention."""
    from inset_jax.train import curves

    panels = [panel for chip, rows in figures.items() for panel in _panels(chip, rows)]
    print(curves.draw(panels, path))


def _panels(chip: str, rows: list[dict]) -> list:
    from inset_jax.train.curves import Curve

    def line(name: str, x, y: str) -> Curve:
        return Curve(name, sorted((x(row), row[y]) for row in rows), False)

    pairs, examples = lambda row: row["pairs"] / 1e6, lambda row: row["examples"]
    return [
        (
            f"{chip}: modelled ms a layer over visible pairs (millions)",
            [line("forward", pairs, "forward_ms"), line("backward", pairs, "backward_ms")],
        ),
        (
            f"{chip}: modelled ms a layer, forward, over examples in the pack",
            [
                line("intervals", examples, "forward_ms"),
                line("splash", examples, "splash_ms"),
                line("dense", examples, "dense_ms"),
            ],
        ),
    ]
