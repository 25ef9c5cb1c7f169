import functools

import jax
import jax.numpy as jnp
import pytest

from inset_jax.core.batch import Visibility
from inset_jax.kernels import whole as module
from inset_jax.kernels.attend import attend

# packs, queries, keys, query heads, key-value heads, head width
SHAPES = {
    "heads by themselves": (1, 24, 40, 4, 4, 8),
    "odd lengths, grouped heads, packs": (3, 75, 141, 6, 2, 12),
}


def value_and_gradients(implementation, query, key, value, grad, visible):
    run = lambda *arrays: attend(*arrays, visible, implementation)
    out, back = jax.vjp(run, query, key, value)
    return out, *back(grad)


def run(implementation, case):
    return jax.jit(functools.partial(value_and_gradients, implementation))(*case)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_reference(shape, attention_case, distance):
    case = attention_case(*SHAPES[shape], seed=len(shape))
    got, expected = run("whole", case), run("reference", case)
    for name, ours, theirs in zip("oqkv", got, expected, strict=True):
        assert distance(ours, theirs) < 2e-6, name


def test_rows_that_see_nothing_are_zero_and_move_nothing(attention_case):
    query, key, value, grad, _ = attention_case(1, 8, 12, 2, 1, 4)
    nobody = Visibility(jnp.zeros((1, 12), jnp.int32), jnp.zeros((1, 12), jnp.int32))
    for array in run("whole", (query, key, value, grad, nobody)):
        assert not jnp.any(array)


def test_bfloat16_sums_in_float32(attention_case, distance):
    case = attention_case(2, 75, 141, 6, 2, 32, dtype=jnp.bfloat16)
    exact = run("reference", [x.astype(jnp.float32) for x in case[:4]] + [case[4]])
    for name, ours, theirs in zip("oqkv", run("whole", case), exact, strict=True):
        assert ours.dtype == jnp.bfloat16 and distance(ours, theirs) < 4e-3, name


def test_long_packs_are_left_to_others(attention_case, monkeypatch, distance):
    case = attention_case(1, 24, 40, 4, 4, 8)
    monkeypatch.setattr(module, "MOST_SCORES", 24 * 40 - 1)
    with pytest.raises(NotImplementedError, match="24 queries x 40 keys are 960 scores a head"):
        attend(*case[:3], case[4], "whole")
    assert distance(attend(*case[:3], case[4]), attend(*case[:3], case[4], "chunked")) == 0
