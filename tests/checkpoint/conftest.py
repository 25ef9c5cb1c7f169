import pathlib
import shutil

import pytest

from inset_jax.checkpoint import bagel, convert

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "tiny_a" / "ckpt"


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def tiny():
    """The golden checkpoint: its config and its parameters as NumPy arrays, not to be changed."""
    return bagel.config_from_bagel(FOLDER), convert.load_bagel(FOLDER)


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden checkpoint's folder that a test may spoil."""
    copy = tmp_path / "bagel"
    shutil.copytree(FOLDER, copy)
    return copy
