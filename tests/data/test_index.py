import logging
import pickle
import shutil

import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.data import headers, text
from inset_jax.data.index import build_index, open_index
from inset_jax.data.pack import assemble, layout
from inset_jax.data.prepare import outline
from inset_jax.data.record import open_records


@pytest.fixture(scope="module")
def tokenizer(world):
    return text.load(world)


def test_lengths_are_what_the_layout_takes(world, config, tokenizer):
    records = open_records(world / "records")
    index = build_index(records, tokenizer, config)
    assert len(index) == len(records) and not index.skipped
    for number in range(len(index)):
        example = records[index.number[number]]
        assert (index.ids[number], index.kinds[number]) == (example.id, example.kind)
        laid = layout([outline(example, tokenizer, config)], config.model)
        own = index.tokens[slice(*index.start[number : number + 2])].sum(axis=0)
        taken = [np.sum(laid.stream == 0), np.sum(laid.stream), laid.is_patch.sum()]
        assert own.tolist() == [*taken, len(laid.ce_index)]
        assemble(laid, config.data.capacity, config.model)  # fits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(data__max_example_tokens=30), "more tokens than data.max_example_tokens=30"),
        (dict(data__capacity__und=30), "more und tokens than data.capacity.und=30"),
        (dict(data__capacity__vit=5), "more vit tokens than data.capacity.vit=5"),
    ],
)
def test_what_fits_no_pack_is_counted_by_reason(world, config, tokenizer, change, reason):
    records = open_records(world / "records")
    config = edit(config, data__smallest_reference=1.0, **change)
    index = build_index(records, tokenizer, config)
    assert list(index.skipped) == [reason]
    assert len(index) + len(index.skipped[reason]) == len(records)


def test_a_data_set_without_a_usable_example_says_why(world, config, tokenizer):
    with pytest.raises(ValueError, match=r"no usable examples \(24: more tokens than"):
        build_index(
            open_records(world / "records"), tokenizer, edit(config, data__max_example_tokens=3)
        )


def test_unreadable_records_stop_or_are_left_out(world, config, tokenizer, tmp_path, caplog):
    folder = shutil.copytree(world / "records", tmp_path / "records")
    shard = next(folder.glob("*train*"))
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = bytes(20)
    shard.write_bytes(data)
    records = open_records(folder)
    with pytest.raises(ValueError, match=f"{shard.name}: record"):
        build_index(records, tokenizer, config)
    with caplog.at_level(logging.WARNING):
        index = build_index(records, tokenizer, edit(config, data__on_bad_record="replace"))
    lost = sum(map(len, index.skipped.values()))
    assert 1 <= lost < 24 and len(index) + lost == 24
    assert all(reason.startswith("unreadable") for reason in index.skipped)


def test_headers_are_the_same_from_any_number_of_processes(world, config, tokenizer, monkeypatch):
    monkeypatch.setattr("inset_jax.data.headers.BATCH", 5)
    records = open_records(world / "records")
    one, two = (headers.read(records, tokenizer, workers=workers) for workers in (0, 2))
    assert list(one.ids) == list(two.ids) and list(one.kinds) == list(two.kinds)
    for name in ("number", "start", "segment", "length", "size", "flags"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_an_index_is_measured_once_and_mapped_from_disk(
    world, config, tokenizer, tmp_path, monkeypatch
):
    records = open_records(world / "records")
    made = open_index(records, tokenizer, config, tmp_path)
    monkeypatch.setattr("inset_jax.data.record.Records.__getitem__", None)  # reads no record again
    again = open_index(records, tokenizer, config, tmp_path)
    assert isinstance(again.tokens.base, np.memmap) and again.key == made.key
    # nor for other sizes
    smaller = open_index(records, tokenizer, edit(config, data__vit_size__max_side=28), tmp_path)
    assert smaller.key != made.key and smaller.source == made.source
    assert smaller.tokens[:, 2].sum() < made.tokens[:, 2].sum()
    for own in (again, pickle.loads(pickle.dumps(again))):
        assert list(own.ids) == list(made.ids) and len(pickle.dumps(own)) < 2000


def test_references_of_a_long_example_are_scaled_down_within_the_bound(world, config, tokenizer):
    records = open_records(world / "records")
    config = edit(config, data__vit_size__min_side=84, data__vit_size__max_side=84)
    plain = build_index(records, tokenizer, edit(config, data__max_example_tokens=1000))
    total = lambda index, n: index.tokens[index.segments(n)].sum(axis=0)
    most = max(int(total(plain, n)[:2].sum()) for n in range(len(plain)))
    tight = edit(config, data__max_example_tokens=most - 10)
    index = build_index(records, tokenizer, tight)
    assert len(index) == len(plain) and not index.skipped
    scaled = np.flatnonzero(index.percent < 100)
    assert len(scaled) and index.percent.min() >= 50
    for n in range(len(index)):
        example = records[index.number[n]]
        laid = layout([outline(example, tokenizer, tight, int(index.percent[n]))], tight.model)
        found = [np.sum(laid.stream == 0), np.sum(laid.stream), laid.is_patch.sum()]
        assert total(index, n)[:3].tolist() == found and sum(found[:2]) <= most - 10
        kept = index.tokens[index.segments(n)][:, 1]
        assert np.array_equal(kept, plain.tokens[plain.segments(n)][:, 1])  # targets stay
    never = build_index(records, tokenizer, edit(tight, data__smallest_reference=1.0))
    assert len(never) < len(index) and sum(map(len, never.skipped.values())) == len(scaled)
