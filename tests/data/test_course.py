import logging

import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.data.course import best_capacity, drift
from inset_jax.data.loader import Loader, course_of
from inset_jax.data.plan_report import report
from inset_jax.data.record import open_records, write_records


@pytest.fixture(scope="module")
def curriculum(config, world):
    """Three stages over two data sets: other weights from update 3 on, other sizes from 5 on."""
    folder = str(world / "records")
    texts = (
        (3, "weights=(0.0, 1.0)"),
        (5, "weights=(1.0, 1.0), vit_size.max_side=28, capacity.vit=48, dropout.example_both=1.0"),
    )
    return edit(
        config,
        data__train=(folder, f"{folder}#validation"),
        data__weights=(1.0, 0.0),
        data__stages=texts,
        data__vit_size__max_side=56,
    )


def kinds(batch) -> set[bool]:
    """Which data sets a batch is from: held-out examples have the numbers from 24 on."""
    return {int(name[1:]) >= 24 for pack in batch.examples for name, _ in pack}


def test_weights_sizes_and_capacities_change_at_the_given_steps(curriculum):
    loader = Loader(curriculum)
    batches = [next(loader) for _ in range(8)]
    assert [kinds(batch) for batch in batches[:5]] == [{False}] * 3 + [{True}] * 2
    before, after = curriculum.data.capacity.vit, 48
    assert [batch.pack.vit_patch.shape[1] for batch in batches] == [before] * 5 + [after] * 3
    # nothing but targets is left of what is drawn in the last stage
    drawn = [
        p for batch in batches[5:] for p in batch.pack.und_patch[batch.pack.gen_weight[:, 0] > 0]
    ]
    assert drawn and all(batch.step == n for n, batch in enumerate(batches))


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_restart_in_any_stage_gives_the_same_batches(curriculum, step):
    straight = Loader(curriculum)
    for _ in range(step):
        next(straight)
    one, two = next(straight), next(Loader(curriculum, step=step))
    assert one.examples == two.examples
    assert np.array_equal(one.pack.und_token, two.pack.und_token)


def test_stages_count_updates_not_batches(curriculum):
    course = course_of(edit(curriculum, optimizer__accumulation=4), "train")
    assert [leg.batch for leg in course.legs] == [0, 12, 20]
    assert course.at(13) == (course.legs[1], 2)


@pytest.mark.parametrize("batch", [2, 3, 6])
def test_other_packs_a_batch_go_on_with_the_next_pack_and_stages_begin_as_before(curriculum, batch):
    before = course_of(curriculum, "train")
    number, pack = before.legs.index(before.leg(batch)), before.at(batch)[1]
    after = course_of(edit(curriculum, data__packs=3, optimizer__accumulation=2), "train")
    assert after.hash == before.hash
    after.go_on(2 * batch, pack)
    for more in range(2):
        leg, found = after.at(2 * batch + more)
        assert (after.legs.index(leg), found) == (number, pack + 3 * more)
    for following in after.legs[number + 1 :]:
        assert after.at(following.batch) == (following, 0)


def test_the_hash_of_a_course_knows_its_stages(curriculum):
    plain = edit(curriculum, data__stages=())
    hashes = {course_of(c, "train").hash for c in (curriculum, plain)}
    assert len(hashes) == 2
    names = {course_of(c, "train").records_hash for c in (curriculum, plain)}
    assert len(names) == 1


@pytest.mark.parametrize("mean", [(1600, 2900), (3300, 2880), (100, 2500)])
def test_the_best_capacities_have_the_ratio_of_the_tokens(mean):
    und, gen = best_capacity(mean, 32768)
    assert und % 128 == gen % 128 == 0 and 0.98 * 32768 <= und + gen <= 32768
    assert abs(und / gen / (mean[0] / mean[1]) - 1) < 0.01 * max(1, mean[1] / mean[0] / 10)


def test_a_stream_without_tokens_gets_the_least(config, world, tmp_path):
    assert best_capacity((250, 0), 32768) == (32640, 128)
    assert best_capacity((0, 250), 32768) == (128, 32640)
    records = open_records(world / "records")
    answers = [own for own in map(records.__getitem__, range(len(records))) if not own.has_target]
    write_records(tmp_path / "r", {"train": answers})
    course = course_of(edit(config, data__train=(str(tmp_path / "r"),)), "train")
    lines = "\n".join(report(course, 1, 0, 640))
    assert "0 gen tokens: data.capacity.und=630 data.capacity.gen=10 fit best" in lines
    assert "warning" not in lines


def test_a_mix_that_has_drifted_is_told(config, caplog):
    leg = course_of(config, "train").legs[0]
    assert "one stream stays at most" in drift(leg, 0)
    assert drift(course_of(config, "validation").legs[0], 0) == ""
    used = leg.plan.section(0).used
    und, gen = best_capacity(used[:2], int(leg.plan.capacity[:2].sum()) * 4)
    fitting = edit(config, data__capacity__und=und, data__capacity__gen=gen)
    assert drift(course_of(fitting, "train").legs[0], 0) == ""
    with caplog.at_level(logging.WARNING):
        loader = Loader(config)
        next(loader)
        next(loader)
        loader._ahead.close()  # waits for what was begun
    assert caplog.text.count("would fit") == 1


def test_the_report_says_fill_and_what_would_fit(config):
    course = course_of(edit(config, data__max_example_tokens=40), "train")
    lines = "\n".join(report(course, 1, 0, 400))
    assert "left out" in lines and "more tokens than data.max_example_tokens=40" in lines
    assert "packs" in lines and "fit best" in lines and "warning" in lines
    assert course.hash in lines
