import pytest

from inset_jax.engine import artwork, exam, phrases, world_records


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


def test_each_row_has_what_its_name_says(art):
    held_out = {thing.name for thing in art.things["validation"]}
    for row in exam.ROWS:
        scenes = exam.scenes(art, row, 6)
        assert len(scenes) == 6
        for scene in scenes:
            assert {thing.name for thing in scene.things} <= held_out
            if row in exam.REFERENCES:
                assert len(scene.references) == len(scene.places) == exam.REFERENCES[row]
            elif row == "counts":
                assert len(scene.references) < len(scene.places)
            else:
                assert scene.kind.startswith({"editing": "editing", "frames": "video"}[row])


def test_no_row_has_the_draws_of_another(art):
    first = [exam.scenes(art, row, 3) for row in ("3 references", "4 references", "counts")]
    for ours, theirs, counted in zip(*first, strict=True):
        assert len({ours.things[0].name, theirs.things[0].name, counted.things[0].name}) > 1


def test_an_easier_world_can_be_asked_about(art):
    easier = world_records.config_of(changes=["relations=left", "phrasings=1", "sizes=0"])
    for scene in exam.scenes(art, "2 references", 6, easier):
        assert scene.relation == "left" and scene.sentence == phrases.PAIRS["left"][0]
        assert len(scene.references) == 2


def test_rows_that_are_not_there_are_refused(art):
    with pytest.raises(ValueError, match="row 'nine': there are 1 reference, 2 references"):
        exam.scenes(art, "nine", 1)
