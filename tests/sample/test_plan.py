import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.core.visibility import dense
from inset_jax.data.layout import Item
from inset_jax.sample.cache import bucket
from inset_jax.sample.plan import Request, branch_items, plan
from tests.sample.small import CONFIG, image, picture, text


def kinds(items):
    return [item.kind for item in items]


def test_a_removed_piece_leaves_no_position_in_a_branch(requests):
    laid = plan(requests[:1], "inset", CONFIG)
    # contexts in order: full (text 4, image, text 3, image), visual (image, image), null
    targets = laid.guided.position["und"][0, 0, :6].reshape(3, 2)
    assert targets.tolist() == [[9, 9], [2, 2], [0, 0]]


def test_a_null_token_stands_for_what_is_removed_and_keeps_a_position(requests):
    config = edit(CONFIG, null_token=True)
    items = branch_items(requests[0], "visual", config)
    assert [item.dropped for item in items] == [True, False, True, False]
    laid = plan(requests[:1], "inset", config)
    assert laid.guided.position["und"][0, 0, :6:2].tolist() == [9, 4, 4]


def test_the_planning_text_is_in_the_full_branch_alone():
    request = Request((text(1), image(1), text(2)), (), plan=text(9))
    length = {name: len(branch_items(request, name, CONFIG)) for name in ("full", "visual", "text")}
    assert length == {"full": 4, "visual": 1, "text": 2}
    assert kinds(branch_items(request, "without_last_text", CONFIG)) == ["text", "vit"]


def test_an_image_of_several_branches_goes_through_the_vit_once(requests):
    still = plan(requests[:1], "inset", CONFIG).still
    patches = 2 * 3 + 2 * 2
    assert still.vit_patch.shape[1] == bucket(patches)
    slots = still.und_patch[0][still.und_patch[0] >= 0]
    assert slots.tolist() == [*range(patches), *range(patches)]
    seen = dense(type(still.vit_visibility)(*(side[0] for side in still.vit_visibility)), patches)
    blocks = np.zeros((patches, patches), bool)
    blocks[:6, :6] = blocks[6:, 6:] = True
    assert np.array_equal(seen[:, :patches], blocks) and not seen[:, patches:].any()


def test_all_pictures_share_one_null_context_and_a_sentence_its_own(requests):
    laid = plan(requests, "inset", CONFIG)
    # full x3, visual of the two with images, null: one noise segment a picture in each
    pictures_of = [1, 1, 4, 2, 1, 1]  # full 0, visual 0, null, full 1, full 2, visual 2
    assert (laid.guided.token != 0).sum() == 2 * sum(pictures_of)
    assert (laid.plain.token != 0).sum() == 2 * 4
    assert not (laid.plain.rows.shape[1] - 1)


def test_noise_segments_see_their_context_and_themselves_only(requests):
    laid = plan(requests, "inset", CONFIG)
    still, step = laid.still, laid.guided
    kept = still.und_token.shape[1] + still.gen_latent.shape[1]
    for name, queries in (("und", step.token.shape[1]), ("gen", step.source.shape[1])):
        visibility = type(step.visibility[name])(*(side[0] for side in step.visibility[name]))
        seen = dense(visibility, queries)
        own = seen[:, kept:]
        assert own.any(axis=1).sum() == (step.token != 0).sum() if name == "und" else True
        # the empty context's segments see nothing kept
        assert (seen[:, :kept].sum(axis=1) == 0).any()
    # a query never sees more than one segment of its own kind: two markers
    visibility = type(step.visibility["und"])(*(side[0] for side in step.visibility["und"]))
    markers = dense(visibility, step.token.shape[1])[:, kept : kept + step.token.shape[1]]
    assert set(markers.sum(axis=1).tolist()) == {0, 2}


def test_stages_that_do_not_act_cost_no_branch(requests):
    one = [requests[0]._replace(scales=(1.0, 2.0))]
    count = lambda requests, mode: int((plan(requests, mode, CONFIG).guided.token != 0).sum() / 2)
    assert count(requests[:1], "inset") == 3
    assert count(one, "inset") == 2  # full, null
    assert count(one, "bagel") == 1  # an image scale alone does nothing in BAGEL
    assert count(requests[:1], "none") == 1


def test_requests_are_spread_over_packs_and_found_again(requests):
    laid = plan(requests, "inset", CONFIG, packs=2)
    assert laid.state.shape[0] == 2 and laid.still.und_token.shape[0] == 2
    pictures = [picture for request in requests for picture in request.pictures]
    for ours, given in zip(laid.pictures_of(laid.state), pictures, strict=True):
        assert np.array_equal(ours, given.noise)
    assert {pack for pack, _ in laid.spans} == {0, 1}


def test_sizes_grow_in_few_steps():
    assert bucket(0) == 0
    sizes = [bucket(size) for size in range(1, 5000)]
    assert all(size <= padded < max(1.25 * size, size + 16) for size, padded in enumerate(sizes, 1))
    assert len(set(sizes)) < 45


def test_a_picture_larger_than_its_table_is_refused(requests):
    with pytest.raises(ValueError, match=r"17x2 .*16x16"):
        plan([Request((text(1),), (picture(1, 17, 2),))], "none", CONFIG)


def test_an_unknown_item_kind_is_refused():
    with pytest.raises(ValueError, match="sound"):
        plan([Request((Item("sound"),), (picture(1),))], "none", CONFIG)
