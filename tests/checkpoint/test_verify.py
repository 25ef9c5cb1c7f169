import ml_dtypes
import numpy as np
import pytest

from inset_jax.checkpoint import names, verify
from inset_jax.checkpoint.progress import Progress
from inset_jax.checkpoint.stored import Checkpoint
from tests.checkpoint.folders import FOLDER, cast, change, inward

GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


def compare(a, b):
    quiet = Progress("", 1, quiet=True)
    models = [verify.open_model(path) for path in (a, b)]
    return verify.summary(list(verify.compare(*models, quiet)))


def test_both_forms_of_a_model_are_equal(converted, folder):
    for a, b in ((converted, folder), (folder, converted), (converted, converted)):
        found = compare(a, b)
        assert (found["equal"], found["tensors"]) == (287, 287) and not found["different"]
        assert found["largest_difference"] == 0


def test_every_kind_of_difference_is_named(converted, folder):
    def spoil(found):
        found[GATE][3, 5] += 0.25
        found["vae2llm.bias"][0] = np.nan
        found["llm2vae.bias"] = found["llm2vae.bias"].astype(np.float16)
        found["llm2vae.weight"] = np.ascontiguousarray(found["llm2vae.weight"][:, :-1])
        found["connector.fc1.bia"] = found.pop("connector.fc1.bias")

    change(folder, spoil)
    found = compare(converted, folder)
    by_name = {entry["name"]: entry for entry in found["different"]}
    assert found["equal"] == 287 - 5 and len(by_name) == 6
    assert by_name[GATE]["found"] == "1 number unequal"
    assert abs(by_name[GATE]["largest"] - 0.25) < 1e-6
    assert by_name["vae2llm.bias"]["largest"] == np.inf
    assert by_name["llm2vae.bias"]["found"].startswith("float32 in A, float16 in B; ")
    assert by_name["llm2vae.weight"]["found"] == "shape [64, 64] in A, [64, 63] in B"
    assert by_name["connector.fc1.bias"]["found"] == "missing in B (nearest: connector.fc1.bia)"
    assert by_name["connector.fc1.bia"]["found"] == "missing in A (nearest: connector.fc1.bias)"


def test_equal_numbers_of_other_bits_are_not_equal(folder, tmp_path):
    change(folder, lambda found: found["vae2llm.bias"].__setitem__(0, 0.0))
    inward(folder, tmp_path / "orbax")
    change(folder, lambda found: found["vae2llm.bias"].__setitem__(0, -0.0))
    found = compare(tmp_path / "orbax", folder)
    assert [entry["found"] for entry in found["different"]] == ["1 number unequal"]
    assert found["largest_difference"] == 0


def test_tensors_are_read_in_parts_like_in_one(converted, tmp_path, folder):
    cast(folder, ml_dtypes.bfloat16)
    inward(folder, tmp_path / "half")
    for path, weights in ((converted, FOLDER), (tmp_path / "half", folder)):
        one, two = Checkpoint(path), verify.open_model(weights)
        for name in (GATE, "language_model.lm_head.weight", names.PATCH_WEIGHT, "vae2llm.bias"):
            assert (one[name].shape, one[name].dtype) == (two[name].shape, two[name].dtype)
            part = one.rows(name, 7, 19)
            assert part.flags.c_contiguous and part.tobytes() == two.rows(name, 7, 19).tobytes()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: is no folder"):
        verify.open_model(tmp_path / "nowhere")
