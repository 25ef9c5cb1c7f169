"""Pictures that have their training sizes already give the very same pack."""

import dataclasses

import jax
import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.data import prepare
from inset_jax.data.build import build_records
from inset_jax.data.loader import Loader
from inset_jax.data.record import open_records
from inset_jax.data.rewrite import ONE_TO_ONE, Rendered


@pytest.fixture(scope="module")
def rendered(world, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered") / "records"
    built = build_records(Rendered(str(world / "records"), config), folder, ONE_TO_ONE)
    assert sum(built.examples.values()) == 28 and not built.rejects
    return folder


def test_a_pack_of_rendered_records_is_the_same_to_the_bit(world, config, rendered):
    both = [
        Loader(edit(config, data__train=(str(folder),))) for folder in (world / "records", rendered)
    ]
    for _ in range(2):
        one, other = (next(loader) for loader in both)
        jax.tree.map(np.testing.assert_array_equal, one.pack, other.pack)
        for ours, theirs in zip(one.pictures, other.pictures, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)


def kept_as_they_are(examples, config):
    """Counts images that do not have their training size."""
    return sum(
        (segment.width, segment.height)
        != prepare.training_size(segment, config, prepare.sharing(example))
        for example in examples
        for segment in example.segments
        if segment.kind != "text"
    )


def test_only_what_the_rule_would_change_again_stays(world, config, rendered):
    examples = list(open_records(rendered))
    assert kept_as_they_are(list(open_records(world / "records")), config) > 10
    assert kept_as_they_are(examples, config) == 0
    edits = [e for e in examples if e.kind == "editing"]
    source = edits[0].segments
    assert source[0].kind == "vae" and source[1].kind == "vit"
    assert source[0].image != source[1].image  # one picture, two sizes
    facts = lambda e: [(s.kind, s.text, s.role) for s in e.segments]
    plain = list(open_records(world / "records"))
    assert [facts(e) for e in examples] == [facts(e) for e in plain]


def test_another_rule_is_another_build(config, rendered, world):
    other = edit(config, data__vit_size__max_side=28)
    source = dataclasses.replace(Rendered(str(world / "records"), config), config=other)
    with pytest.raises(ValueError, match="exists; remove it"):
        build_records(source, rendered, ONE_TO_ONE)
