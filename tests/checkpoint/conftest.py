import os
import resource
import shutil
import subprocess

import pytest

from inset_jax.checkpoint import bagel, convert
from tests.checkpoint.folders import FOLDER, GOLDEN, inward


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


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The golden checkpoint, converted; not to be changed."""
    target = tmp_path_factory.mktemp("converted") / "orbax"
    inward(FOLDER, target)
    return target


@pytest.fixture(params=["full disk", "file size limit"])
def cramped(request, tmp_path):
    """A folder in which one small checkpoint fits, and a large one does not."""
    if request.param == "file size limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        yield tmp_path, "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path, "No space left on device"
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)
