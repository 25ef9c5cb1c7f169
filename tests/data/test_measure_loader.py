import numpy as np
import pytest

from configs.inset_7b import experiment
from inset_jax.core.config import edit
from inset_jax.data import bagel_way, measure_loader


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_loader, "POOL", 3)
        return measure_loader.make_records(experiment(), tmp_path_factory.mktemp("made"), 20)


def test_the_loader_is_measured_beside_pil_and_bagels_way(config):
    figures = measure_loader.speed(config, 2, 1)
    rates = figures["tokens_per_second_and_core"]
    assert set(rates) == {"ours", "plain", "bagel", "bagel_dense"} and min(rates.values()) > 0
    parts = figures["milliseconds_a_pack"]
    assert parts["decode"] > 0 and parts["resize"] > 0 and parts["read"] > 0
    text = measure_loader.table(figures)
    assert "where the time goes" in text and "cores" in text
    slow = {**figures, "of_plain": 0.5, "of_bagel": 3.0}
    assert measure_loader.misses(slow) == ["of_plain: 0.50, expected 0.9"]


def test_bagels_way_packs_the_tokens_of_our_layout(config):
    """Without dropout both count the same tokens for the same examples."""
    config = edit(config, **{f"data__dropout__{n}": 0.0 for n in vars(config.data.dropout)})
    bench = measure_loader.Bench(config, 1)
    examples = [(bench.read(draw), draw.epoch) for draw in bench.draws]
    total = bench.tokens * 9 // 8  # done with the last of them
    made = list(bagel_way.batches(examples, bench.tokenizer, config, total, dense=True))
    (batch, tokens) = made[0]
    assert tokens == bench.tokens == len(batch["positions"])
    assert len(batch["masks"]) == len(examples)
    assert len(batch["text_at"]) + len(batch["vit_at"]) + len(batch["vae_at"]) == tokens


def test_a_dense_mask_hides_the_future_and_the_noise():
    mask = bagel_way.dense_mask([(2, "text"), (2, "target"), (1, "text")]) == 0
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert np.array_equal(mask, np.array(expected, bool))


def test_growth_is_of_the_second_half():
    curve = [(n, 100.0 + min(n, 10) * 50) for n in range(40)]
    assert abs(measure_loader.growth(curve)) < 1e-6
    assert measure_loader.growth([(n, n * 2.0) for n in range(40)]) == pytest.approx(120)
