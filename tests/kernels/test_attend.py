import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core import visibility as intervals
from inset_jax.core.batch import Visibility
from inset_jax.kernels import attend as module
from inset_jax.kernels.attend import attend, reference


def refuse(reason):
    def implementation(*arguments):
        raise NotImplementedError(reason)

    return implementation


def by_hand(query, key, value, seen, scale):
    """Attention one query and head at a time, float64; `seen` is bool [P, Q, K]."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for pack, row, head in np.ndindex(*query.shape[:3]):
        of = head // (query.shape[2] // key.shape[2])
        keys = np.flatnonzero(seen[pack, row])
        if len(keys):
            score = np.exp(key[pack, keys, of] @ query[pack, row, head] * scale)
            out[pack, row, head] = score @ value[pack, keys, of] / score.sum()
    return out


def test_reference_is_softmax_over_the_seen_keys_of_the_own_group(attention_case, distance):
    query, key, value, _, visible = attention_case(2, 9, 14, 6, 2, 4)
    seen = np.stack([intervals.dense(Visibility(*side), 9) for side in zip(*visible, strict=True)])
    assert not seen.any(-1).all() and seen.any()
    expected = by_hand(query, key, value, seen, scale=0.5)
    assert distance(reference(query, key, value, visible, 0.5), expected) < 1e-6
    assert distance(attend(query, key, value, visible, "reference"), expected) < 1e-6


def test_auto_takes_the_first_that_does_not_refuse(attention_case, monkeypatch):
    *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4)
    table = {"first": refuse("too small"), "second": lambda q, *_: q, "third": refuse("never")}
    monkeypatch.setattr(module, "IMPLEMENTATIONS", table)
    assert attend(*arrays, visible) is arrays[0]
    with pytest.raises(NotImplementedError, match=r"refused by third: never$"):
        attend(*arrays, visible, "third")


def test_all_refusals_are_listed(attention_case, monkeypatch):
    *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4)
    table = {"fast": refuse("head 72: pad to 128"), "slow": refuse("float64")}
    monkeypatch.setattr(module, "IMPLEMENTATIONS", table)
    with pytest.raises(NotImplementedError, match="fast: head 72: pad to 128; slow: float64"):
        attend(*arrays, visible)


def test_an_unknown_name_is_refused_with_the_list(attention_case):
    *arrays, _, visible = attention_case(1, 8, 8, 2, 1, 4)
    with pytest.raises(ValueError, match=r"'dense'.*'auto'.*'chunked', 'reference'"):
        attend(*arrays, visible, "dense")


def test_shapes_that_do_not_fit_are_named(attention_case):
    query, key, value, _, visible = attention_case(1, 8, 12, 2, 1, 4)
    for wrong, message in (
        ((query[0], key, value, visible), r"expects query \[P, Q, H, D\].*query \(8, 2, 4\)"),
        ((query, key, value[:, :9], visible), r"value \(1, 9, 1, 4\)"),
        ((query[..., :3], key, value, visible), "head widths differ"),
        ((query, key.repeat(3, 2), value.repeat(3, 2), visible), "no multiple"),
        ((query.astype(jnp.bfloat16), key, value, visible), "bfloat16, float32, float32"),
        ((query, key, value, Visibility(visible.low, visible.high[:, :8])), r"high \(1, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(*wrong)


def test_no_queries_and_no_keys_give_zeros(attention_case):
    query, key, value, _, visible = attention_case(1, 8, 12, 2, 1, 4)
    nothing = Visibility(visible.low[:, :0], visible.high[:, :0])
    assert attend(query[:, :0], key, value, visible).shape == (1, 0, 2, 4)
    assert not attend(query, key[:, :0], value[:, :0], nothing).any()


def test_reference_has_finite_gradients_where_nothing_is_seen(attention_case):
    query, key, value, _, visible = attention_case(1, 8, 12, 2, 1, 4)
    unseen = Visibility(jnp.zeros_like(visible.low), jnp.zeros_like(visible.high))
    loss = lambda *arrays: attend(*arrays, unseen, "reference").sum()
    for grad in jax.jit(jax.grad(loss, (0, 1, 2)))(query, key, value):
        assert not grad.any()
