"""The attention kernels beside splash attention, in bundles of their final schedules.

Shapes are those of BAGEL's language model: 28 query heads on 4 key-value heads of 128, bfloat16.
All figures are for the 7 heads of one key-value head and one tile.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from tools import bundles

QUERIES, KEYS, HEADS, KV_HEADS, WIDTH = 4096, 8192, 28, 4, 128
GROUP = HEADS // KV_HEADS

# (chip, tile): most bundles without and with masked pairs; better than these is the aim
FORWARD_BARS = {
    ("v5p", 256): (2330, 2400),
    ("v5p", 512): (7150, 7680),
    ("v6e", 256): (1735, 1970),
    ("v6e", 512): (5360, 5970),
}
SPLASH_SHARE = (0.85, 0.92)  # at most, at 512 x 512, without and with masking
BACKWARD_SHARE = 0.75  # at most, of splash's better form, at 256 x 256
# For each tile of the backward kernel, so many of the shifts' kernel: more than in any setting of
# `kernel_packs`, of which packs of many small examples have most
SHIFT_SHARE = 0.3


class Row(NamedTuple):
    """One kernel at one tile: bundles for 7 heads."""

    kernel: str
    chip: str
    tile: str  # queries x keys
    whole: int  # a tile of which everybody sees everything
    masked: int
    small_whole: int | None = None  # the same where no score needs a maximum
    small_masked: int | None = None
    outside: int = 0  # of all tiles: what a row of tiles begins and ends with
    reduction: int = 0  # cycles of memory traffic that a sum over partial results takes
    seconds: float = 0.0  # of the compile

    @property
    def total(self) -> int:
        """What a masked tile costs, its reduction with it."""
        return self.masked + self.reduction


def ours(chip: str, tile: tuple[int, int], dump: pathlib.Path) -> list[Row]:
    """Compiles the kernels for a tile (queries, keys): forward, backward, and its shifts."""
    import jax
    import jax.numpy as jnp

    from inset_jax.core.batch import Visibility
    from inset_jax.kernels import interval_form as forms
    from inset_jax.kernels.interval_attention import pallas

    def gradients(query, key, value, grad, low, high):
        mixed = functools.partial(
            pallas,
            visibility=Visibility(low, high),
            scale=WIDTH**-0.5,
            block=forms.block_for(tile),
        )
        out, back = jax.vjp(mixed, query, key, value)
        return out, *back(grad)

    array = lambda tokens, heads: jax.ShapeDtypeStruct((1, tokens, heads, WIDTH), jnp.bfloat16)
    side = jax.ShapeDtypeStruct((1, KEYS), jnp.int32)
    query, key = array(QUERIES, HEADS), array(KEYS, KV_HEADS)
    found = bundles.compile_for(chip, gradients, (query, key, key, query, side, side), dump)
    rows = []
    for kernel in ("interval_forward", "interval_backward", "interval_shift"):
        pieces = bundles.of_kernel(found, kernel)
        inside = work = [body.bundles for body in bundles.work(pieces)]
        if kernel == "interval_forward":  # written as whole, whole small, masked, masked small
            whole, small_whole, masked, small_masked = work
            work = whole, masked, small_whole, small_masked
        if kernel == "interval_shift":  # one body, with the mask
            work = 2 * work
        outside = sum(body.bundles for body in pieces) - sum(inside)
        row = Row(kernel, chip, "{} x {}".format(*tile), *work)
        rows.append(row._replace(outside=outside, seconds=found.seconds))
    return rows


def splash(chip: str, tile: int, dump: pathlib.Path) -> list[Row]:
    """Compiles splash attention of the installed JAX, forward and both forms of its backward.

    With segment ids, without which it cannot hold packs apart: it then has one body, which compares
    them in every tile.
    """
    rows = []
    for fused in (False, True):
        found = bundles.compile_for(chip, *_splash(tile, fused), dump)
        count = {
            part: sum(GROUP * body.bundles for body in bundles.work(pieces))
            for name, pieces in found.bodies.items()
            for part in ("fwd", "dq", "dkv")
            if f"_{part}_" in name
        }
        reduction = sum_of_parts(chip, tile) if fused else 0
        backward = count.get("dq", 0) + count["dkv"]
        name = "splash backward, " + ("fused" if fused else "dq + dkv")
        if not fused:
            rows.append(Row("splash forward", chip, f"{tile} x {tile}", *2 * [count["fwd"]]))
        row = Row(name, chip, f"{tile} x {tile}", backward, backward, reduction=reduction)
        rows.append(row)
        rows = [row._replace(seconds=row.seconds or found.seconds) for row in rows]
    return rows


def _splash(tile: int, fused: bool):
    """A function that runs splash attention forward and backward, and its arguments' shapes."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    apart = {} if fused else {"block_q_dq": tile, "block_kv_dq": tile}
    sizes = splash_attention.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        use_fused_bwd_kernel=fused,
        **apart,
    )
    causal = splash_attention.CausalMask((QUERIES, KEYS))
    # the single-device maker of this JAX builds the kernel for as many key as query heads
    attention = splash_attention.make_splash_mqa(
        splash_attention.MultiHeadMask([causal] * GROUP),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
    )

    return with_segments(attention, splash_attention.SegmentIds)


def sum_of_parts(chip: str, tile: int, number_bytes: int = 2) -> int:
    """Cycles for dQ of a tile where a fused backward writes it for each block of keys, to sum it.

    Written and read once, numbers of `number_bytes`, over the memory's bandwidth.
    """
    moved = 2 * GROUP * tile * WIDTH * number_bytes
    return round(moved / bundles.BANDWIDTH[chip] * bundles.CLOCK_GHZ[chip] * 1e9)


def with_segments(attention: Callable, segment_ids: Callable):
    """A function that runs a splash kernel forward and backward, and its arguments' shapes."""
    import jax
    import jax.numpy as jnp

    def gradients(query, key, value, grad, query_segment, key_segment):
        segments = segment_ids(query_segment, key_segment)
        one = functools.partial(attention, segment_ids=segments)
        out, back = jax.vjp(jax.vmap(one), query, key, value)
        return out, *back(grad)

    array = lambda *shape: jax.ShapeDtypeStruct((KV_HEADS, *shape, WIDTH), jnp.bfloat16)
    segment = lambda tokens: jax.ShapeDtypeStruct((tokens,), jnp.int32)
    query, key = array(GROUP, QUERIES), array(KEYS)
    return gradients, (query, key, key, query, segment(QUERIES), segment(KEYS))


def failures(rows: list[Row]) -> list[str]:
    """Returns what misses a bar, in words; nothing for tiles that are not in `rows`."""
    found = {(row.kernel, row.chip, row.tile): row for row in rows}
    missed = []

    def hold(what: str, got: float, most: float) -> None:
        if got > most:
            missed.append(f"{what}: {got:,.0f} bundles, at most {most:,.0f}")

    for (chip, tile), (whole, masked) in FORWARD_BARS.items():
        name = f"{tile} x {tile}"
        ours = found.get(("interval_forward", chip, name))
        theirs = found.get(("splash forward", chip, name))
        if ours:
            hold(f"forward {chip} {name}", ours.whole, whole)
            hold(f"forward {chip} {name} masked", ours.masked, masked)
        if ours and theirs and tile == 512:
            for part, share in zip(("whole", "masked"), SPLASH_SHARE, strict=True):
                hold(
                    f"forward {chip} {name} {part} of splash",
                    getattr(ours, part),
                    share * theirs.whole,
                )
    for chip in {row.chip for row in rows}:
        ours = found.get(("interval_backward", chip, "256 x 256"))
        theirs = [
            row.total
            for row in rows
            if row.kernel.startswith("splash backward")
            and row.chip == chip
            and row.tile == "256 x 256"
        ]
        shift = found.get(("interval_shift", chip, "256 x 256"))
        if ours and theirs:
            total = ours.total + (SHIFT_SHARE * shift.masked if shift else 0)
            hold(f"backward {chip} 256 x 256", total, BACKWARD_SHARE * min(theirs))
    return missed


def lines(rows: list[Row]) -> list[str]:
    """The table as text."""
    head = (
        "kernel",
        "chip",
        "tile",
        "whole",
        "masked",
        "small scores",
        "a row",
        "sum of dQ",
        "compile",
    )
    table = [head]
    for row in rows:
        small = "" if row.small_whole is None else f"{row.small_whole:,} / {row.small_masked:,}"
        table.append(
            (
                row.kernel,
                row.chip,
                row.tile,
                f"{row.whole:,}",
                f"{row.masked:,}",
                small,
                f"{row.outside:,}" if row.outside else "",
                f"{row.reduction:,}" if row.reduction else "",
                f"{row.seconds:.0f} s",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def report(chips: list[str], dump: pathlib.Path) -> tuple[dict, list[str]]:
    """Compiles and prints the table of some chips; returns figures and missed bars."""
    from tools import kernel_tokamax

    rows, absent = [], ""
    for chip in chips:
        for tile in dict.fromkeys([(256, 256), (512, 512), own_tile(chip)]):
            rows += ours(chip, tile, dump)
            if tile[0] == tile[1]:
                rows += splash(chip, tile[0], dump)
                try:
                    rows += kernel_tokamax.rows(chip, tile[0], dump)
                except Exception as error:  # a package that is not ours, of any version
                    absent = f"{type(error).__name__}: {str(error)[:200]}"
    print("\n".join(lines(rows)))
    if absent:
        print(f"tokamax is not compared: {absent}")
    return {"kernels": [row._asdict() for row in rows]}, failures(rows)


def own_tile(chip: str) -> tuple[int, int]:
    """The tile that `kernels.interval_form` takes on a chip."""
    from inset_jax.kernels import interval_form as forms

    return forms.BLOCKS[bundles.KINDS[chip]][:2]
