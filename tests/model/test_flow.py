from pathlib import Path

import numpy as np
import pytest

from inset_jax.model import flow


def test_n_points_are_n_minus_one_evaluations_that_end_at_zero():
    t, dt = flow.schedule(8, shift=3.0)
    assert len(t) == len(dt) == 7 and t[0] == 1.0
    np.testing.assert_allclose(t[-1] - dt[-1], 0.0, atol=1e-7)


def test_the_points_are_the_reference_s_to_the_last_bit():
    """A guidance interval may end on a point: then one bit decides whether guidance acts."""
    stored = np.load(Path(__file__).parents[1] / "golden" / "common" / "tables.npz")
    found = [name.split("_") for name in stored if name.startswith("schedule_") and name[-1] == "t"]
    assert len(found) == 8
    for _, count, shift, kind in found:
        t, dt = flow.schedule(int(count[1:]), float(shift[5:]))
        ours = {"t": t, "dt": dt}[kind]
        np.testing.assert_array_equal(ours, stored[f"schedule_{count}_{shift}_{kind}"])


def test_one_point_is_refused():
    with pytest.raises(ValueError, match="num_timesteps=1: at least 2"):
        flow.schedule(1, 3.0)


def test_a_clean_latent_has_time_zero():
    t = flow.timestep(np.asarray([-np.inf, 0.0], np.float32), shift=3.0)
    np.testing.assert_allclose(t, [0.0, 0.75])


@pytest.mark.parametrize("kind", ["velocity", "clean"])
def test_the_exact_prediction_gives_the_exact_velocity(kind):
    random = np.random.default_rng(0)
    x0, eps = random.standard_normal((2, 5, 4)).astype(np.float32)
    t = np.asarray([0.01, 0.3, 0.5, 0.9, 1.0], np.float32)
    x_t = flow.interpolate(x0, eps, t)
    v = flow.to_velocity(flow.target(x0, eps, kind), x_t, t, kind)
    np.testing.assert_allclose(v, eps - x0, rtol=2e-3, atol=2e-4)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'velocity' or 'clean'"):
        flow.to_velocity(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), "epsilon")
