"""What attention costs in whole packs: tiles that are visible, and modelled milliseconds a layer.

The packs are planned by `inset_jax.data.plan` for the 7B presets, from the made-up data sets of
`inset_jax.data.mixes`: lengths and masks, no pixels. Time is modelled: bundles of the compiled
kernels over the clock, and a fixed cost a step; nothing ran on a TPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import Visibility
from tools import bundles, kernel_table
from tools.kernel_table import GROUP, KV_HEADS, Row

STEP_SECONDS = 0.35e-6  # of a grid's step beside its body: about 390 bundles of control and waits
CORES = {"v5p": 2, "v6e": 1, "tpu7x": 1}  # that share the heads of one device
SPLASH_TILE = 512
TILES = ((256, 256), (256, 512), (512, 256), (512, 512))  # that were tried
EXAMPLES = 4096  # made up for each setting
PACKS = 24  # of each setting


class Setting(NamedTuple):
    """Which packs are planned."""

    preset: str  # module of `configs`
    mix: str  # of `data.mixes`
    only: str = ""  # the one data set of the mix that is taken; all by their weights
    changes: Mapping = MappingProxyType({})  # of the preset, for `core.config.edit`


def _drawn(longest: int, shortest: int) -> Mapping:
    """Changes of a preset: the sides of pictures that are drawn, in pixels."""
    return dict(data__vae_size__max_side=longest, data__vae_size__min_side=shortest)


SETTINGS = {  # by rising number of examples in a pack
    "inset_7b, eight large references": Setting("inset_7b", "coarse", "interleaved"),
    "inset_7b, interleaved alone": Setting("inset_7b", "mixed", "image-interleaved"),
    "inset_7b": Setting("inset_7b", "mixed"),
    "bagel_7b": Setting("bagel_7b", "mixed"),
    "inset_7b, text-to-image alone": Setting("inset_7b", "mixed", "t2i"),
    "inset_7b, text-to-image to 640 px": Setting("inset_7b", "mixed", "t2i", _drawn(640, 512)),
    "inset_7b, text-to-image to 384 px": Setting("inset_7b", "mixed", "t2i", _drawn(384, 256)),
}


class Work(NamedTuple):
    """The forward pass of attention over one pack, both streams."""

    examples: int
    tokens: int  # of both streams, padding included
    pairs: int  # of query and key that see each other
    tiles: int  # that hold any
    masked: int  # of them with hidden pairs too
    all_tiles: int  # of the two dense masks
    rows: int  # of tiles
    few: int  # tiles in which a row sees something that sees few keys in all
    few_rows: int  # of tiles, in which such rows are


def plan_of(setting: Setting):
    """Returns the plan of a setting, and its config."""
    import importlib

    from inset_jax.core.config import edit
    from inset_jax.data import index, mixes
    from inset_jax.data.plan import Plan

    made, weights = mixes.MIXES[setting.mix](EXAMPLES)
    if setting.only:
        made, weights = [own for own in made if own.name == setting.only], (1.0,)
    config = edit(
        importlib.import_module(f"configs.{setting.preset}").experiment(),
        data__train=tuple(own.name for own in made),
        data__weights=weights,
        **setting.changes,
    )
    indexes = [index.measure(own, config) for own in made]
    return Plan(indexes, config, True, config.data.dropout), config


def planned(setting: Setting) -> Iterator[tuple[int, object]]:
    """Yields the first packs of a setting's plan: the number of examples, and the `Pack`."""
    from inset_jax.data import pack as packs

    plan, config = plan_of(setting)
    for number in range(PACKS):
        draws = plan.pack(number)
        laid = packs.layout([items_of(plan, draw) for draw in draws], config.model)
        yield len(draws), packs.assemble(laid, config.data.capacity, config.model)


def items_of(plan, draw) -> list:
    """The items of a drawn example as far as a mask needs them: kinds and lengths."""
    from inset_jax.data import dropout
    from inset_jax.data.index import COLUMNS
    from inset_jax.data.pack import Item

    index, items = plan.indexes[draw.data_set], []
    own = index.segments(draw.example)
    gone = plan.dropped(draw)
    for tokens, code, dropped in zip(index.tokens[own], index.code[own], gone, strict=True):
        und, gen, patches = tokens[[COLUMNS.index(name) for name in ("und", "gen", "vit")]]
        kind = "vit" if patches else "text"
        if gen:
            kind = "clean" if code == dropout.VAE else "target"
        length = int(gen or patches or und - 2)
        if kind == "text":
            items.append(Item(kind, ids=[0] * length, dropped=bool(dropped)))
        else:  # where in the picture a token lies is not asked
            place = np.zeros(length, np.int32)
            items.append(Item(kind, size=(1, length), place=place, dropped=bool(dropped)))
    return items


def work(pack, examples: int, block: tuple) -> Work:
    """Counts tiles of a pack, both streams, for tiles of block[0] queries x block[1] keys."""
    from inset_jax.core import visibility as intervals
    from inset_jax.kernels.interval_shift import FEW, few_tiles

    counts = np.zeros(7, np.int64)
    lengths = {"und": len(pack.und_token), "gen": len(pack.gen_latent)}
    for name, queries in lengths.items():
        seen = pack.visibility[name]
        tiles = intervals.tiles(seen, queries, *block[:2])
        pairs = np.maximum(seen.high - seen.low, 0).sum(dtype=np.int64)
        hidden = (tiles.seen & ~tiles.whole).sum()
        begun, ended = (
            np.bincount(side[seen.low < seen.high], minlength=queries + 1) for side in seen[:2]
        )
        count = np.pad(np.cumsum(begun - ended)[:queries], (0, -queries % block[0]))
        few = few_tiles(
            Visibility(*(side[None] for side in seen[:2])),
            ((0 < count) & (count < FEW))[None],
            block[:2],
        )
        counts += pairs, tiles.seen.sum(), hidden, tiles.seen.size, len(tiles.seen), 0, 0
        counts[5:] += few.sum(), few.any(-1).sum()
    return Work(examples, sum(lengths.values()), *map(int, counts))


def milliseconds(chip: str, row: Row, work: Work, small: bool) -> float:
    """Models one layer with the kernel of `row` over the visible tiles."""
    whole, masked = (row.small_whole, row.small_masked) if small else (row.whole, row.masked)
    cycles = (work.tiles - work.masked) * whole + work.masked * masked + work.rows * row.outside
    return _milliseconds(chip, cycles, work.tiles)


def shift_milliseconds(chip: str, row: Row, work: Work) -> float:
    """Models the kernel of `row` over the tiles of rows that see few keys."""
    return _milliseconds(chip, work.few * row.masked + work.few_rows * row.outside, work.few)


def splash_milliseconds(chip: str, row: Row, tokens: int, dense: bool) -> float:
    """Models splash attention over all tokens in reading order, causal with segment ids.

    It cannot express the mask of a pack (noise, full segments): this is the time of a mask of the
    same length. It walks over every tile below the diagonal, a head at a time; dense: over all.
    """
    side = tokens // SPLASH_TILE
    tiles = side * side if dense else side * (side + 1) // 2
    return _milliseconds(chip, tiles * row.total, tiles * GROUP)


def _milliseconds(chip: str, cycles: int, steps: int) -> float:
    seconds = cycles / (bundles.CLOCK_GHZ[chip] * 1e9) + steps * STEP_SECONDS
    return 1e3 * seconds * KV_HEADS / CORES[chip]


def modelled(chip: str, rows: list[Row], found: Work) -> dict[str, float]:
    """Milliseconds a layer with the kernels of `kernel_table.ours`; the shifts' within backward."""
    forward, backward, shift = rows
    shift_ms = shift_milliseconds(chip, shift, found)
    return {
        "forward_ms": milliseconds(chip, forward, found, small=False),
        "small_scores_ms": milliseconds(chip, forward, found, small=True),
        "backward_ms": milliseconds(chip, backward, found, small=False) + shift_ms,
        "shift_ms": shift_ms,
    }


def report(chips: list[str], dump, path) -> tuple[dict, list[str]]:
    """Prints modelled milliseconds a layer for planned packs; draws them to `path`."""
    from inset_jax.kernels import interval_form as forms

    packs = [(name, *found) for name, own in SETTINGS.items() for found in planned(own)]
    figures = {}
    for chip in chips:
        block = forms.BLOCKS[bundles.KINDS[chip]]
        rows = kernel_table.ours(chip, block[:2], dump)
        splash, *backward = kernel_table.splash(chip, SPLASH_TILE, dump)
        backward = min(backward, key=lambda row: row.total)
        figures[chip] = []
        for name, examples, pack in packs:
            found = work(pack, examples, block)
            beside = {
                name: splash_milliseconds(chip, row, found.tokens, name == "dense_ms")
                for name, row in (
                    ("splash_ms", splash),
                    ("splash_backward_ms", backward),
                    ("dense_ms", splash),
                )
            }
            own = {"setting": name} | found._asdict() | modelled(chip, rows, found) | beside
            figures[chip].append(own)
        print("\n".join(lines(chip, block, figures[chip])), flush=True)
    if path:
        plot(figures, path)
    return {"packs": figures}, []


def blocks(chips: list[str], dump) -> tuple[dict, list[str]]:
    """Prints what each size of tile costs in the packs of `inset_7b`: how BLOCKS was chosen.

    A step of training runs the forward kernel twice, for remat. No bar: a row of BLOCKS is chosen
    over other settings, too.
    """
    packs = list(planned(SETTINGS["inset_7b"]))
    figures = {}
    for chip in chips:
        own = figures[chip] = {}
        for tile in TILES:
            rows = kernel_table.ours(chip, tile, dump)
            works = [work(pack, examples, tile) for examples, pack in packs]
            costs = [modelled(chip, rows, found) for found in works]
            mean = {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}
            tiles, masked = (np.mean([getattr(w, n) for w in works]) for n in ("tiles", "masked"))
            mean |= {"tiles": float(tiles), "masked": float(masked / tiles)}
            mean["step_ms"] = 2 * mean["forward_ms"] + mean["backward_ms"]
            own["{} x {}".format(*tile)] = mean
            print(
                "{} {} x {}: ".format(chip, *tile)
                + "{tiles:,.0f} tiles, {masked:.0%} with hidden pairs; forward {forward_ms:.2f}, "
                "backward {backward_ms:.2f}, twice forward and backward {step_ms:.2f} ms".format(
                    **mean
                ),
                flush=True,
            )
    return {"blocks": figures}, []


COLUMNS: dict[str, Callable[[dict], float]] = {
    "visible pairs (M)": lambda row: row["pairs"] / 1e6,
    "tiles": lambda row: row["tiles"],
    "partly masked": lambda row: 100 * row["masked"] / row["tiles"],
    "forward ms": lambda row: row["forward_ms"],
    "small scores": lambda row: row["small_scores_ms"],
    "backward ms": lambda row: row["backward_ms"],
    "of it shifts": lambda row: row["shift_ms"],
    "splash ms": lambda row: row["splash_ms"],
    "splash backward": lambda row: row["splash_backward_ms"],
    "dense ms": lambda row: row["dense_ms"],
}


def lines(chip: str, block, rows: list[dict]) -> list[str]:
    """The table of one chip as text: means over the packs of each setting."""
    told = [
        f"{chip}, tiles of {block.query} x {block.key}, a layer, means over {PACKS} packs each:",
        "examples a pack  " + "  ".join(COLUMNS),
    ]
    for name, group in itertools.groupby(rows, key=lambda row: row["setting"]):
        own = list(group)
        examples = [row["examples"] for row in own]
        cells = [f"{min(examples)} to {max(examples)}, {np.mean(examples):.1f}".rjust(15)]
        for title, of in COLUMNS.items():
            mean = np.mean([of(row) for row in own])
            cells.append((f"{mean:,.0f}" if title == "tiles" else f"{mean:.2f}").rjust(len(title)))
        told.append("  ".join([*cells, name]))
    return told


def plot(figures: dict[str, list[dict]], path) -> None:
    """Draws modelled time over visible pairs, and over examples beside splash attention."""
    from inset_jax.train import curves

    panels = [panel for chip, rows in figures.items() for panel in _panels(chip, rows)]
    print(curves.draw(panels, path))


def _panels(chip: str, rows: list[dict]) -> list:
    from inset_jax.train.curves import Curve

    def line(name: str, x, y: str) -> Curve:
        at: dict[float, list[float]] = {}
        for row in rows:
            at.setdefault(x(row), []).append(row[y])
        return Curve(name, [(own, float(np.mean(at[own]))) for own in sorted(at)], False)

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
