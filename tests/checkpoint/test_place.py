import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from inset_jax.checkpoint import provenance
from inset_jax.checkpoint.errors import Unwritable
from inset_jax.checkpoint.place import Place
from tests.checkpoint import object_store
from tests.checkpoint.folders import FOLDER, contents

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory"])
def somewhere(request, tmp_path):
    if request.param == "local":
        return Place(tmp_path / "a #? %20 b")  # no character is special
    return Place(f"memory://{tmp_path.name}/a")


def test_files_are_written_read_listed_and_removed(somewhere):
    assert somewhere.keys() == [] and somewhere.read("x/y") is None
    somewhere.write("x/y", b"one")
    somewhere.write("x/y", b"two")
    somewhere.inside("x").write("z", np.arange(3, dtype=np.uint8))
    somewhere.write("w", b"")
    assert somewhere.keys() == ["w", "x/y", "x/z"] and somewhere.keys("x/") == ["x/y", "x/z"]
    assert (somewhere.read("x/y"), somewhere.read("x/z")) == (b"two", b"\x00\x01\x02")
    somewhere.remove("x/")
    assert somewhere.keys() == ["w"] and somewhere.read("w") == b""


def test_what_is_read_back_must_be_what_was_written(somewhere):
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    somewhere.write("x", data)
    import zlib

    assert somewhere.check("x", data) == zlib.crc32(data)
    for other in (data[:-1], np.append(data, data[:1]), data ^ (np.arange(3_000_000) == 2_500_000)):
        with pytest.raises(Unwritable, match="read back otherwise"):
            somewhere.check("x", other.astype(np.uint8))


def test_a_file_that_is_not_whole_has_another_name(tmp_path, monkeypatch):
    place = Place(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        place.write("x", b"abc")
    assert place.keys() == [] and place.read("x") is None
    monkeypatch.undo()
    place.write("x", b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


THERE_AND_BACK = """
import sys
from inset_jax.checkpoint import describe
from tests.checkpoint.folders import FOLDER, inward, outward
inward(FOLDER, sys.argv[1], mesh=(("fsdp", 1),))  # few pieces: few requests
found = describe.describe(sys.argv[1])
outward(sys.argv[1], sys.argv[2])
print(found["kind"], found["tensors"])
"""


def test_an_object_store_takes_a_checkpoint_and_gives_it_back(tmp_path, monkeypatch):
    """TensorStore's own driver for gs://, against a stand-in: the real store was not tried."""
    server, target = object_store.serve(), "gs://bucket/run 1/tiny"
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    try:
        command = [sys.executable, "-c", THERE_AND_BACK, target, str(tmp_path / "back")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == ["checkpoint", "287"], done.stderr
    finally:
        server.shutdown()
    stored = object_store.Handler.objects
    assert "run 1/tiny/0/commit_success.txt" in stored
    assert not [name for name in stored if "unfinished" in name or "tmp" in name]
    assert contents(tmp_path / "back").items() >= contents(FOLDER).items()
    chain = json.loads((tmp_path / "back" / provenance.KEPT).read_text())["provenance"]
    assert chain[-1]["folder"] == target
