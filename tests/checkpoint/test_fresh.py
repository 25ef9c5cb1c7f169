"""Numbers of tensors that no file has."""

import itertools

import numpy as np
import pytest

from inset_jax.checkpoint import fresh

NAMES = {
    "language_model.lm_head.weight": (700, 8),
    "language_model.model.embed_tokens.weight": (700, 8),
    "connector.fc1.bias": (700,),
    "latent_pos_embed.pos_embed": (16, 64),
    "llm2vae.weight": (64, 8),
    "language_model.model.layers.0.input_layernorm.weight": (64,),
}


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_those_of_the_whole(name, monkeypatch):
    monkeypatch.setattr(fresh, "BLOCK", 1000)
    tensor = fresh.Tensor(name, NAMES[name], inputs=4, seed=3)
    count = tensor.shape[0]
    whole = tensor.rows(0, count)
    assert whole.shape == tensor.shape and whole.dtype == np.float32
    cuts = [0, 1, count // 3, count // 2 + 1, count]
    parts = [tensor.rows(low, high) for low, high in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_is_random_depends_on_the_name_and_the_seed():
    one = fresh.Tensor("connector.fc1.weight", (300, 400), inputs=400, seed=0)
    whole = one.rows(0, 300)
    assert 0.049 < whole.max() <= 0.05 and -0.05 <= whole.min() < -0.049
    assert abs(whole.mean()) < 5e-4
    for other in (one._replace(seed=1), one._replace(source="connector.fc2.weight")):
        assert np.mean(other.rows(0, 300) == whole) < 0.01
    table = one._replace(source="language_model.model.embed_tokens.weight").rows(0, 300)
    assert abs(table.std() - 0.02) < 2e-4
