import dataclasses
import hashlib

import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.core.visibility import RUN, UNUSED
from inset_jax.data.loader import HostBatch, Loader
from inset_jax.data.record import open_records, write_records


def leaves(node, path="") -> dict:
    """Flattens a batch by names."""
    if hasattr(node, "_fields"):
        node = node._asdict()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        return {path: node}
    return {k: v for key, own in items for k, v in leaves(own, f"{path}/{key}").items()}


def same(a: HostBatch, b: HostBatch) -> bool:
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def take(loader: Loader, count: int) -> list[HostBatch]:
    return [next(loader) for _ in range(count)]


@pytest.fixture(scope="module")
def straight(config):
    """The first batches of an uninterrupted run."""
    return take(Loader(config), 6)


def test_a_batch_holds_what_its_examples_say(straight, config):
    batch = straight[0]
    assert batch.step == 0 and not batch.faults
    assert batch.pack.und_token.shape == (2, config.data.capacity.und)
    for pack, examples in enumerate(batch.examples):
        assert batch.pack.und_example[pack].max() == len(examples) - 1
    latents = np.zeros(2, int)
    for picture in batch.pictures:
        height, width, _ = picture.image.shape
        assert picture.image.dtype == np.uint8
        assert picture.posterior_noise.shape == (height // 8, width // 8, 16)
        tokens = height // 16 * (width // 16)
        own = batch.pack.gen_example[picture.pack, picture.row : picture.row + tokens]
        assert len(set(own.tolist())) == 1 and own[0] >= 0
        latents[picture.pack] += tokens
    assert latents.tolist() == np.sum(batch.pack.gen_example >= 0, axis=1).tolist()
    assert batch.pack.vit_patch.dtype == np.uint8


def test_a_restart_with_other_packs_a_step_goes_on_with_the_next_pack(straight, config):
    packs = [pack for batch in straight for pack in batch.examples]
    loader = Loader(edit(config, data__packs=3), step=1)
    assert loader.pack == 3
    loader.pack = 2
    first, second = take(loader, 2)
    assert first.examples + second.examples == packs[2:8]
    assert (first.step, loader.step, loader.pack) == (1, 3, 8)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_restart_at_any_step_gives_the_same_batches(straight, config, prefetch):
    config = edit(config, data__prefetch=prefetch)
    for step in (2, 5):
        assert same(next(Loader(config, step=step)), straight[step])
    loader = Loader(config)
    take(loader, 2)
    assert loader.step == 2
    loader.step = 1
    assert same(next(loader), straight[1]) and same(next(loader), straight[2])


def test_a_batch_is_to_the_bit_what_it_was(straight):
    """Of earlier versions: a run that goes on from their checkpoints sees what it would have."""
    digest, noise = hashlib.blake2b(digest_size=8), 0.0
    for name, array in sorted(leaves(straight[1].pack).items()):
        if array.dtype.kind == "f":  # whose last bit is the machine's
            noise += float(np.abs(array[np.isfinite(array)]).sum(dtype=np.float64))
        else:
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    ids = [name for name, _ in straight[1].examples[0]]
    assert ids == ["x21", "x17", "x7", "x10", "x8", "x14"]
    assert digest.hexdigest() == "f978eaecb57dc309"
    assert noise == pytest.approx(6106.3104959319535, rel=1e-6)


def test_hosts_share_the_global_batch(straight, config):
    shares = [take(Loader(config, process_index=n, process_count=2), 3) for n in range(2)]
    for step in range(3):
        own = [share[step] for share in shares]
        assert own[0].examples + own[1].examples == straight[step].examples
        whole = straight[step].pack.und_token
        assert np.array_equal(np.concatenate([b.pack.und_token for b in own]), whole)
        assert {picture.pack for b in own for picture in b.pictures} == {0}


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches(straight, config, workers):
    loader = Loader(edit(config, data__workers=workers), step=1)
    for step in range(1, 5):
        assert same(next(loader), straight[step])
    loader.close()
    assert same(next(loader), straight[5])
    loader.close()


def test_validation_is_one_pass_without_dropout_and_with_fixed_noise(config):
    config = edit(config, data__dropout__example_both=1.0)
    loader = Loader(config, "validation")
    batches = list(loader)
    assert len(batches) == len(loader) >= 1
    ids = [name for batch in batches for pack in batch.examples for name, _ in pack]
    assert sorted(ids) == ["x24", "x25", "x26", "x27"]
    assert all(same(a, b) for a, b in zip(batches, Loader(config, "validation"), strict=True))
    assert sum(np.sum(batch.pack.und_patch >= 0) for batch in batches) > 0


def test_packs_beyond_the_last_example_are_valid_and_weigh_nothing(config):
    batch = list(Loader(edit(config, data__packs=8), "validation"))[-1]
    assert batch.pack.und_token.shape[0] == 8 and batch.examples[-1] == []
    assert not batch.pack.gen_weight[-1].any() and not batch.pack.ce_weight[-1].any()
    for seen in batch.pack.visibility.values():
        assert (seen.high[-1] <= seen.low[-1]).all()


def test_packs_beyond_the_last_example_have_no_tiles(config):
    blocks = dict(compute__attention_block=(128, 128), data__capacity__attention_tiles=64)
    batch = list(Loader(edit(config, data__packs=8, **blocks), "validation"))[-1]
    assert batch.examples[-1] == []
    for seen in batch.pack.visibility.values():
        code = seen.steps.code
        run = ((code != UNUSED) & (code & RUN > 0)).any(axis=1)
        assert run[0] and not run[-1]


def some(world, folder, choose, change=lambda example: example):
    """Writes records of the chosen examples of the small world."""
    records = open_records(world / "records")
    examples = [records[n] for n in range(len(records)) if choose(records[n])]
    write_records(folder, {"train": map(change, examples)})
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "pictures", "ce", "flow"),
    [("understanding", False, True, False), ("t2i", True, False, True)],
)
def test_what_a_batch_lacks_weighs_nothing(world, config, tmp_path, kind, pictures, ce, flow):
    folder = some(world, tmp_path / "r", lambda example: example.kind == kind)
    batch = next(Loader(edit(config, data__train=(folder,))))
    assert bool(batch.pictures) == pictures
    assert batch.pack.ce_weight.any() == ce and batch.pack.gen_weight.any() == flow
    assert np.isfinite(batch.pack.gen_noise).all()


@pytest.fixture(scope="module")
def broken(world, tmp_path_factory):
    """The world's records with one target that does not decode."""

    def spoil(example):
        if example.id != "x3":
            return example
        segments = [
            dataclasses.replace(s, image=b"no image") if s.kind == "target" else s
            for s in example.segments
        ]
        return dataclasses.replace(example, segments=tuple(segments))

    return some(world, tmp_path_factory.mktemp("b") / "r", lambda example: True, spoil)


def test_a_bad_record_stops_the_run_and_is_named(config, broken):
    loader = Loader(edit(config, data__train=(broken,)))
    with pytest.raises(ValueError, match=r"batch \d+: .*x3: image of segment 1: cannot be read"):
        take(loader, 10)


def test_a_bad_record_is_replaced_and_counted_and_the_others_stay(config, broken, caplog):
    config = edit(config, data__train=(broken,), data__on_bad_record="replace")
    loader, again = Loader(config), Loader(config, step=3)
    batches = take(loader, 6)
    assert loader.faults and all(fault.example == "x3" for fault in loader.faults)
    assert all(fault.replacement not in ("", "x3") for fault in loader.faults)
    assert "x3" in caplog.text
    assert all(same(a, b) for a, b in zip(batches[3:], take(again, 3), strict=True))
    plan = loader.plan
    for batch in batches:
        for pack, examples in enumerate(batch.examples):
            planned = [plan.indexes[0].ids[d.example] for d in plan.pack(batch.step * 2 + pack)]
            found = [name for name, _ in examples]
            assert len(found) == len(planned)
            assert all(a == b or b == "x3" for a, b in zip(found, planned))


def test_a_bad_record_that_nothing_can_replace_leaves_a_gap(config, world, tmp_path):
    spoil = lambda e: dataclasses.replace(
        e,
        segments=tuple(dataclasses.replace(s, image=b"x") if s.image else s for s in e.segments),
    )
    folder = some(world, tmp_path / "r", lambda e: e.kind == "t2i", spoil)
    loader = Loader(edit(config, data__train=(folder,), data__on_bad_record="replace"))
    batch = next(loader)
    assert batch.examples == [[], []] and not batch.pack.gen_weight.any()
    assert all(fault.replacement == "" for fault in batch.faults)


def test_a_bug_is_raised_with_its_trace_not_swallowed(config, monkeypatch):
    loader = Loader(config)
    monkeypatch.setattr("inset_jax.data.batch.layout", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"batch 0: .*Traceback[\s\S]*ZeroDivisionError"):
        next(loader)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(data__train=()), r"data\.train names no folder"),
        (dict(data__train=("/nowhere",)), "/nowhere: no records there"),
        (dict(data__tokenizer=""), r"data\.tokenizer names no tokenizer"),
        (dict(model__tokens__text_end=7), "another model"),
    ],
)
def test_what_cannot_be_loaded_is_refused(config, change, words):
    with pytest.raises(ValueError, match=words):
        Loader(edit(config, **change))


def test_odd_shares_and_splits_are_refused(config):
    with pytest.raises(ValueError, match=r"data\.packs=2 cannot be shared by 3 hosts"):
        Loader(config, process_count=3)
    with pytest.raises(ValueError, match="split 'test'; there are train, validation"):
        Loader(config, "test")
