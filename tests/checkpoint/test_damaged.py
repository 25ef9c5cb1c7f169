"""Which checkpoints stay, and the way back from a damaged one."""

import jax
import jax.numpy as jnp
import pytest

from inset_jax.checkpoint import damaged, store

STATE = {"params": {"model": {"kernel": jnp.arange(12.0)}}}
META = {"config": {}}


def fill(folder, steps, keep=5):
    with store.Store(folder, keep) as writer:
        for step in steps:
            writer.save(step, STATE, META)
    return folder


def harm(step):
    """Flips a bit of a file of the parameters."""
    path = max(
        (p for p in step.rglob("params/**/*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_the_newest_that_is_whole_is_used(tmp_path):
    folder = fill(tmp_path / "checkpoints", [1, 2, 3, 4])
    assert damaged.set_aside(folder) == []
    harm(folder / "4")
    (folder / "3" / "meta" / "metadata").write_text("{")
    first, second = damaged.set_aside(folder)
    assert "step 4 is damaged" in first and "has other content than was written" in first
    assert "step 3 is damaged" in second and str(tmp_path / damaged.ASIDE) in second
    assert store.steps(folder) == [1, 2]
    assert sorted(p.name for p in (tmp_path / damaged.ASIDE).iterdir()) == ["3", "4"]
    with store.Store(folder) as writer:  # the same step can be saved again
        assert writer.save(3, STATE, META)
    harm(folder / "3")
    damaged.set_aside(folder)
    assert (tmp_path / damaged.ASIDE / "3.1").is_dir()


def test_an_older_damaged_one_is_nobodys_business(tmp_path):
    folder = fill(tmp_path / "checkpoints", [1, 2])
    harm(folder / "1")
    assert damaged.set_aside(folder) == []


def test_where_all_are_damaged_nothing_is_moved(tmp_path):
    folder = fill(tmp_path / "checkpoints", [1, 2])
    for step in (1, 2):
        harm(folder / str(step))
    with pytest.raises(ValueError, match=r"every checkpoint is damaged\n  step 2: .*\n  step 1: "):
        damaged.set_aside(folder)
    assert store.steps(folder) == [1, 2]
    assert damaged.set_aside(tmp_path / "nowhere") == []


def held_out(loss):
    return {**META, store.HELD_OUT: loss}


def test_the_best_stays_beside_the_newest_also_after_a_restart(tmp_path):
    with store.Store(tmp_path, 2, keep_best=True) as writer:
        assert not writer.is_best(float("nan"))
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
            assert writer.is_best(loss) == (loss != 2.0)
            writer.save(step, STATE, held_out(loss))
        writer.save(4, STATE, META)  # nothing was measured
    assert store.steps(tmp_path) == [2, 3, 4]
    with store.Store(tmp_path, 2, keep_best=True) as writer:
        assert writer.is_best(0.5) and not writer.is_best(1.5)
        writer.save(5, STATE, META)
        writer.wait()
        assert store.steps(tmp_path) == [2, 4, 5]
        writer.save(6, STATE, held_out(0.5))
    assert store.steps(tmp_path) == [5, 6]
    with store.Store(tmp_path, 1) as writer:
        assert not writer.is_best(0.0)  # not asked for
        writer.save(7, STATE, META)
    assert store.steps(tmp_path) == [7]


def test_a_best_one_that_cannot_be_saved_is_not_taken_for_it(tmp_path, monkeypatch):
    with store.Store(tmp_path, 1, keep_best=True) as writer:
        writer.save(1, STATE, held_out(2.0))
        writer.wait()
        fail = lambda *given, **named: (_ for _ in ()).throw(OSError("No space left on device"))
        with monkeypatch.context() as patched:
            patched.setattr(writer._manager, "save", fail)
            with pytest.raises(ValueError, match="step 2 could not be saved"):
                writer.save(2, STATE, held_out(1.0))
        assert writer.is_best(1.5)
        jax.block_until_ready(STATE)
        writer.save(3, STATE, META)
    assert store.steps(tmp_path) == [1, 3]
