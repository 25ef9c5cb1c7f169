import numpy as np
import pytest

from inset_jax.data.fill import fill_packs

CAPACITY = np.array([300, 500, 250, 40, 9])


def make(count: int, seed: int = 0) -> np.ndarray:
    """Examples with 100 und and 167 gen tokens on average, as the capacities have them."""
    random = np.random.default_rng(seed)
    und, gen = random.integers(2, 199, count), random.integers(2, 333, count)
    ones = np.ones(count, int)
    return np.stack([und, gen, und * 3 // 4, random.integers(0, 9, count), ones], axis=1)


def used(lengths: np.ndarray, pack: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(pack, column) for column in lengths.T], axis=1)


@pytest.mark.parametrize("widths", [(), (12, 4)])
def test_every_example_is_in_one_pack_and_no_capacity_is_exceeded(widths):
    lengths = make(700)
    pack = fill_packs(lengths, CAPACITY, 64, widths)
    assert (pack >= 0).all() and set(pack) == set(range(pack.max() + 1))
    assert (used(lengths, pack) <= CAPACITY).all()


def test_the_search_fills_both_streams_and_more_than_first_fit_does():
    lengths = make(3000)
    share = lambda widths: (
        used(lengths, fill_packs(lengths, CAPACITY, widths=widths))[:-100, :2] / CAPACITY[:2]
    ).mean(axis=0)
    assert share((12, 4)).min() > 0.94
    assert share((12, 4)).min() > share(()).min() + 0.02


def test_the_oldest_example_opens_the_next_pack():
    lengths = make(500)
    pack = fill_packs(lengths, CAPACITY, 32)
    for number in range(pack.max()):
        first = np.flatnonzero(pack >= number)[0]  # the oldest that the packs before left
        assert pack[first] == number


def test_none_waits_longer_than_the_window():
    lengths = make(2000)
    lengths[::7, :2] = [290, 480]  # fit with nothing
    pack = fill_packs(lengths, CAPACITY, 32)
    start = np.array([np.flatnonzero(pack == n)[0] for n in range(pack.max() + 1)])
    for number in range(len(start)):
        assert np.flatnonzero(pack == number).max() < start[: number + 1].max() + 32 * 10
    assert (used(lengths, pack) <= CAPACITY).all()


def test_columns_that_cannot_bind_do_not_change_the_packs():
    lengths = make(400)
    wide = CAPACITY.copy()
    wide[2:] = [300, 300, 1000]
    assert np.array_equal(fill_packs(lengths, wide), fill_packs(lengths[:, :2], wide[:2]))
    narrow = CAPACITY.copy()
    narrow[4] = 2
    assert np.bincount(fill_packs(lengths, narrow)).max() == 2


def test_an_example_that_fits_no_pack_is_refused():
    with pytest.raises(AssertionError, match="fits no pack"):
        fill_packs(np.array([[301, 1, 1, 1, 1]]), CAPACITY)
