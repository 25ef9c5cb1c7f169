"""Layouts against the reference's packer."""

import json

import numpy as np
import pytest

from inset_jax.core.batch import NULL_IMAGE, NULL_TEXT
from inset_jax.core.config import ModelConfig, TokenConfig, edit
from inset_jax.core.visibility import CAUSAL, FULL, NOISE, dense, reading_intervals
from inset_jax.data.layout import GEN, Item, layout
from tests.data.conftest import GOLDEN

PACKING = json.loads((GOLDEN / "common" / "packing.json").read_text())["cases"]
CONFIG = edit(
    ModelConfig(),
    tokens=TokenConfig(500, 501, 502, 503),
    latents__max_side=16,
    vit__side=16,
    connector_side=16,
)
MODES = {"causal": CAUSAL, "full": FULL, "noise": NOISE}


def reference_items(plan: list[dict], drop: dict, random) -> list[Item]:
    """Turns a plan of the reference into items; its draws come in the order of its targets."""
    items = []
    for entry in plan:
        kind = {"text": "text", "vit_image": "vit", "vae_image": "clean"}[entry["type"]]
        kind = "target" if kind == "clean" and entry["loss"] else kind
        opens = entry.get("split_start", True)
        stride = 14 if kind == "vit" else 16
        name = entry["type"].removesuffix("_image")
        items.append(
            Item(
                kind,
                ids=entry.get("text_ids", ()),
                size=tuple(side // stride for side in entry.get("image_hw", ())) or None,
                loss=bool(entry["loss"]),
                special_label=entry["special_token_label"] if entry["special_token_loss"] else -1,
                dropped=bool(entry["enable_cfg"]) and drop.get(name, 0) == 1,
                frame_delta=entry.get("frame_delta"),
                opens=opens,
                timestep=random.randn() if kind == "target" and opens else 0.0,
            )
        )
    return items


@pytest.mark.parametrize("name", PACKING)
def test_layout_equals_the_reference(name):
    case, packed = PACKING[name], PACKING[name]["packed"]
    random = np.random.RandomState(case["numpy_seed"])
    examples = [reference_items(plan, case.get("dropout", {}), random) for plan in case["plan"]]
    laid = layout(examples, CONFIG)
    kind = np.where(laid.stream == GEN, "vae", np.where(laid.is_patch, "vit", "text"))
    times = [-np.inf if t is None else t for t in packed["packed_timesteps"]]
    flat = lambda rows: [number for row in rows for number in row]
    for found, expected in (
        (laid.id, packed["token_id"]),
        (kind, packed["token_type"]),
        (laid.position[0], packed["packed_position_ids"]),
        (np.bincount(laid.example), packed["sample_lens"]),
        (laid.segments.length, packed["split_lens"]),
        (laid.segments.kind, [MODES[mode] for mode in packed["attn_modes"]]),
        (laid.ce_index, packed["ce_loss_indexes"]),
        (laid.ce_label, packed["packed_label_ids"]),
        (laid.ce_weight, np.float32(packed["ce_loss_weights"])),
        (laid.flow_index, packed["mse_loss_indexes"]),
        (laid.timestep, np.float32(times)),
        (laid.vit_length, packed["vit_token_seqlens"]),
        (laid.vit_place, flat(packed["packed_vit_position_ids"])),
        (laid.place, flat(packed["packed_latent_position_ids"])),
        (flat(item.size for item in laid.gen_items), flat(packed["vae_latent_shapes"])),
    ):
        assert found is not None and list(found) == list(expected)
    mask = dense(reading_intervals(laid.segments), len(laid.id))
    end = np.cumsum(packed["sample_lens"])
    for start, stop, rows in zip(end - packed["sample_lens"], end, packed["dense_masks_rows"]):
        expected = np.array([[cell == "1" for cell in row] for row in rows])
        assert np.array_equal(mask[start:stop, start:stop], expected)
        assert not mask[start:stop, :start].any() and not mask[start:stop, stop:].any()


TEXT, VIT = Item("text", ids=[7, 8]), Item("vit", size=(1, 2))
TARGET = Item("target", size=(1, 1), timestep=0.5)


def positions(*items: Item, config=CONFIG) -> list[int]:
    return layout([items], config).position[0].tolist()


def test_a_dropped_image_still_consumes_its_position_and_a_dropped_text_does_not():
    gone = lambda item: item._replace(dropped=True)
    assert positions(gone(VIT), TARGET) == [1, 1, 1]
    assert positions(gone(TEXT), TARGET) == [0, 0, 0]
    assert positions(TARGET) == [0, 0, 0]


def test_a_null_token_stands_for_each_dropped_segment():
    config = edit(CONFIG, null_token=True)
    items = [TEXT._replace(dropped=True), VIT._replace(dropped=True), TARGET]
    laid = layout([items], config)
    assert laid.id.tolist() == [NULL_TEXT, NULL_IMAGE, 502, -1, 503]
    assert laid.position[0].tolist() == [0, 1, 2, 2, 2]
    assert laid.segments.kind.tolist() == [CAUSAL, CAUSAL, NOISE]
    assert not laid.is_patch.any() and not len(laid.ce_index)


def test_frames_share_the_first_frames_timestep_and_segment():
    later = TARGET._replace(opens=False, timestep=9.0)
    laid = layout([[TARGET._replace(frame_delta=3), later, TARGET._replace(timestep=2.0)]], CONFIG)
    assert laid.timestep.tolist() == [0.5, 0.5, 2.0]
    assert laid.segments.kind.tolist() == [FULL, NOISE]
    assert laid.position[0].tolist() == [0, 0, 0, 3, 3, 3, 3, 3, 3]


def test_a_frame_whose_first_frame_was_dropped_opens_the_segment():
    first = Item("clean", size=(1, 1), dropped=True, frame_delta=2)
    second = Item("clean", size=(1, 1), opens=False)
    laid = layout([[TEXT, first, second]], CONFIG)
    assert laid.segments.length.tolist() == [4, 3]
    assert laid.segments.kind.tolist() == [CAUSAL, FULL]


def test_no_items_make_an_empty_layout():
    for examples in ([], [[]]):
        laid = layout(examples, CONFIG)
        assert laid.id.shape == (0,) and laid.position.shape == (1, 0)


def test_what_cannot_be_laid_out_names_the_example():
    with pytest.raises(ValueError, match=r"cat-3: .*1x17 .* table of 16x16"):
        layout([[TEXT], [Item("vit", size=(1, 17))]], CONFIG, ["cat-2", "cat-3"])
    with pytest.raises(ValueError, match="example 0: item of kind 'video'"):
        layout([[Item("video")]], CONFIG)
    with pytest.raises(ValueError, match="needs an image or a size"):
        layout([[Item("vit")]], CONFIG)
    odd = Item("vit", image=np.zeros((14, 15, 3), np.uint8))
    with pytest.raises(ValueError, match="15x14 pixels: sides must be multiples of 14"):
        layout([[odd]], CONFIG)


@pytest.mark.parametrize("side", [6, 20])
def test_places_of_patches_count_in_rows_of_the_connectors_table(side):
    """BAGEL counts in vit_max_num_patch_per_side whatever the learned table has."""
    config = edit(CONFIG, connector_side=side)
    laid = layout([[Item("vit", size=(2, 2))]], config)
    assert laid.vit_place.tolist() == [0, 1, side, side + 1]
    if side > CONFIG.vit.side:
        with pytest.raises(ValueError, match=r"example 0: .* 13x17 .* fit model\.vit\.side"):
            layout([[Item("vit", size=(13, 17))]], config)


@pytest.mark.parametrize(
    ("items", "token"),
    [
        ([Item("text", ids=[3]), Item("text", ids=[7, 152064])], 152064),
        ([Item("text", ids=[-1])], -1),
        ([Item("text", ids=[3], special_label=200_000)], 200_000),
    ],
)
def test_token_outside_the_vocabulary_is_refused_with_its_record(items, token):
    with pytest.raises(ValueError) as caught:
        layout([[Item("text", ids=[1, 2])], items], CONFIG, ["good", "record 5"])
    assert str(caught.value).startswith(
        f"record 5: token {token} is outside the vocabulary of model.llm.vocab_size=152064"
    )
