"""What a person is shown of a pack is what the pack holds."""

import re

import numpy as np
import pytest
from PIL import Image

from inset_jax.core import overrides
from inset_jax.core.config import edit
from inset_jax.core.visibility import CAUSAL, NOISE
from inset_jax.data import pack_page, pack_picture, pack_view
from inset_jax.data.layout import GEN
from inset_jax.data.loader import Loader
from tools.show_pack import main


@pytest.fixture(scope="module")
def view(config):
    both = edit(config, data__dropout__segment_vit=0.5)
    loader = Loader(both)
    views = (pack_view.of(loader, "train", number, both) for number in range(30))
    # one with an answer and a dropped image
    return next(
        view
        for view in views
        if len(view.laid.ce_index)
        and any(s.item.dropped for _, _, spans in view.examples for s in spans)
    )


def test_every_token_has_its_kind(view):
    kind, laid = view.kind, view.laid
    tokens = view.config.model.tokens
    assert ((kind == pack_view.NOISY) | (kind == pack_view.CLEAN)).sum() == (
        laid.stream == GEN
    ).sum()
    assert (kind == pack_view.PATCH).sum() == laid.is_patch.sum()
    assert set(laid.id[kind == pack_view.MARKER]) <= set(vars(tokens).values())
    assert (kind == pack_view.LEARNED).sum() > 0
    assert np.isin(np.flatnonzero(kind == pack_view.LEARNED), laid.ce_index).all()
    assert (np.asarray(view.pack.gen_weight) > 0).sum() == (kind == pack_view.NOISY).sum()


def test_the_mask_is_the_rule_of_visibility(view):
    seen = pack_view.mask(view, np.arange(len(view.kind)))
    segments, example = view.laid.segments, view.laid.example
    of = np.repeat(np.arange(len(segments.length)), segments.length)
    mode = np.asarray(segments.kind)[of]
    count = np.arange(len(of))
    for query in count[:: max(1, len(count) // 25)]:
        same = of == of[query]
        expected = (example == example[query]) & (
            (count <= query) | (same & (mode[query] != CAUSAL))
        )
        expected &= (mode != NOISE) | same
        np.testing.assert_array_equal(seen[query], expected)


def test_spans_and_fill_are_those_of_the_pack(view):
    spans = [span for _, _, own in view.examples for span in own]
    assert spans[-1].end == len(view.kind)
    dropped = [span for span in spans if span.item.dropped]
    assert dropped and all(span.start == span.end for span in dropped)
    assert "keeps its position" in pack_view.describe(view, dropped[0])
    used = pack_view.fill(view)
    assert used["und"][0] == (np.asarray(view.pack.und_example) >= 0).sum()
    assert used["gen"][0] == (np.asarray(view.pack.gen_example) >= 0).sum()
    assert used["examples"][0] == len(view.examples)
    assert "none of them is seen" in pack_view.padding(view)


def test_losses_are_told_by_example(view):
    head, *rows = pack_view.losses(view)
    assert len(rows) == len(view.examples) and len(head) == len(rows[0])
    assert sum(int(row[1]) for row in rows) == (np.asarray(view.pack.ce_weight) > 0).sum()
    assert sum(int(row[3]) for row in rows) == (np.asarray(view.pack.gen_weight) > 0).sum()
    learned = next(row for row in rows if row[1] != "0")
    assert learned[5].startswith("‹text → a")


def test_the_page_and_the_picture_show_every_example(view):
    text = pack_page.to_html(view, 99)
    assert not re.search('(src|href)=(?!"data:)', text) and "<script" not in text
    assert text.count("<article>") == len(view.examples)
    assert text.count('<span class="token') == sum(
        span.end - span.start
        for _, _, spans in view.examples
        for span in spans
        if span.item.kind == "text"
    )
    whole = pack_picture.to_png(view, 99)
    less = pack_picture.to_png(view, 1)
    assert whole.width == pack_picture.WIDTH + 72 and less.height < whole.height
    assert f"and {len(view.examples) - 1} more" in pack_page.to_html(view, 1)


def test_cells_of_a_stream_are_its_slots(view):
    strip = np.asarray(pack_picture.strip(view, GEN))
    colour = pack_view.COLOURS[view.kind[view.laid.stream == GEN][0]]
    np.testing.assert_array_equal(strip[2, 2], colour)
    wide = np.asarray(pack_picture.mask_picture(view, np.arange(len(view.kind)), 300))
    assert wide.shape == (315, 315, 3)


def test_a_large_picture_is_shortened_and_words_are_not(view, monkeypatch):
    monkeypatch.setattr(pack_picture, "MOST_PATCHES", 3)
    number, spans = next(
        (n, spans)
        for n, (_, _, spans) in enumerate(view.examples)
        if any(s.item.kind != "text" and s.end - s.start > 5 for s in spans)
    )
    tokens = pack_picture.shortened(view, number)
    for span in spans:
        own = tokens[(tokens >= span.start) & (tokens < span.end)]
        length = span.end - span.start
        assert len(own) == (length if span.item.kind == "text" else min(length, 5))
        if len(own):
            assert own[0] == span.start and own[-1] == span.end - 1


def test_the_command_writes_both(config, tmp_path, capsys):
    values = overrides.to_dict(config)
    (tmp_path / "experiment.py").write_text(
        "from inset_jax.core.overrides import from_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_dict({values!r}))\n"
    )
    command = [f"--config={tmp_path / 'experiment.py'}", "--out", str(tmp_path / "out")]
    assert main([*command, "--pack", "1"]) == 0
    assert "Pack 1 of train" in (tmp_path / "out" / "pack.html").read_text()
    with Image.open(tmp_path / "out" / "pack.png") as picture:
        assert picture.height > 1000
    assert main([*command, "--split", "validation", "--pack", "999"]) == 1
    assert "the plan of split 'validation' ends before it" in capsys.readouterr().err
