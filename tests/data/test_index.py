import logging
import shutil

import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.data import text
from inset_jax.data.index import build_index
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
