"""Every golden array passes, and every compared one can fail."""

import json
from pathlib import Path

import numpy as np
import pytest

from inset_jax.parity import report, table
from tools import parity

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = report.files(GOLDEN)


# arrays that no comparison has a use for, though the table knows such names: (name, like which)
UNREAD = {
    "transforms.npz": (
        ("other/params_max_min_stride_maxpixels", "input_wh"),
        ("pixels9/input_uint8_hwc", "pixels0/input_uint8_hwc"),
    ),
    "vae.npz": (("latent9", "latent2"),),
    "train_forward.npz": (("sample9_image7", "sample0_image1"), ("sample1_image9", "noise")),
    "generate.npz": (("ctx/item9_vit", "ctx/item1_vit"), ("stock/item0_vae", "stock/item1_vae")),
}


@pytest.fixture(scope="module")
def replayed():
    """Each file is replayed once; the tests share what came out.

    The arrays of UNREAD are there while it is, and gone afterwards; what was read is noted.
    """
    cache = {}

    def get(path):
        if path not in cache:
            golden = report.load(path)
            more = {name: golden.arrays[like] for name, like in UNREAD.get(path.name, ())}
            golden, ours = report.replay(golden._replace(arrays={**golden.arrays, **more}))
            for name in more:
                del golden.arrays[name]
            cache[path] = golden, ours
        return cache[path]

    return get


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_compared_array_is_within_its_bar(path, replayed):
    golden, ours = replayed(path)
    results = list(report.check(golden, ours))
    assert results and [report.line(r) for r in results if not r.passed] == []


def changed(golden: report.Golden, **arrays) -> report.Golden:
    """The file with other arrays, or more of them, than those it was replayed with."""
    notes = golden.arrays.read
    return golden._replace(arrays=report.Arrays({**golden.arrays, **arrays}, notes))


def spoiled(role: str, array: np.ndarray) -> np.ndarray:
    """The array with the smallest change that its bar has to notice."""
    array = np.array(array)
    if not array.size:
        return np.zeros((1, *array.shape[1:]), array.dtype)
    if array.dtype.kind in "US":
        return np.asarray(str(array) + " ")
    flat = array.reshape(-1)
    if role == table.EXACT:
        flat[0] = not flat[0] if array.dtype == bool else flat[0] + 1
    elif role == table.LEVEL:
        flat[0] = flat[0] + 2 if flat[0] < 128 else flat[0] - 2
    elif role == table.ZERO or not np.isfinite(flat).any():
        flat[0] = 2 * table.ZERO_BAR
    else:
        finite = np.isfinite(flat)
        size = np.linalg.norm(flat[finite].astype(np.float64))
        flat[np.argmax(finite)] += 2 * table.FORWARD_BAR * max(size, 1.0 if not size else 0.0)
    return flat.reshape(array.shape)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_command_fails_for_each_array_that_is_changed(path, replayed, monkeypatch, capsys):
    golden, ours = replayed(path)
    monkeypatch.setattr(report, "files", lambda folder: [path])
    monkeypatch.setattr(report, "load", lambda path: golden)
    arguments = ["--golden", str(GOLDEN), "--quiet"]
    monkeypatch.setattr(report, "replay", lambda loaded: (golden, ours))
    assert parity.main(arguments) == 0
    compared = [n for n in golden.arrays if table.role_of(path.name, n) in table.COMPARED]
    worsened = {n: spoiled(table.role_of(path.name, n), golden.arrays[n]) for n in compared}
    for name, worse in worsened.items():
        assert not report.compare(path.name, name, ours[name], worse).passed, name
    if path.name.startswith("manifest"):
        compared = compared[::50]  # a thousand shapes, each compared with all the others every time
    for name in compared:
        wrong = changed(golden, **{name: worsened[name]})
        monkeypatch.setattr(report, "replay", lambda loaded, wrong=wrong: (wrong, ours))
        assert parity.main(arguments) == 1, name
        assert f"{path.name}:{name} " in capsys.readouterr().out


def test_an_array_without_a_role_fails(replayed):
    path = GOLDEN / "tiny_a" / "vit.npz"
    golden, ours = replayed(path)
    more = changed(golden, mystery=np.zeros(3))
    (failed,) = (r for r in report.check(more, ours) if not r.passed)
    assert "'mystery' has no role" in failed.found


@pytest.mark.parametrize("path", [p for p in FILES if p.name in UNREAD], ids=lambda p: p.name)
def test_an_input_that_no_comparison_reads_fails(path, replayed):
    """Its name is one that the table knows: nobody would miss what was never compared."""
    golden, ours = replayed(path)
    more = {name: golden.arrays[like] for name, like in UNREAD[path.name]}
    failed = {r.array: r.found for r in report.check(changed(golden, **more), ours) if not r.passed}
    assert failed == dict.fromkeys(more, "an input that no comparison reads")


def test_the_command_names_an_input_whose_comparisons_are_gone(tmp_path, capsys):
    arrays = report.load(GOLDEN / "common" / "tables.npz").arrays
    arrays = {n: a for n, a in arrays.items() if not n.startswith("timestep_freq")}
    np.savez(tmp_path / "tables.npz", **arrays)
    assert parity.main(["--golden", str(tmp_path), "--quiet"]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "FAIL" in line)
    assert line.startswith("tables.npz:timestep_t ")
    assert line.endswith("FAIL an input that no comparison reads")


def test_more_words_in_a_json_file_fail_and_so_do_inputs_of_no_case(replayed):
    golden = report.load(GOLDEN / "common" / "packing.json")
    more = golden._replace(arrays={**golden.arrays, "mystery": 1})
    (failed,) = (r for r in report.check(*report.replay(more)) if not r.passed)
    assert "'mystery' has no role" in failed.found
    more = changed(replayed(golden.path)[0], **{"other/plan": np.zeros(3)})
    (failed,) = (r for r in report.check(more, replayed(golden.path)[1]) if not r.passed)
    assert (failed.array, failed.found) == ("other/plan", "an input that no comparison reads")


@pytest.mark.parametrize("what", ["param", "ema", "param_l2"])
def test_what_is_of_rounding_noise_has_to_be_ours_all_the_same(what, replayed):
    golden, ours = replayed(GOLDEN / "tiny_a" / "train_steps.npz")
    layer = "vit_model.vision_model.encoder.layers.{}.self_attn.k_proj.bias"
    known, unknown = (f"{what}/{layer.format(n)}" for n in ("0", "X"))
    value = np.asarray(ours[known]) + 1
    more = changed(golden, **{known: value, unknown: value})
    (failed,) = (r for r in report.check(more, ours) if not r.passed)
    assert (failed.array, failed.found) == (unknown, "not replayed")
    wrong = changed(golden, **{known: np.zeros((2, 2))})
    (failed,) = (r for r in report.check(wrong, ours) if not r.passed)
    assert (failed.array, failed.found) == (known, f"shape {value.shape}")


def test_an_array_that_the_replay_does_not_produce_fails(replayed):
    golden, ours = replayed(GOLDEN / "tiny_a" / "vit.npz")
    less = {name: value for name, value in ours.items() if name != "final"}
    (failed,) = (r for r in report.check(golden, less) if not r.passed)
    assert (failed.array, failed.found) == ("final", "not replayed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: folder, "no golden file in it"),
        (lambda folder: (folder / "weights.npz").touch() or folder, "not a golden file"),
        (lambda folder: (folder / "vit.npz").touch() or folder, "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(make, message, tmp_path, capsys):
    assert parity.main(["--golden", str(make(tmp_path))]) == 2
    assert message in capsys.readouterr().err


def test_changed_inputs_change_what_is_computed(tmp_path, capsys):
    """The replay reads its inputs: a changed image no longer gives the stored activations."""
    path = GOLDEN / "tiny_a" / "vit.npz"
    golden = report.load(path)
    arrays = {**golden.arrays, "image0": golden.arrays["image0"][:, ::-1]}
    turned, ours = report.replay(golden._replace(arrays=arrays))
    failed = {r.array for r in report.check(turned, ours) if not r.passed}
    assert {"packed_vit_tokens", "hidden_layers", "connector"} <= failed


@pytest.fixture
def folder(tmp_path):
    """A golden folder with the small checkpoint and nothing else."""
    (tmp_path / "ckpt").symlink_to(GOLDEN / "tiny_a" / "ckpt")
    return tmp_path


def copied(name: str, folder: Path, **changes) -> None:
    arrays = {**report.load(GOLDEN / "tiny_a" / name).arrays, **changes}
    np.savez(folder / name, **{k: v for k, v in arrays.items() if v is not None})


def test_a_file_that_cannot_be_replayed_is_one_failure_and_the_others_go_on(folder):
    copied("vit.npz", folder)
    copied("vae.npz", folder, image=None)
    copied("text_gen.npz", folder)
    results = list(report.run(folder))
    failed = {r.file: r.found for r in results if not r.passed}
    assert len([r for r in results if r.passed]) == 10 and set(failed) == {
        "vae.npz",
        "text_gen.npz",
    }
    assert "no array 'image'" in failed["vae.npz"]
    assert "generate.npz" in failed["text_gen.npz"]


def test_lines_say_which_of_several_models_they_are_of(folder):
    model = folder / "one"
    model.mkdir()
    (model / "ckpt").symlink_to(GOLDEN / "tiny_a" / "ckpt")
    copied("vit.npz", model)
    assert {r.file for r in report.run(folder)} == {"one/vit.npz"}


def test_contexts_may_be_empty_named_freely_and_end_with_an_image(folder):
    """A text alone has nothing left without it; guidance without a last text changes nothing."""
    stored = report.load(GOLDEN / "tiny_a" / "generate.npz").arrays
    words = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
    items = json.loads(stored["ctx/items_json"].tobytes())
    case = {**json.loads(stored["cases_json"].tobytes())["both_global"], "num_timesteps": 3}
    arrays = {
        **{name: value for name, value in stored.items() if name.count("/") == 0},
        "ctx/item1_vit": stored["ctx/item1_vit"],
        "only-text.1/items_json": words(items[:1]),
        "end/items_json": words(items[:2]),
        "cases_json": words(
            {
                "guided": {**case, "ctx": "end", "cfg_img_scale": 1.0},
                "off": {**case, "ctx": "end", "cfg_interval": [1.0, 1.0]},
            }
        ),
    }
    _, ours = report.replay(report.Golden(GOLDEN / "tiny_a" / "generate.npz", arrays))
    assert ours["only-text.1/cfg_text/k"].shape == (2, 0, 2, 16)
    assert ours["only-text.1/cfg_text/rope"] == [0]
    assert all(table.role_of("generate.npz", name) for name in [*arrays, *ours])
    np.testing.assert_array_equal(ours["end/cfg_text/k"], ours["end/gen/k"])
    np.testing.assert_allclose(ours["guided/v_t"], ours["off/v_t"], rtol=1e-4, atol=1e-5)
    assert ours["off/cfg_text_scale_used"].tolist() == [1.0, 1.0]


def test_a_noise_that_no_image_takes_is_named():
    golden = report.load(GOLDEN / "tiny_a" / "generate.npz")
    more = {**golden.arrays, "stock/vae_posterior_noise1": golden.arrays["init_noise"]}
    with pytest.raises(ValueError, match="2 noises, but 1 images"):
        report.replay(golden._replace(arrays=more))
