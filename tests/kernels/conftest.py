"""Random packs of queries, keys and intervals, and what counts as equal."""

import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core.batch import Visibility
from inset_jax.core.visibility import CAUSAL, FULL, NOISE, Segments, for_queries, reading_intervals


def random_pack(random, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of all tokens over a random choice of them; a fifth of the keys is padding."""
    lengths = random.multinomial(keys - keys // 5, np.ones(7) / 7)
    lengths = np.append(lengths[lengths > 0], 0)
    kinds = random.choice([CAUSAL, FULL, NOISE], len(lengths))
    examples = np.sort(random.integers(0, 3, len(lengths)))
    intervals = reading_intervals(Segments(lengths, kinds, examples))
    is_query = np.zeros(len(intervals.low), bool)
    is_query[random.permutation(len(is_query))[: queries - queries // 6]] = True
    padding = (0, keys - len(is_query))
    return tuple(np.pad(x, padding).astype(np.int32) for x in for_queries(intervals, is_query))


@pytest.fixture
def attention_case():
    """Returns (packs, queries, keys, heads, kv_heads, width, seed) -> (q, k, v, grad, Visibility).

    Padding queries, padding keys and queries that see nothing are among them.
    """

    def build(packs, queries, keys, heads, kv_heads, width, seed=0, dtype=jnp.float32):
        random = np.random.default_rng(seed)
        normal = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
        sides = zip(*(random_pack(random, queries, keys) for _ in range(packs)), strict=True)
        return (
            normal(packs, queries, heads, width),
            normal(packs, keys, kv_heads, width),
            normal(packs, keys, kv_heads, width),
            normal(packs, queries, heads, width),
            Visibility(*(jnp.asarray(np.stack(side)) for side in sides)),
        )

    return build


@pytest.fixture
def distance():
    """Returns a function: relative root mean square of the difference, in float64."""

    def relative(got, expected) -> float:
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))

    return relative
