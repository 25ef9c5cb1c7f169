"""What is read from a scheduled program: a small one, with a loop of 28 layers on 2 x 2 devices."""

import pathlib

import pytest

from inset_jax.preflight import collectives, hlo

TEXT = (pathlib.Path(__file__).parent / "program.hlo").read_text()
MESH = {"dcn": 1, "fsdp": 2, "context": 1, "tensor": 2}
WEIGHTS, GRADIENT, STACK = 1024 * 64 * 2, 1024 * 64 * 2, 28 * 512 * 64 * 4  # bytes


# a product taken apart over 4 devices, two parts a round, while a gather of its layer goes on
WINDOWED = (pathlib.Path(__file__).parent / "windowed.hlo").read_text()


def test_a_loop_whose_counter_goes_by_two_runs_half_as_often():
    assert hlo.runs(hlo.parse(WINDOWED)) == {"main": 1, "round": 2}


def test_a_chain_that_goes_on_inside_a_loop_is_one_gather():
    found = {c.kind: c for c in collectives.read(hlo.parse(WINDOWED), MESH)}
    assert len(found) == 2
    gather = found["all-gather"]
    assert (gather.times, gather.computation, gather.is_hidden) == (1, "main", True)
    assert gather.sent == 256 * 64 * 2 * 3 / 4
    assert found["collective-permute"].sent == 2 * 64 * 64 * 2


# as on tpu7x: a gather and a sum that the SparseCores are given, a product beside the gather alone
CALLED = """HloModule jit_step, is_scheduled=true

%called.1 (a: bf16[64,64], t: token[]) -> bf16[256,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %t = token[] parameter(1)
  ROOT %gather = bf16[256,64]{1,0} all-gather(%a), channel_id=3, replica_groups={}, dimensions={0}
}, execution_thread="sparsecore"

%called.2 (b: bf16[64,64]) -> bf16[64,64] {
  %b = bf16[64,64]{1,0} parameter(0)
  ROOT %sum = bf16[64,64]{1,0} all-reduce(%b), channel_id=4, replica_groups={}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (q: bf16[64,64]) -> bf16[64,64] {
  %q = bf16[64,64]{1,0} parameter(0)
  %one = ((bf16[64,64]{1,0}, token[]), bf16[256,64]{1,0}) call-start(%q), to_apply=%called.1
  %product = bf16[64,64]{1,0} convolution(%q, %q), dim_labels=bf_io->bf
  %one.done = bf16[256,64]{1,0} call-done(%one)
  %two = ((bf16[64,64]{1,0}), bf16[64,64]{1,0}) call-start(%product), to_apply=%called.2
  ROOT %two.done = bf16[64,64]{1,0} call-done(%two)
}
"""


def test_what_sparse_cores_are_given_is_counted():
    found = {c.kind: c for c in collectives.read(hlo.parse(CALLED), MESH)}
    gather, total = found["all-gather"], found["all-reduce"]
    assert (gather.is_async, gather.is_hidden) == (True, True)
    assert (total.is_async, total.is_hidden) == (True, False)
    assert gather.sent == 256 * 64 * 2 * 3 / 4
    assert total.sent == 2 * 64 * 64 * 2 * 3 / 4


@pytest.fixture(scope="module")
def found():
    return {c.shape: c for c in collectives.read(hlo.parse(TEXT), MESH)}


def test_loops_count_as_often_as_they_run():
    assert hlo.runs(hlo.parse(TEXT)) == {"main": 1, "body": 28}


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule x\n")


def test_a_chain_of_fusions_is_one_gather_with_work_inside(found):
    gather = found["bf16[1,1024,64]"]
    assert (gather.kind, gather.times, gather.axes) == ("all-gather", 28, ("fsdp",))
    assert gather.is_async and gather.is_hidden
    assert gather.sent == 28 * WEIGHTS / 2
    assert gather.origin == "jit(step)/while/body/dot_general"


def test_a_plain_all_reduce_waits_and_sends_twice(found):
    reduced = found["bf16[1024,64]"]
    assert (reduced.kind, reduced.chips, reduced.axes) == ("all-reduce", 4, ("fsdp", "tensor"))
    assert not reduced.is_async and not reduced.is_hidden
    assert reduced.sent == 28 * 2 * GRADIENT * 3 / 4


def test_a_started_permute_without_matrix_work_is_not_hidden(found):
    sent = found["bf16[256]"]
    assert (sent.kind, sent.axes, sent.is_async, sent.is_hidden) == (
        "collective-permute",
        ("tensor",),
        True,
        False,
    )
    assert sent.sent == 512


def test_a_gathered_stack_of_layers_outside_the_loop_is_named(found):
    (stack,) = collectives.stacks_outside(list(found.values()), [(28, 64, 512)])
    assert (stack.shape, stack.axes) == ("f32[28,512,64]", ("fsdp",))
    assert not collectives.stacks_outside(list(found.values()), [(28, 512, 512), (1, 1024, 64)])


def test_the_table_adds_up(found):
    rows = collectives.table(list(found.values()))
    assert sum(row["sent"] for row in rows) == sum(c.sent for c in found.values())
    assert [row["kind"] for row in rows][:2] == ["all-reduce", "all-gather"]
    assert [row["sent"] for row in rows] == sorted((r["sent"] for r in rows), reverse=True)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("replica_groups={{0,4},{1,5}}", [0, 4]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [0, 1]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=1,'b'=8], device_ids=([8]) {'b'}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", [0, 1, 2, 3]),
        ("source_target_pairs={{0,2},{2,4},{4,0}}", [0, 2, 4]),
        ("replica_groups={}", []),
    ],
)
def test_groups_are_read_in_every_form(text, members):
    assert collectives.group(text) == members
