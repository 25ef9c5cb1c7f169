"""The splash attention of tokamax, where that is installed, in bundles beside these kernels.

tokamax 0.0.17 asks for Python 3.12 and a newer JAX than this project is tested with; it is nobody's
dependency here.
"""

from __future__ import annotations

import importlib
import pathlib

from tools import bundles, kernel_table
from tools.kernel_table import GROUP, KEYS, QUERIES, Row

PACKAGE = "tokamax._src.ops.experimental.tpu.splash_attention"


def rows(chip: str, tile: int, dump: pathlib.Path) -> list[Row]:
    """Compiles tokamax's splash attention, forward and backward, with segment ids.

    Raises:
      ImportError: tokamax is not installed, or keeps its kernel elsewhere.
    """
    found = bundles.compile_for(chip, *_splash(tile), dump)
    name, size = "tokamax", f"{tile} x {tile}"
    forward, backward = (_bodies(found, part) for part in ("_fwd", "_dkv"))
    reduction = kernel_table.sum_of_parts(chip, tile, 4)  # it sums parts in float32
    return [
        Row(f"{name} forward", chip, size, *forward, seconds=found.seconds),
        Row(f"{name} backward", chip, size, *backward, reduction=reduction, seconds=found.seconds),
    ]


def _bodies(found: bundles.Compiled, part: str) -> tuple[int, int]:
    """Bundles for a group's heads, one after the other: without and with the mask's own part."""
    whole, masked = bundles.work(bundles.of_kernel(found, part))
    return GROUP * whole.bundles, GROUP * masked.bundles


def _splash(tile: int):
    """A function that runs it forward and backward, and its arguments' shapes."""
    kernel = importlib.import_module(f"{PACKAGE}.splash_attention_kernel")
    masks = importlib.import_module(f"{PACKAGE}.splash_attention_mask")
    sizes = kernel.SplashConfig(block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile)
    attention = kernel.make_splash_mqa(
        masks.CausalMask((QUERIES, KEYS)), config=sizes, q_seq_shards=1
    )

    return kernel_table.with_segments(attention, kernel.SegmentIds)
