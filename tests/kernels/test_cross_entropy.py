import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.kernels.cross_entropy import chunked_cross_entropy

WORDS = 50


def plain(hidden, head, label):
    logits = (hidden @ head).astype(jnp.float32)
    of_label = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_label


def case(packs, tokens, model=16, dtype=jnp.float32):
    random = np.random.default_rng(packs + tokens)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
    label = jnp.asarray(random.integers(0, WORDS, (packs, tokens)), jnp.int32)
    return normal(packs, tokens, model), normal(model, WORDS), label


def loss_and_gradients(function, hidden, head, label):
    random = np.random.default_rng(0)
    # some tokens without weight, as padding has
    grad = random.standard_normal(label.shape) * (random.random(label.shape) < 0.7)
    loss, back = jax.vjp(lambda hidden, head: function(hidden, head, label), hidden, head)
    return loss, *back(jnp.asarray(grad, jnp.float32))


@pytest.mark.parametrize(
    ("packs", "tokens", "chunk"), [(1, 10, 100), (2, 37, 8), (3, 7, 1)], ids=str
)
def test_loss_and_gradients_equal_the_plain_form(packs, tokens, chunk, distance):
    arrays = case(packs, tokens)
    ours = functools.partial(chunked_cross_entropy, chunk=chunk)
    got = jax.jit(functools.partial(loss_and_gradients, ours))(*arrays)
    expected = loss_and_gradients(plain, *arrays)
    for name, one, other in zip(("loss", "hidden", "head"), got, expected, strict=True):
        assert distance(one, other) < 1e-6, name


def test_bfloat16_gives_a_float32_loss_and_gradients_of_the_inputs_dtype(distance):
    hidden, head, label = case(2, 37, model=64, dtype=jnp.bfloat16)
    ours = functools.partial(chunked_cross_entropy, chunk=16)
    loss, *grads = loss_and_gradients(ours, hidden, head, label)
    assert loss.dtype == jnp.float32 and {grad.dtype for grad in grads} == {hidden.dtype}
    exact = loss_and_gradients(plain, hidden.astype(jnp.float32), head.astype(jnp.float32), label)
    assert distance(loss, exact[0]) < 1e-5  # products of bfloat16 are exact in float32
    assert distance(grads[0], exact[1]) < 5e-3 and distance(grads[1], exact[2]) < 5e-3


def test_no_targets_cost_nothing():
    hidden, head, label = case(2, 0)
    ours = functools.partial(chunked_cross_entropy, chunk=8)
    loss, of_hidden, of_head = loss_and_gradients(ours, hidden, head, label)
    assert loss.shape == (2, 0) and of_hidden.shape == hidden.shape and not of_head.any()


def test_logits_of_a_pack_never_exist_at_once():
    tokens, words, chunk = 4096, 8192, 256
    shapes = [(1, tokens, 16), (16, words)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    ours = functools.partial(chunked_cross_entropy, chunk=chunk)
    run = jax.jit(functools.partial(loss_and_gradients, ours))
    label = jnp.zeros((1, tokens), jnp.int32)
    memory = run.lower(*arrays, label).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * (3 * chunk * words + 8 * tokens * 16) < 4 * tokens * words / 4


def test_wrong_shapes_are_named():
    hidden, head, label = case(2, 5)
    with pytest.raises(ValueError, match=r"hidden \(2, 5, 16\), head \(15, 50\)"):
        chunked_cross_entropy(hidden, head[:15], label, 4)
    with pytest.raises(ValueError, match=r"label \(2, 4\)"):
        chunked_cross_entropy(hidden, head, label[:, :4], 4)
    with pytest.raises(ValueError, match="chunk is 0"):
        chunked_cross_entropy(hidden, head, label, 0)
    with pytest.raises(ValueError, match="hidden float32, head bfloat16"):
        chunked_cross_entropy(hidden, head.astype(jnp.bfloat16), label, 4)
