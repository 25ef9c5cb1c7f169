import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inset_jax.core import visibility as intervals
from inset_jax.core.batch import Visibility
from inset_jax.core.visibility import CAUSAL, FULL, NOISE, Segments
from inset_jax.kernels import interval_form as forms
from inset_jax.kernels import interval_shift
from inset_jax.kernels.attend import attend
from inset_jax.kernels.interval_attention import pallas
from inset_jax.kernels.interval_form import Block

SMALL = Block(16, 128)  # many rows of tiles even in short packs
SUMS_BY_PRODUCT = functools.partial(pallas, block=Block(16, 128, sum_by_product=True))
LLM = (1, 70, 260, 14, 2, 128)  # packs, queries, keys, query heads, key-value heads, head width
VIT = (2, 33, 140, 8, 8, 72)
SAMPLING = (3, 5, 300, 4, 2, 16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(forms, "DEFAULT", SMALL)


@functools.partial(jax.jit, static_argnames="implementation")
def value_and_gradients(implementation, query, key, value, grad, visible):
    run = lambda *arrays: attend(*arrays, visible, implementation)
    out, back = jax.vjp(run, query, key, value)
    return out, *back(grad)


def exact(query, key, value, grad, visible):
    """The reference on the same numbers in float32."""
    whole = (x.astype(jnp.float32) for x in (query, key, value, grad))
    return value_and_gradients("reference", *whole, visible)


@pytest.mark.parametrize("shape", [LLM, VIT, SAMPLING], ids=["llm", "vit", "sampling"])
def test_float32_equals_the_reference(shape, attention_case, distance):
    case = attention_case(*shape, seed=shape[1])
    got, expected = value_and_gradients("pallas", *case), exact(*case)
    for name, ours, theirs in zip("oqkv", got, expected, strict=True):
        assert distance(ours, theirs) < 1e-5, name
    unseen = ~np.asarray(expected[0]).any((-2, -1))
    assert unseen.any() or shape is SAMPLING
    assert not np.asarray(got[0])[unseen].any() and not np.asarray(got[1])[unseen].any()


@pytest.mark.parametrize("implementation", ["pallas", SUMS_BY_PRODUCT], ids=["lanes", "product"])
def test_bfloat16_differs_by_rounding_only(implementation, attention_case, distance):
    case = attention_case(*LLM, seed=3, dtype=jnp.bfloat16)
    got, expected = value_and_gradients(implementation, *case), exact(*case)
    assert all(array.dtype == jnp.bfloat16 for array in got)
    for name, ours, theirs in zip("oqkv", got, expected, strict=True):
        assert distance(ours, theirs) < 3e-3, name


def test_large_scores_take_the_running_maximum(attention_case, distance):
    query, key, *rest = attention_case(*SAMPLING)
    for factor, limited in ((1, 1), (30, 0)):
        form = forms.make(query, key, SMALL, 16**-0.5, True)
        assert forms.bounded(query * factor, key, form).tolist() == [limited] * 3
        case = (query * factor, key, *rest)
        for ours, theirs in zip(value_and_gradients("pallas", *case), exact(*case), strict=True):
            assert distance(ours, theirs) < 1e-5
    case = (query * 1e4, key * 1e2, *rest)
    got = value_and_gradients("pallas", *case)
    assert all(np.isfinite(x).all() for x in got)
    np.testing.assert_allclose(got[0], exact(*case)[0], atol=1e-4)


@st.composite
def packs(draw, tokens: int):
    """Segments of at most `tokens` tokens, and which tokens belong to the stream that asks."""
    longest = draw(st.sampled_from([1, 3, 40]))
    kinds = st.sampled_from([CAUSAL, FULL, NOISE])
    segment = st.tuples(st.integers(1, longest), kinds, st.integers(0, 2))
    rows = draw(st.lists(segment, min_size=0, max_size=20))
    length, kind, gap = np.asarray(rows or np.zeros((0, 3)), int).T
    fits = np.cumsum(length) <= tokens
    # examples without a segment in between leave no trace
    segments = Segments(length[fits], kind[fits], np.cumsum(gap)[fits])
    seed = draw(st.integers(0, 2**32 - 1))
    share = draw(st.sampled_from([0.02, 0.5, 1.0]))
    asks = np.random.default_rng(seed).random(segments.length.sum()) < share
    return segments, asks


def cut(pack, queries: int, keys: int):
    """Intervals [keys], laid out as [others; stream], and the dense rule [queries, keys]."""
    segments, asks = pack
    reading = intervals.reading_intervals(segments)
    seen = intervals.for_queries(reading, asks)
    order = np.concatenate([np.flatnonzero(~asks), np.flatnonzero(asks)])
    # as many queries as there is room for; the others then ask nothing
    low, high = (np.minimum(side, queries).astype(np.int32) for side in seen)
    pad = lambda side: np.pad(side[order], (0, keys - len(order)))
    rule = np.zeros((queries, keys), bool)
    dense = intervals.dense_rule(segments)[asks][:queries][:, order]
    rule[: dense.shape[0], : dense.shape[1]] = dense
    return Visibility(pad(low), pad(high)), rule


@settings(max_examples=600, deadline=None)
@given(packs(tokens=300), st.sampled_from([8, 16, 24]), st.sampled_from([8, 32, 100]))
def test_the_walk_over_tiles_is_the_dense_rule(pack, query_block, key_block):
    queries, keys = 90, 300
    visible, rule = cut(pack, queries, keys)
    pad = lambda side: np.pad(side, (0, -keys % key_block))
    padded = Visibility(*map(pad, visible))
    tiles = intervals.tiles(padded, queries, query_block, key_block)
    walk = intervals.steps(tiles)
    inside = intervals.dense(padded, tiles.seen.shape[0] * query_block)
    mask = np.zeros_like(inside)
    for code in walk.code[: walk.count]:
        row, column = code >> intervals.ROW_SHIFT, forms.column_of(code)
        at = tuple(
            slice(i * size, (i + 1) * size) for i, size in ((row, query_block), (column, key_block))
        )
        if code & intervals.RUN:
            mask[at] = inside[at] if code & intervals.MASKED else True
    assert np.array_equal(mask[:queries, :keys], rule)
    assert not mask[:, keys:].any()
    # each row of tiles begins and ends once, and no tile runs in vain
    used = walk.code[: walk.count]
    assert (np.sort(used >> intervals.ROW_SHIFT) == (used >> intervals.ROW_SHIFT)).all()
    for flag in (intervals.FIRST, intervals.LAST):
        assert ((used & flag) != 0).sum() == len(tiles.seen)
    assert ((used & intervals.RUN) != 0).sum() == tiles.seen.sum()
    assert (walk.code[walk.count :] == intervals.UNUSED).all()


@functools.partial(jax.jit, static_argnums=(1,))
def uniform_attention(visible, queries):
    """Attention with all scores 0 to values that are rows of the unit matrix: mask / row sum."""
    keys, width = visible.low.shape[1], 128
    one_hot = jnp.eye(keys).reshape(1, keys, keys // width, width)
    zeros = jnp.zeros((1, queries, keys // width, width))
    return pallas(zeros, jnp.zeros_like(one_hot), one_hot, visible, 1.0, SMALL)


@settings(max_examples=500, deadline=None)
@given(packs(tokens=256))
def test_the_kernel_sees_what_the_dense_rule_lets_it_see(pack):
    queries = 90
    visible, rule = cut(pack, queries, 256)
    batched = Visibility(*(jnp.asarray(side)[None] for side in visible))
    out = np.asarray(uniform_attention(batched, queries)).reshape(queries, 256)
    assert np.array_equal(out > 0, rule)
    np.testing.assert_allclose(out.sum(1), rule.any(1), atol=1e-6)


FORMS = {"lanes": "pallas", "product": SUMS_BY_PRODUCT}


@settings(max_examples=30, deadline=None)
@given(
    packs(tokens=140),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(list(FORMS)),
    st.integers(0, 2**31),
)
def test_random_packs_give_the_dense_result_and_gradients(pack, dtype, form, seed):
    queries, keys = 43, 140
    visible, rule = cut(pack, queries, keys)
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
    shapes = (queries, 6), (keys, 2), (keys, 2), (queries, 6)
    # the same mask four times: of a single query that sees two keys, the rounding of a handful of
    # slopes is no root mean square yet
    arrays = [normal(4, *shape, 32) for shape in shapes]
    visible = Visibility(*(jnp.tile(side, (4, 1)) for side in visible))
    got = value_and_gradients(FORMS[form], *arrays, visible)
    for name, ours, theirs in zip("oqkv", got, exact(*arrays, visible), strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        # of a query that sees one key nothing is left: then of numbers of size 0.01
        size = max(np.linalg.norm(theirs), 1e-2 * np.sqrt(ours.size))
        bar = {"float32": 1e-5, "bfloat16": 3e-3}[dtype]
        assert np.linalg.norm(ours - theirs) <= bar * size, name
    assert not np.asarray(got[0])[:, ~rule.any(1)].any()
    assert not np.asarray(got[2])[:, ~rule.any(0)].any()


@settings(max_examples=100, deadline=None)
@given(packs(tokens=300), st.sampled_from([1, 2, 5, 300]))
def test_rows_that_see_few_keys_are_found_with_all_their_tiles(pack, few):
    queries, keys = 90, 300
    visible, rule = cut(pack, queries, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval_shift, "FEW", few)
        query, key = np.zeros((1, queries, 2, 128)), np.zeros((1, keys, 2, 128))
        form = forms.make(query, key, SMALL, 1.0, True)
        visible = Visibility(*(jnp.asarray(side)[None] for side in visible))
        rows = interval_shift.few_rows(visible, form.rows * 16)
        walk = interval_shift.few_walk(visible, rows, form)
    count = rule.sum(1)
    expected = (0 < count) & (count < few)
    assert np.array_equal(rows[0, :queries], expected) and not np.asarray(rows[0, queries:]).any()
    codes = np.asarray(walk.code[: walk.count])
    codes = codes[(codes & intervals.RUN) != 0]
    walked = set(zip((codes >> intervals.ROW_SHIFT).tolist(), forms.column_of(codes).tolist()))
    needed = np.argwhere(rule & expected[:, None]) // (16, 128)
    assert walked >= set(map(tuple, needed.tolist()))
    if not expected.any():
        assert not walked and walk.count == 1


@pytest.mark.parametrize("seen", [2, 16])
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_gradients_of_queries_that_see_few_keys(form, seen, attention_case, distance):
    *arrays, _ = attention_case(1, 64, 8 * seen, 6, 2, 128, seed=seen, dtype=jnp.bfloat16)
    low = jnp.repeat(jnp.arange(0, 64, 8), seen)[None]  # eight queries see the same ones
    visible = Visibility(low, low + 8)
    got = value_and_gradients(FORMS[form], *arrays, visible)
    for name, ours, theirs in zip("oqkv", got, exact(*arrays, visible), strict=True):
        assert distance(ours, theirs) < 3e-3, name


def test_host_and_device_list_the_same_tiles(attention_case):
    query, key, value, grad, visible = attention_case(*SAMPLING)
    host = Visibility(*map(np.asarray, visible))
    listed = intervals.listed(host, query.shape[1], SMALL[:2])
    assert isinstance(listed.steps.code, np.ndarray)
    on_device = jax.jit(lambda v: intervals.listed(v, query.shape[1], SMALL[:2]).steps)(visible)
    for ours, theirs in zip(listed.steps, on_device, strict=True):
        assert np.array_equal(ours, theirs)
    shorter = intervals.listed(host, query.shape[1], SMALL[:2], capacity=3)
    assert shorter.steps.code.shape == (3, 3)
    got = value_and_gradients("pallas", query, key, value, grad, shorter)
    expected = value_and_gradients("pallas", query, key, value, grad, visible)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_pack_with_more_tiles_than_the_capacity_is_named():
    everybody = np.zeros((2, 256), np.int32), np.stack([np.full(256, 30), np.full(256, 8)])
    with pytest.raises(ValueError, match=r"attention_tiles=3: pack 0 has 4; raise it"):
        intervals.listed(Visibility(*everybody), 32, SMALL[:2], capacity=3)


def test_a_traced_list_that_is_too_short_gives_nan(attention_case):
    query, key, value, _, visible = attention_case(*SAMPLING)

    @jax.jit
    def run(visible):
        return attend(query, key, value, intervals.listed(visible, 5, SMALL[:2], 1), "pallas")

    everybody = Visibility(jnp.zeros_like(visible.low), jnp.full_like(visible.high, 5))
    assert np.isnan(run(everybody)).all()


def test_only_visible_tiles_are_walked():
    token = np.arange(256)
    causal = Visibility(token // 8, np.full(256, 32))  # 32 queries x 256 keys
    empty = Visibility(np.zeros(256, int), np.zeros(256, int))
    both = Visibility(*(np.stack(pair).astype(np.int32) for pair in zip(causal, empty)))
    counts = intervals.listed(both, 32, SMALL[:2]).steps.count
    assert counts.tolist() == [1 + 2, 2]  # the empty pack: one step a row, to write zeros


def test_keys_beyond_the_fast_memory_are_taken_in_windows(attention_case, distance, monkeypatch):
    case = attention_case(*SAMPLING)
    expected = exact(*case)
    monkeypatch.setattr(forms, "WINDOW_BYTES", 2 * 4 * 128 * 128)  # one block of keys
    jax.clear_caches()
    form = forms.for_backward(forms.make(case[0], case[1], SMALL, 1.0, True))
    assert (form.per_step, form.columns) == (1, 1)
    for ours, theirs in zip(value_and_gradients("pallas", *case), expected, strict=True):
        assert distance(ours, theirs) < 1e-5
    jax.clear_caches()


def test_last_window_has_tiles_as_large_as_all_others(attention_case, distance, monkeypatch):
    *arrays, _ = attention_case(1, 24, 1218, 2, 1, 8)  # windows of two tiles of 384, then 450 keys
    seen = np.isin(np.arange(1218), [5, 768 + 300])  # of the last ones a key of their first tile
    case = *arrays, Visibility(jnp.zeros((1, 1218), int), jnp.asarray(24 * seen[None]))
    monkeypatch.setattr(forms, "DEFAULT", Block(16, 384))
    monkeypatch.setattr(forms, "WINDOW_BYTES", 2 * 2 * 4 * 384 * 128)
    jax.clear_caches()
    form = forms.for_backward(forms.make(case[0], case[1], forms.DEFAULT, 1.0, True))
    assert (form.block.key, form.columns) == (384, 2)
    for ours, theirs in zip(value_and_gradients("pallas", *case), exact(*case), strict=True):
        assert distance(ours, theirs) < 1e-5
    jax.clear_caches()


def test_it_differentiates_inside_scan_and_remat(attention_case, distance):
    query, key, value, grad, visible = attention_case(1, 20, 130, 2, 1, 8)

    def loss(implementation, weight):
        layer = lambda x, w: (x + attend(x * w, key, value, visible, implementation), None)
        return (jax.lax.scan(jax.checkpoint(layer), query, weight)[0] * grad).sum()

    run = lambda name: jax.jit(jax.grad(functools.partial(loss, name)))(jnp.arange(1.0, 4.0))
    assert distance(run("pallas"), run("reference")) < 1e-5


def test_auto_leaves_the_kernels_to_tpus_and_says_so(attention_case, monkeypatch):
    *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4)
    from inset_jax.kernels import attend as module

    monkeypatch.setattr(module, "IMPLEMENTATIONS", {"pallas": pallas})
    with pytest.raises(NotImplementedError, match="pallas: no TPU"):
        attend(*arrays, visible)


def test_other_dtypes_are_refused(attention_case):
    *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4, dtype=jnp.float16)
    with pytest.raises(NotImplementedError, match="float16"):
        attend(*arrays, visible, "pallas")


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.core.config import MeshConfig
from inset_jax.kernels import interval_form as forms
from inset_jax.kernels.attend import attend

forms.DEFAULT = forms.Block(16, 128)
random = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
low = jnp.asarray(random.integers(0, 30, (2, 140)), jnp.int32)
visible = Visibility(low, low + 8)

def loss(name, q, k, v):
    mixed = attend(q, k, v, visible, name)
    return (mixed ** 2).sum(), mixed

grad = lambda name: jax.jit(jax.value_and_grad(lambda *a: loss(name, *a), (0, 1, 2), True))
case = normal(2, 40, 4, 8), normal(2, 140, 2, 8), normal(2, 140, 2, 8)
expected = grad("reference")(*case)
with jax.set_mesh(mesh.build(MeshConfig(fsdp=2, context=2, tensor=2))):
    for name in ("pallas", "chunked"):
        got = grad(name)(*case)
        assert got[0][1].sharding.shard_shape(got[0][1].shape) == (1, 20, 2, 8)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
            assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name
print("equal")
"""


def test_on_a_mesh_of_packs_queries_and_heads():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, env=os.environ | flags
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
