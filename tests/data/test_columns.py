import pickle

import numpy as np
import pytest

from inset_jax.data import columns
from inset_jax.data.columns import Labels, Strings

WORDS = ["one", "", "zwölf", "one"]


@pytest.mark.parametrize("kind", [Strings, Labels])
def test_strings_come_back(kind):
    found = kind.of(WORDS)
    assert list(found) == WORDS and len(found) == 4
    assert found[-1] == "one" and found[1:3] == ["", "zwölf"]
    assert list(found.take(np.array([2, 0]))) == ["zwölf", "one"]
    assert list(pickle.loads(pickle.dumps(found))) == WORDS


def test_a_folder_is_written_once_and_read_by_memory_map(tmp_path):
    folder = tmp_path / "a" / "b"
    assert columns.load(folder) is None
    columns.save(folder, {"x": np.arange(5)}, {"name": "first"})
    columns.save(folder, {"x": np.arange(9)}, {"name": "second"})  # too late: the first one stays
    arrays, meta = columns.load(folder)
    assert isinstance(arrays["x"].base, np.memmap) and arrays["x"].tolist() == [0, 1, 2, 3, 4]
    assert meta == {"name": "first"} and [p.name for p in folder.parent.iterdir()] == ["b"]


def test_a_damaged_folder_is_named(tmp_path):
    columns.save(tmp_path / "b", {"x": np.arange(5)}, {})
    (tmp_path / "b" / "x.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b: damaged .*remove it"):
        columns.load(tmp_path / "b")
