import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inset_jax.core import visibility
from inset_jax.core.batch import Visibility
from inset_jax.core.visibility import CAUSAL, FULL, NOISE, Segments

segment = st.tuples(st.integers(1, 5), st.sampled_from([CAUSAL, FULL, NOISE]), st.integers(0, 1))


@st.composite
def packs(draw):
    """Random segments; an example ends where the third draw says so."""
    rows = draw(st.lists(segment, min_size=1, max_size=12))
    length, kind, ends = (np.asarray(column) for column in zip(*rows))
    return Segments(length, kind, np.concatenate([[0], np.cumsum(ends)[:-1]]))


@settings(max_examples=300, deadline=None)
@given(packs())
def test_intervals_equal_the_dense_rule(segments):
    intervals = visibility.reading_intervals(segments)
    total = int(segments.length.sum())
    rule = visibility.dense_rule(segments)
    assert np.array_equal(visibility.dense(intervals, total), rule)


@settings(max_examples=200, deadline=None)
@given(packs(), st.randoms())
def test_any_subset_of_queries_keeps_its_rows_of_the_mask(segments, random):
    total = int(segments.length.sum())
    chosen = np.asarray([random.random() < 0.5 for _ in range(total)])
    intervals = visibility.for_queries(visibility.reading_intervals(segments), chosen)
    rule = visibility.dense_rule(segments)[chosen]
    assert np.array_equal(visibility.dense(intervals, int(chosen.sum())), rule)


def test_a_target_is_seen_by_nobody_outside_and_sees_everything_before():
    segments = Segments(np.asarray([2, 3, 2]), np.asarray([CAUSAL, NOISE, CAUSAL]), np.zeros(3))
    mask = visibility.dense(visibility.reading_intervals(segments), 7)
    assert mask[2:5, :5].all() and not mask[5:, 2:5].any() and mask[5:, :2].all()


@settings(max_examples=200, deadline=None)
@given(packs(), st.randoms(), st.integers(1, 9), st.integers(1, 9))
def test_tiles_say_what_the_mask_holds(segments, random, query_block, key_block):
    total = int(segments.length.sum())
    chosen = np.asarray([random.random() < 0.7 for _ in range(total)] + [True])[:total]
    intervals = visibility.for_queries(visibility.reading_intervals(segments), chosen)
    queries = int(chosen.sum())
    padding = (0, -total % key_block)
    intervals = Visibility(*(np.pad(side, padding) for side in intervals))
    tiles = visibility.tiles(intervals, queries, query_block, key_block)
    mask = visibility.dense(intervals, queries)
    for row, column in np.ndindex(tiles.seen.shape):
        tile = mask[row * query_block :, column * key_block :][:query_block, :key_block]
        assert tiles.seen[row, column] == tile.any()
        assert tiles.whole[row, column] == tile.all()


def test_a_schedule_visits_whole_tiles_then_the_other_seen_ones():
    seen = np.asarray([[True, True, False, True], [False, False, True, False], [False] * 4])
    whole = np.asarray([[False, True, False, False], [False, False, True, False], [False] * 4])
    order = visibility.schedule(visibility.Tiles(seen, whole))
    assert order.column.tolist() == [[1, 0, 3, 2], [2, 0, 1, 3], [0, 1, 2, 3]]
    assert order.whole.tolist() == [1, 1, 0] and order.seen.tolist() == [3, 1, 0]


def test_traced_arrays_give_the_same_tiles():
    intervals = Visibility(np.asarray([[0, 1, 4, 0]]), np.asarray([[6, 6, 5, 0]]))
    run = lambda intervals: visibility.schedule(visibility.tiles(intervals, 6, 4, 2))
    for ours, theirs in zip(jax.jit(run)(intervals), run(intervals), strict=True):
        assert np.array_equal(ours, theirs)
