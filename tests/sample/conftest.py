import pytest

from inset_jax.sample.plan import Request
from tests.sample.small import CONFIG, image, make_sampler, picture, text


@pytest.fixture(scope="session")
def sampler():
    return make_sampler(CONFIG)


@pytest.fixture(scope="session")
def requests():
    """A sentence with two images, one without, an edit; different lengths and sizes."""
    return [
        Request((text(1, 2), image(1), text(3), image(2, 28, 28)), (picture(1),), (4.0, 1.5)),
        Request((text(7, 8, 9),), (picture(2, 3, 1), picture(3, 3, 1)), (4.0, 1.0)),
        Request(
            (image(3, 32, 32, "clean"), image(3, 28, 28), text(5, 6)), (picture(4, 2, 2),), (2.0, 3)
        ),
    ]
