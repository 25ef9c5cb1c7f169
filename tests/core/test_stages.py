import pytest

from configs.tiny import experiment
from inset_jax.core import stages
from inset_jax.core.config import edit

CONFIG = experiment()


def test_without_stages_there_is_one():
    assert stages.stages(CONFIG) == [stages.Stage(0, CONFIG)]


def test_settings_of_a_stage_add_to_those_before():
    texts = ((10, "weights=(1, 3), vit_size.max_side=28"), (20, "capacity.und=77"))
    first, second, third = stages.stages(edit(CONFIG, data__stages=texts))
    assert [first.step, second.step, third.step] == [0, 10, 20]
    assert second.config.data.weights == (1.0, 3.0) == third.config.data.weights
    assert second.config.data.vit_size.max_side == 28
    assert second.config.data.capacity == CONFIG.data.capacity
    assert third.config.data.capacity.und == 77
    assert third.config.data.capacity.gen == CONFIG.data.capacity.gen
    assert [stages.at([first, second, third], step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (((0, "weights=(1,)"),), "step 0 comes after step 0"),
        (((5, "weights=(1,)"), (3, "weights=(1,)")), "step 3 comes after step 5"),
        (((5, "packs=3"),), "packs cannot change during a run; these can: weights, capacity"),
        (((5, "capacity.und=many"),), "step 5: 'capacity.und=many'"),
        (((5, "3"),), "no name=value"),
        (((5, "capacity.unt=3"),), r"capacity\.unt: no such field; did you mean und"),
        (((5, "capacity.und='a'"),), "capacity.und: found 'a', expected int"),
    ],
)
def test_stages_that_cannot_be_are_refused(texts, words):
    with pytest.raises(ValueError, match=words):
        stages.stages(edit(CONFIG, data__stages=texts))


def test_a_stage_that_cannot_work_is_refused_before_anything_is_read():
    two = edit(CONFIG, data__train=("a", "b"))
    stages.check(edit(two, data__stages=((5, "weights=(1, 3)"),)))
    for text, words in (
        ("weights=(1,)", "step 5: data.weights has 1 numbers for 2 folders"),
        ("weights=(1, 3, 2)", "step 5: data.weights has 3 numbers"),
        ("vit_size.max_side=14000", r"step 5: data\.vit_size\.max_side=14000 needs"),
    ):
        with pytest.raises(ValueError, match=words):
            stages.check(edit(two, data__stages=((5, text),)))
