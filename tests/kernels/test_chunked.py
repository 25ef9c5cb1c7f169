import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core import simulated
from inset_jax.core.batch import Visibility
from inset_jax.kernels import chunked as module
from inset_jax.kernels.attend import attend

# packs, queries, keys, query heads, key-value heads, head width
SHAPES = {
    "one block": (1, 24, 40, 4, 4, 8),
    "odd lengths, grouped heads, packs": (3, 75, 141, 6, 2, 12),
    "queries of a sampling step": (2, 5, 150, 4, 1, 16),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks small enough that short sequences have many."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    monkeypatch.setattr(module, "KEY_BLOCK", 24)
    jax.clear_caches()  # functions traced with other sizes


def value_and_gradients(implementation, query, key, value, grad, visible):
    run = lambda *arrays: attend(*arrays, visible, implementation)
    out, back = jax.vjp(run, query, key, value)
    return out, *back(grad)


def exact(query, key, value, grad, visible):
    """The reference on the same numbers in float32."""
    whole = (x.astype(jnp.float32) for x in (query, key, value, grad))
    return jax.jit(functools.partial(value_and_gradients, "reference"))(*whole, visible)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_reference(shape, attention_case, distance, small_blocks):
    case = attention_case(*SHAPES[shape], seed=len(shape))
    got = jax.jit(functools.partial(value_and_gradients, "chunked"))(*case)
    for name, ours, theirs in zip("oqkv", got, exact(*case), strict=True):
        assert distance(ours, theirs) < 1e-5, name


def test_bfloat16_sums_in_float32(attention_case, distance, small_blocks):
    case = attention_case(2, 75, 141, 6, 2, 32, dtype=jnp.bfloat16)
    got = jax.jit(functools.partial(value_and_gradients, "chunked"))(*case)
    assert all(array.dtype == jnp.bfloat16 for array in got)
    for name, ours, theirs in zip("oqkv", got, exact(*case), strict=True):
        # rounding the inputs' products once is half of this
        assert distance(ours, theirs) < 4e-3, name
    assert distance(got[0], exact(*case)[0]) < 3e-3


def test_rows_that_see_nothing_are_zero_and_pull_on_nothing(attention_case, small_blocks):
    query, key, value, grad, visible = attention_case(2, 75, 141, 4, 2, 8)
    # pack 0: nobody sees anything; pack 1: only queries 20 to 29 see something
    low = jnp.stack([visible.low[0], jnp.full(141, 20)])
    high = jnp.stack([visible.low[0], jnp.full(141, 30)])
    run = jax.jit(functools.partial(value_and_gradients, "chunked"))
    out, *grads = run(query, key, value, grad, Visibility(low, high))
    assert out[1, 20:30].all()
    assert not out[0].any() and not out[1, :20].any() and not out[1, 30:].any()
    assert not grads[0][0].any() and not grads[0][1, :20].any() and not grads[1][0].any()
    assert all(np.isfinite(x).all() for x in grads)


def test_huge_scores_do_not_overflow(attention_case, small_blocks):
    query, key, value, grad, visible = attention_case(1, 40, 60, 2, 1, 8)
    case = (query * 1e4, key * 1e2, value, grad, visible)
    got = jax.jit(functools.partial(value_and_gradients, "chunked"))(*case)
    assert all(np.isfinite(x).all() for x in got)
    np.testing.assert_allclose(got[0], exact(*case)[0], atol=1e-5)


def test_the_scale_is_honoured(attention_case, distance, small_blocks):
    query, key, value, _, visible = attention_case(1, 40, 60, 2, 1, 8)
    run = lambda name: jax.jit(lambda q: attend(q, key, value, visible, name, scale=0.9))(query)
    assert distance(run("chunked"), run("reference")) < 1e-5


@pytest.mark.parametrize("remat", [False, True])
def test_it_differentiates_inside_scan_with_and_without_remat(
    remat, attention_case, distance, small_blocks
):
    query, key, value, grad, visible = attention_case(1, 40, 60, 2, 1, 8)

    def loss(implementation, weight):
        layer = lambda x, w: (x + attend(x * w, key, value, visible, implementation), None)
        layer = jax.checkpoint(layer) if remat else layer
        return (jax.lax.scan(layer, query, weight)[0] * grad).sum()

    run = lambda name: jax.jit(jax.grad(functools.partial(loss, name)))(jnp.arange(1.0, 4.0))
    assert distance(run("chunked"), run("reference")) < 1e-5


def count_products(function, *arguments):
    """Runs it eagerly and counts the score tiles it computes."""
    tiles = []
    original = module._dot

    def counting(equation, left, right):
        if equation == "nrd,nsd->nrs":
            jax.debug.callback(lambda: tiles.append(1))
        return original(equation, left, right)

    module._dot = counting
    try:
        jax.block_until_ready(jax.jit(function)(*arguments))
        jax.effects_barrier()
    finally:
        module._dot = original
    return len(tiles)


def test_only_seen_tiles_are_computed(attention_case, small_blocks):
    query, key, value, _, _ = attention_case(2, 64, 96, 2, 1, 8)  # 4 x 4 tiles a pack
    token = jnp.arange(96)
    causal = Visibility(token * 64 // 96, jnp.full(96, 64))
    one = Visibility(jnp.where(token == 50, 3, 0), jnp.where(token == 50, 5, 0))
    both = Visibility(*(jnp.stack(pair) for pair in zip(causal, one, strict=True)))
    run = lambda *arrays: attend(*arrays, both, "chunked")
    assert count_products(run, query, key, value) == (4 + 3 + 2 + 1) + 1


def temporary_bytes(length, implementation="chunked"):
    """Temporary memory of forward and backward, compiled for this length of queries and keys."""
    array = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    bound = jax.ShapeDtypeStruct((1, length), jnp.int32)
    run = functools.partial(value_and_gradients, implementation)
    compiled = jax.jit(run).lower(array, array, array, array, Visibility(bound, bound)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_linearly_with_length():
    short, long = temporary_bytes(2048), temporary_bytes(8192)
    assert long < 4.5 * short
    assert long < 8192 * 8192 * 4 / 4  # less than a quarter of one head's scores


def test_float64_is_refused(attention_case):
    with jax.enable_x64():
        *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4, dtype=jnp.float64)
        with pytest.raises(NotImplementedError, match="chunked: float64"):
            attend(*arrays, visible, "chunked")
        assert attend(*arrays, visible).dtype == jnp.float64  # the reference takes over


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.core.config import MeshConfig
from inset_jax.kernels.attend import attend
from inset_jax.kernels.cross_entropy import chunked_cross_entropy

assert len(jax.devices()) == 8
random = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
low = jnp.asarray(random.integers(0, 10, (4, 30)), jnp.int32)
visible = Visibility(low, low + 8)
head, label = normal(8, 32), jnp.asarray(random.integers(0, 32, (4, 20)))

def loss(name, q, k, v, hidden, head):
    mixed = attend(q, k, v, visible, name)
    entropy = chunked_cross_entropy(hidden, head, label, 16)
    return (mixed ** 2).sum() + entropy.sum(), mixed

grad = lambda name: jax.jit(jax.value_and_grad(lambda *a: loss(name, *a), (0, 1, 2, 3, 4), True))
# heads that the tensor axis divides, and heads that it does not
for kv_heads in (2, 1):
    case = (normal(4, 20, 4, 8), normal(4, 30, kv_heads, 8), normal(4, 30, kv_heads, 8))
    case += (normal(4, 20, 8), head)
    expected = grad("reference")(*case)
    with jax.set_mesh(mesh.build(MeshConfig(dcn=2, fsdp=2, tensor=2))):
        got = grad("chunked")(*case)
    if kv_heads == 2:
        assert got[0][1].sharding.shard_shape(got[0][1].shape) == (1, 20, 2, 8), got[0][1].sharding
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_on_a_mesh_of_eight_every_device_works_on_its_packs_and_heads():
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        env=os.environ | simulated.several(8),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
