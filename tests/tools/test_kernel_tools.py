"""What the kernel benchmark reads from the compiler, and when it says that a bar is missed."""

import re

import numpy as np
import pytest

from inset_jax.data import prepare
from tools import benchmark, bundles, hlo_bytes, kernel_packs, kernel_table
from tools.kernel_table import Row

SCHEDULE = """
// a comment
     0   :  { %s1 = sadd }
   0x1   :  { %v2 = vmatmul.bf16 ;; %v3 = vmatmul.bf16 }
   0x2   :  { sbr.rel @p0 }
   0x3   :  { %v2 = vadd }
   0x4 LB: > { %v5 = vmatmul.bf16 }
   0x5   : > { %v6 = vadd
      ;; %v7 = vmul }
"""

PROGRAM = """
HloModule jit_f

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,8]{1,0} fusion(%x), kind=kLoop
  ROOT %t = (s32[], f32[4,8]) tuple(%x, %y)
}

ENTRY %main (a: bf16[16,4]) -> bf16[16,4] {
  %a = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,4]{1,0} fusion(%a), kind=kLoop
  %w = (s32[], f32[4,8]) while(%s), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %c = (bf16[16,4]{1,0}, f32[4,8]{1,0}) custom-call(%b, %b), custom_call_target="tpu"
}
"""


def test_a_schedule_is_cut_at_labels_and_branches():
    assert bundles.bodies(SCHEDULE) == [(3, 2), (1, 0), (2, 1)]
    assert bundles.work([(bundles.Body(9, 0)), bundles.Body(5, 8), bundles.Body(5, 4)]) == [
        (5, 8),
        (5, 4),
    ]


def test_bytes_count_loops_as_often_as_they_run_and_an_operand_once():
    fusion, loop, call = 2 * 128, 3 * 2 * 128, 128 + 128 + 128
    assert hlo_bytes.moved(PROGRAM) == fusion + loop + call


KERNEL = (
    '  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", '
    'metadata={op_name="jit(f)/transpose(jvp(interval_shift))/pallas_call"}, backend_config='
    '{"scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"64"}],'
    '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"48"}]}'
)


def test_fast_memory_is_read_for_each_kernel():
    text = "\n".join([KERNEL, KERNEL.replace("48", "50"), "  %b = f32[8]{0} custom-call(%a)"])
    assert hlo_bytes.fast_memory(text) == {"interval_shift": (50, 64)}


def row(kernel, whole, masked, tile="256 x 256", **changes):
    return Row(kernel, "v6e", tile, whole, masked)._replace(**changes)


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([row("interval_forward", 1735, 1970)], []),
        ([row("interval_forward", 1736, 1970)], ["forward v6e 256 x 256: 1,736"]),
        ([row("interval_forward", 1, 1971)], ["forward v6e 256 x 256 masked: 1,971"]),
        (
            [
                row("interval_backward", 1, 70, reduction=10),
                row("interval_shift", 40, 40),
                row("splash backward, fused", 100, 100, reduction=10),
                row("splash backward, dq + dkv", 120, 120),
            ],
            ["backward v6e 256 x 256: 92 bundles, at most 82"],
        ),
        (
            [
                row("interval_forward", 86, 92, "512 x 512"),
                row("splash forward", 100, 100, "512 x 512"),
            ],
            ["whole of splash: 86 bundles, at most 85"],
        ),
    ],
)
def test_a_bar_is_missed_by_one_bundle(rows, missed):
    found = kernel_table.failures(rows)
    assert len(found) == len(missed)
    assert all(part in phrase for part, phrase in zip(missed, found, strict=True))
    assert len(kernel_table.lines(rows)) == 1 + len(rows)


def first_pack(setting: str) -> kernel_packs.Work:
    examples, pack = next(kernel_packs.planned(kernel_packs.SETTINGS[setting]))
    return kernel_packs.work(pack, examples, (256, 256))


def test_work_follows_the_visible_pairs_of_planned_packs():
    few = first_pack("inset_7b, eight large references")
    many = first_pack("inset_7b, text-to-image to 384 px")
    assert 6 * few.examples < many.examples
    assert few.tokens == many.tokens == 14336 + 16384
    assert few.all_tiles == many.all_tiles and many.tiles < few.tiles / 2
    for found in (few, many):
        assert found.pairs <= 256 * 256 * found.tiles
        # rows that see few keys begin an example
        assert 0 < found.few_rows <= min(found.few, 2 * found.examples)
        assert found.few < found.tiles / 3
    assert few.pairs > 0.8 * 256 * 256 * few.tiles
    model = Row("interval_forward", "v6e", "256 x 256", 1000, 1100, 800, 900, outside=500)
    assert kernel_packs.milliseconds("v6e", model, many, True) < kernel_packs.milliseconds(
        "v6e", model, few, False
    )


def test_items_of_a_planned_example_are_as_long_as_the_plan_says():
    plan, _ = kernel_packs.plan_of(kernel_packs.SETTINGS["bagel_7b"])
    kinds = set()
    for draw in plan.pack(0) + plan.pack(1):
        index = plan.indexes[draw.data_set]
        items = kernel_packs.items_of(plan, draw)
        found = [prepare.segment_tokens(item) for item in items]
        assert np.array_equal(found, index.tokens[index.segments(draw.example)])
        assert np.array_equal([item.dropped for item in items], plan.dropped(draw))
        kinds |= {item.kind for item in items}
    assert kinds == {"text", "vit", "clean", "target"}


def test_every_benchmark_that_is_described_can_be_asked_for():
    described = re.findall(r"^([a-z-]+): ", benchmark.__doc__, re.MULTILINE)
    assert {"kernels", "loader"} <= set(described)
    assert sorted(described) == sorted(benchmark.BENCHMARKS)
