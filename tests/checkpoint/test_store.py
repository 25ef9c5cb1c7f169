import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inset_jax.checkpoint import plain, store
from inset_jax.core.config import ModelConfig, edit

MODEL = edit(ModelConfig(), llm__layers=2)
META = {"config": dataclasses.asdict(MODEL), "data": {"step": 5}, "provenance": [{"kind": "x"}]}


@pytest.fixture(scope="module")
def state():
    random = np.random.default_rng(0)
    params = {
        "model": {
            "llm": {"kernel": jnp.asarray(random.standard_normal((3, 40, 50)), jnp.float32)},
            "half": jnp.asarray(random.standard_normal((7,)), jnp.bfloat16),
        },
        "vae": {"kernel": jnp.asarray(random.standard_normal((3, 3, 2, 4)), jnp.float32)},
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adamw(optax.constant_schedule(1e-3)), {"model": True, "vae": False}),
    )
    return {
        "params": params,
        "ema": {"model": params["model"]},
        "opt_state": optimizer.init(params),
    }


def shapes(tree):
    return jax.eval_shape(lambda: tree)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


def save(directory, state, step=5, keep=3, meta=META):
    with store.Store(directory, keep) as writer:
        writer.save(step, {**state, "step": jnp.int32(step)}, meta)
    return directory


def files(step):
    return sorted(path for path in pathlib.Path(step).rglob("*") if path.is_file())


def test_what_is_saved_is_restored_in_its_own_structure(tmp_path, state):
    save(tmp_path, state)
    restored = store.restore(tmp_path, shapes(state), config=MODEL)
    assert same(restored, state)
    assert type(restored["opt_state"]) is type(state["opt_state"])


def test_arrays_of_an_item_share_files(tmp_path, state):
    folder = save(tmp_path, state) / "5"
    for item in store.ITEMS:  # OCDBT: a manifest of them all, not a folder an array
        assert (folder / item / "manifest.ocdbt").is_file()
        assert not (folder / item / "model.llm.kernel").exists()


def test_meta_is_read_without_arrays(tmp_path, state):
    save(tmp_path, state)
    for path in files(tmp_path / "5" / "params"):
        path.unlink()
    meta = store.read_meta(tmp_path)
    assert {key: meta[key] for key in META} == json.loads(json.dumps(META))
    assert (meta["step"], meta["items"]) == (5, ["params", "ema", "opt_state"])
    assert store.model_config(meta) == MODEL
    assert store.model_config({"config": {"name": "x", "model": META["config"]}}) == MODEL


def test_one_item_is_restored_without_reading_the_others(tmp_path, state):
    save(tmp_path, state)
    for item in ("params", "opt_state"):
        for path in files(tmp_path / "5" / item):
            path.unlink()
    restored = store.restore(tmp_path, {"ema": shapes(state["ema"])})
    assert same(restored, {"ema": state["ema"]})


def test_a_part_of_an_item_must_be_asked_for_as_such(tmp_path, state):
    save(tmp_path, state)
    vae = {"params": {"vae": shapes(state["params"]["vae"])}}
    assert same(store.restore(tmp_path, vae, partial=True)["params"]["vae"], state["params"]["vae"])
    with pytest.raises(ValueError, match="unexpected: model/half"):
        store.restore(tmp_path, vae)


def test_a_leaf_goes_where_and_as_what_it_is_wanted(tmp_path, state):
    save(tmp_path, state)
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    wanted = {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.bfloat16, sharding=sharding)}
    found = store.restore(tmp_path, {"params": {"vae": wanted}}, partial=True)["params"]["vae"]
    kernel = state["params"]["vae"]["kernel"].astype(jnp.bfloat16)
    assert found["kernel"].sharding == sharding
    np.testing.assert_array_equal(found["kernel"], kernel)


def test_the_newest_stay(tmp_path, state):
    small = {"params": state["params"]}
    with store.Store(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            assert writer.save(step, small, META)
        assert not writer.save(3, small, META)
        with pytest.raises(ValueError, match="has step 3 already, so step 1 cannot be saved"):
            writer.save(1, small, META)
    assert store.steps(tmp_path) == [2, 3]
    assert store.latest(tmp_path) == 3 and store.latest(tmp_path, 2) == 2
    with pytest.raises(ValueError, match="no step 1; there are 2, 3"):
        store.latest(tmp_path, 1)


def test_multiples_of_some_steps_stay_as_well(tmp_path, state):
    small = {"params": state["params"]}
    with store.Store(tmp_path, keep=1, keep_every=2) as writer:
        for step in (1, 2, 3, 4, 5):
            writer.save(step, small, META)
    assert store.steps(tmp_path) == [2, 4, 5]


def test_a_folder_without_checkpoints_says_so(tmp_path):
    assert store.steps(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="nowhere: no complete checkpoint there"):
        store.restore(tmp_path / "nowhere", {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: cannot hold checkpoints"):
        store.Store(tmp_path / "file")


def test_an_empty_state_needs_no_files(tmp_path, state):
    plainest = {"params": state["params"], "opt_state": optax.sgd(0.1).init(state["params"])}
    save(tmp_path, plainest)
    assert store.read_meta(tmp_path)["items"] == ["params"]
    assert same(store.restore(tmp_path, shapes(plainest)), plainest)


def test_arrays_may_be_overwritten_once_save_has_returned(tmp_path):
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = jnp.zeros(4_000_000)
    with store.Store(tmp_path) as writer:
        writer.save(1, {"params": {"a": array}}, META)
        for _ in range(3):
            array = step(array)
    restored = store.restore(
        tmp_path, {"params": {"a": jax.ShapeDtypeStruct((4_000_000,), "float32")}}
    )
    assert not np.any(restored["params"]["a"])


@pytest.mark.parametrize("how", ["missing", "shorter", "flipped"])
def test_every_damaged_file_is_found_and_named(tmp_path, state, how):
    save(tmp_path, {"params": state["params"]}, step=4)
    save(tmp_path, {"params": state["params"]}, step=5)
    wanted = {"params": shapes(state["params"])}
    inside = [path for item in ("params", "meta") for path in files(tmp_path / "5" / item)]
    assert len(inside) > 5
    for path in inside:
        content = path.read_bytes()
        flipped = bytes([content[-1] ^ 1])
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:-1] + (flipped if how == "flipped" else b""))
        with pytest.raises(ValueError) as error:
            store.restore(tmp_path, wanted, config=MODEL)
        message = str(error.value)
        assert "of step 5 is damaged" in message and message.endswith("/5 to go back to step 4")
        assert str(path.relative_to(tmp_path / "5")) in message and "\n" not in message
        path.write_bytes(content)
    (tmp_path / "5" / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"digests.json is missing"):
        store.restore(tmp_path, wanted)


def test_another_model_is_refused_by_its_sizes(tmp_path, state):
    save(tmp_path, state)
    other = edit(MODEL, llm__layers=4, vit__side=16)
    with pytest.raises(ValueError) as error:
        store.restore(tmp_path, shapes(state), config=other)
    assert str(error.value) == (
        f"{tmp_path}: step 5 is another model: llm.layers is 2 there and 4 here; "
        "vit.side is 70 there and 16 here"
    )
    wanted = {"params": shapes({**state["params"], "vae": {"kernels": jnp.zeros(3)}})}
    with pytest.raises(ValueError, match=r"missing: vae/kernels \(nearest: vae/kernel\)"):
        store.restore(tmp_path, wanted)
    with pytest.raises(ValueError, match="step 6 has no ema; it has params"):
        store.restore(save(tmp_path, {"params": state["params"]}, 6), shapes(state))


def test_a_save_that_does_not_fit_leaves_the_previous_one_intact(cramped, state):
    directory, reason = cramped[0] / "run", cramped[1]
    large = {"params": {"a": jnp.asarray(np.random.default_rng(0).standard_normal(10**6))}}
    with store.Store(directory, keep=1) as writer:
        writer.save(1, state, META)
        writer.save(2, large, META)
        with pytest.raises(ValueError) as error:
            writer.wait()
        message = f"{directory}: step 2 could not be saved ({reason}); step 1 is intact"
        assert str(error.value) == message
        assert store.steps(directory) == [1] and [p.name for p in directory.glob("2*")] == []
        assert same(store.restore(directory, shapes(state)), state)
        assert writer.save(3, state, META)  # once there is room again, life goes on
    assert store.steps(directory) == [3]


SAVE_AND_WAIT = """
import sys, jax, numpy as np
from inset_jax.checkpoint import store
big = {"params": {"a": jax.numpy.asarray(np.random.default_rng(0).random(30_000_000))}}
writer = store.Store(sys.argv[1])
writer.save(2, big, {})
print("saving", flush=True)
writer.wait()
print("saved", flush=True)
"""


def size(path) -> int:
    """Bytes of a file that another process may move away in between."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_save_killed_half_way_is_never_taken_for_complete(tmp_path, state):
    save(tmp_path, state, step=1)
    child = subprocess.Popen(
        [sys.executable, "-c", SAVE_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    while not any(map(size, tmp_path.glob("2*/**/d/*"))):
        assert child.poll() is None, "the child ended before it was killed"
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and "saved" not in child.stdout.read()
    assert any(tmp_path.glob("2*"))
    assert store.steps(tmp_path) == [1]
    assert same(store.restore(tmp_path, shapes(state)), state)
    save(tmp_path, state, step=2)
    assert store.steps(tmp_path) == [1, 2] and len(list(tmp_path.glob("2*"))) == 1
    assert same(store.restore(tmp_path, shapes(state)), state)


def test_an_optimizer_state_is_plain_on_disk(state):
    tree = plain.to_plain(state["opt_state"])
    found = plain.paths(state["opt_state"])
    assert "1/inner_state/0/mu/model/llm/kernel" in found and "1/inner_state/0/count" in found
    assert not [path for path in found if "/vae/" in path]  # masked: holds no array
    assert same(plain.from_plain(tree, state["opt_state"]), state["opt_state"])
    assert all(type(node) is dict for node in (tree, tree["1"], tree["1"]["inner_state"]))


def test_the_format_of_a_later_version_is_refused(tmp_path, state, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    save(tmp_path, {"params": state["params"]})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2, but this version reads 1 only"):
        store.read_meta(tmp_path)


def test_meta_is_plain_json_on_disk(tmp_path, state):
    save(tmp_path, {"params": state["params"]})
    assert json.loads((tmp_path / "5" / "meta" / "metadata").read_text())["data"] == {"step": 5}


class Stuck:
    """A manager of several processes whose save is in progress for ever, though its waits end."""

    saving = False

    def is_saving_in_progress(self):
        return self.saving

    def wait_until_finished(self):
        if self.saving:
            raise RuntimeError("Barrier timed out")

    def save(self, *given, **named):
        self.saving = True
        raise RuntimeError("no memory for a copy")


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    writer = store.Store(tmp_path)
    writer._manager = Stuck()
    monkeypatch.setattr(store.jax, "process_count", lambda: 2)
    return writer


def test_save_that_never_ends_is_left_to_orbax_whose_waits_do(stuck, monkeypatch):
    monkeypatch.setattr(store, "LOOK_FOR", 0.1)
    stuck._saving, stuck._manager.saving = (5, ()), True
    with pytest.raises(ValueError, match=r"step 5 could not be saved .*Barrier timed out"):
        stuck.wait()
    stuck.close()


def test_save_that_did_not_start_is_not_waited_for(stuck):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no memory for a copy"), stuck:
        stuck.save(5, {}, META)
    assert time.monotonic() - began < 5
