"""What a run writes, and how it goes on writing after an interruption."""

import numpy as np
import pytest

from inset_jax.train import curves, metrics


def test_records_after_the_restored_step_are_dropped(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": step / 10})
    writer.close()
    with open(tmp_path / metrics.JSONL, "a") as file:
        file.write('{"step": 4, "phase": "tr')  # killed while writing
    writer = metrics.Writer(tmp_path, 2)
    writer.write(3, "train", {"loss": 0.5})
    writer.close()
    assert [(r["step"], r["loss"]) for r in metrics.read(tmp_path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.5),
    ]


def test_event_files_are_written(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer.write(1, "train", {"loss": 1.0})
    writer.picture(1, "preview", np.zeros((8, 8, 3), np.uint8))
    writer.close()
    assert any((tmp_path / metrics.EVENTS).iterdir())


def test_losses_by_kind_are_weighted_means_over_all_packs():
    sums = metrics.KindSums()
    entropy = np.array([[4.0, 0.0, 9.0], [1.0, 0.0, 0.0]])
    entropy_weight = np.array([[2.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
    flow = np.array([[0.0, 5.0, 1.0], [0.0, 0.0, 0.0]])
    flow_weight = np.array([[0.0, 10.0, 10.0], [0.0, 0.0, 0.0]])
    examples = [[("a", "answer"), ("b", "draw"), ("c", "draw")], [("d", "answer")]]
    sums.add((entropy, entropy_weight, flow, flow_weight), examples)
    means = sums.means()
    assert means == pytest.approx(
        {
            "flow": 6 / 20,
            "cross_entropy": 14 / 6,
            "cross_entropy/answer": 5 / 3,
            "flow/draw": 6 / 20,
            "cross_entropy/draw": 3.0,
        }
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_spelled(seconds, text):
    assert metrics.spell(seconds) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-3, 41), (0, 15000), (2, 2)])
def test_ticks_enclose_the_range_with_few_round_numbers(low, high):
    found = curves.ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 8


def test_curves_are_drawn(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in range(1, 40):
        writer.write(step, "train", {"flow": 1 / step, "cross_entropy": 3 / step})
        if step % 10 == 0:
            writer.write(step, "validation", {"flow": 1.2 / step})
    writer.close()
    path = curves.draw_run(tmp_path, tmp_path / "curves.png")
    with curves.Image.open(path) as image:
        assert image.size == (curves.PANEL[0], 2 * curves.PANEL[1])
        assert len(image.getcolors(1 << 20)) > 50


def test_run_without_records_has_no_curves(tmp_path):
    assert curves.draw_run(tmp_path, tmp_path / "curves.png") is None


def test_progress_has_rates_once_a_step_has_passed():
    values = {"loss": 1.0, "flow": 0.5, "cross_entropy": 2.0, "learning_rate": 1e-4}
    clock = metrics.Clock(3)
    assert clock.read(3, 10) == {}
    told = {**clock.read(4, 10), "tokens_per_second": 500.0}
    line = metrics.progress_line(4, 10, {**values, **told})
    assert line.startswith("step  4/10  loss 1.0000  flow 0.5000  ce 2.0000")
    assert "500 tokens/s" in line and "MFU" not in line
    assert "MFU 41.3%" in metrics.progress_line(4, 10, {**values, **told, "mfu": 0.4131})
    assert "tokens/s" not in metrics.progress_line(4, 10, values)


def test_flow_by_time_names_the_part_and_leaves_out_empty_ones():
    means = metrics.by_time(np.asarray([3.0, 0.0, 1.0, 0.0]), np.asarray([2.0, 0.0, 4.0, 0.0]))
    assert means == {"flow_at/0-0.25": 1.5, "flow_at/0.5-0.75": 0.25}
