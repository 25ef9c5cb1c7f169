import numpy as np
import pytest
from PIL import Image

from inset_jax.evaluate import table


def test_intervals_cover_the_truth_as_often_as_they_say():
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(200):  # 40 sentences of 3 places that are right or wrong together
        right = np.repeat(draws.random((40, 1)) < 0.7, 3, axis=1)
        found = table.estimate(right.astype(float).tolist())
        covered += found.low <= 0.7 <= found.high
    assert 0.89 < covered / 200 <= 0.99


def test_values_of_a_sentence_stay_together():
    apart = table.estimate([[0.0], [1.0]] * 30)
    together = table.estimate([[0.0] * 3, [1.0] * 3] * 10)
    assert apart.values == together.values == 60 and (apart.sentences, together.sentences) == (
        60,
        20,
    )
    assert together.high - together.low > 1.4 * (apart.high - apart.low)


def test_all_right_is_not_certainty():
    found = table.estimate([[1.0]] * 48)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.926, abs=1e-3)  # Wilson, 48 of 48
    assert table.estimate([[0.0]] * 48).high == pytest.approx(0.074, abs=1e-3)
    half = table.estimate([[1.0, 0.0]] * 10)  # all sentences alike: still no more than ten of them
    assert half.mean == 0.5 and half.low == pytest.approx(0.237, abs=1e-3)
    assert table.estimate([[], []]) is None


def test_columns_average_over_seeds_and_sentences():
    grey, other = (Image.new("RGB", (4, 4), (level,) * 3) for level in (100, 110))
    drawings = [[grey, other], [grey, grey]]

    def outcomes(number, pixels):
        right = float(pixels[0, 0, 0] == 100)
        return {"identity": [right, 1.0], "count": [right] if number else []}

    found = table.columns([grey, grey], drawings, outcomes)
    assert found["identity"].mean == 7 / 8 and found["identity"].values == 8
    assert found["count"] == table.estimate([[], [1.0, 1.0]])
    assert found["PSNR"].mean == pytest.approx((28.13 + 3 * 100) / 4, abs=0.01)


def test_the_table_says_what_was_not_judged():
    row = table.Row("2 references", "as written", {"identity": table.estimate([[1.0], [0.0]] * 8)})
    lines = table.table([row], {"identity": 1 / 64, "count": None})
    assert lines[0] == ["sentences", "drawn", "identity", "count", "PSNR"]
    assert lines[1][2].startswith("50% (") and lines[1][3:] == ["-", "-"]
    assert lines[2] == ["", "chance", "1.6%", "", ""]
    assert table.text(lines).splitlines()[0].startswith("sentences     drawn       identity")
    assert table.to_json([row])[0]["columns"]["identity"]["sentences"] == 16
