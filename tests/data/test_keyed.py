import numpy as np

from inset_jax.data.keyed import keyed, normal


def test_numbers_depend_on_what_they_are_for_alone():
    draw = lambda *key: normal(keyed(*key), (3, 5)).tolist()
    assert draw("a", 1, "x", 2) == draw("a", 1, "x", 2)
    others = [("b", 1, "x", 2), ("a", 2, "x", 2), ("a", 1, "y", 2), ("a", 1, "x", 3)]
    assert len({str(draw(*key)) for key in [("a", 1, "x", 2), *others]}) == 5


def test_normal_numbers_are_normal():
    drawn = normal(keyed("noise", 0, "a", 0), (1000, 1001))
    assert drawn.dtype == np.float32 and drawn.shape == (1000, 1001)
    flat = drawn.astype(np.float64).ravel()
    assert abs(flat.mean()) < 4e-3 and abs(flat.var() - 1) < 6e-3
    assert abs((flat**3).mean()) < 1e-2 and abs((flat**4).mean() - 3) < 4e-2
    inside = [(abs(flat) < bound).mean() for bound in (0.5, 1, 2, 3)]
    assert np.allclose(inside, [0.38292, 0.68269, 0.9545, 0.9973], atol=2e-3)
    # the two numbers of a pair, and neighbours, have nothing to do with each other
    half = len(flat) // 2
    for one, two in ((flat[:half], flat[half : 2 * half]), (flat[:-1], flat[1:])):
        assert abs(np.corrcoef(one, two)[0, 1]) < 4e-3
        assert abs(np.corrcoef(one**2, two**2)[0, 1]) < 4e-3


def test_odd_and_empty_shapes():
    for shape in [(1,), (3,), (5, 7), (0, 4)]:
        assert normal(keyed("x", 0, "", 0), shape).shape == shape
