import json
import math

import numpy as np
import pytest

from inset_jax.checkpoint import convert, names
from inset_jax.core.config import ModelConfig, VaeConfig, edit


@pytest.fixture(scope="module")
def manifest(golden):
    files = [golden / "manifest_7b.json", golden / "manifest_ae.json"]
    return {name: entry for file in files for name, entry in json.loads(file.read_text()).items()}


@pytest.fixture(scope="module")
def full_size():
    return convert.shapes(ModelConfig())


def test_every_tensor_of_the_7b_model_is_used_once_and_every_parameter_filled_once(
    manifest, full_size
):
    links, foreign = names.links(full_size)
    assert not foreign
    assert set(links) == set(manifest)
    slices = [(link.path, link.layer) for link in links.values()]
    assert len(set(slices)) == len(slices)
    assert {path for path, _ in slices} == set(full_size)
    for path, shape in full_size.items():
        layers = [layer for p, layer in slices if p == path]
        assert layers == ([None] if layers == [None] else list(range(shape[0])))


def test_shapes_of_the_7b_model_agree_with_its_parameters(manifest, full_size):
    links, _ = names.links(full_size)
    found = {name: list(names.source_shape(k, full_size[k.path])) for name, k in links.items()}
    assert found == {name: entry["shape"] for name, entry in manifest.items()}


def test_both_directions_of_the_table_agree(manifest, full_size):
    links, _ = names.links(full_size)
    for name in manifest:
        assert names.from_source(name) == links[name]


def test_the_table_fits_any_depth_and_width():
    small = edit(
        ModelConfig(),
        llm__layers=3,
        vit__layers=1,
        vae=VaeConfig(channels=32, multipliers=(1, 2, 2), res_blocks=3),
    )
    shapes = convert.shapes(small)
    links, foreign = names.links(shapes)
    assert not foreign
    assert "language_model.model.layers.2.mlp_moe_gen.up_proj.weight" in links
    assert "language_model.model.layers.3.mlp.up_proj.weight" not in links
    assert "decoder.up.2.block.3.conv2.weight" in links
    for name, link in links.items():
        assert names.from_source(name) == link
    total = sum(math.prod(names.source_shape(k, shapes[k.path])) for k in links.values())
    assert total == sum(math.prod(shape) for shape in shapes.values())


def test_a_parameter_that_bagel_lacks_is_reported():
    _, foreign = names.links(convert.shapes(edit(ModelConfig(), null_token=True)))
    assert foreign == ["model/null/table"]


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "language_model.model.layers.01.input_layernorm.weight", "connector"]
)
def test_an_unknown_name_has_no_place(name):
    assert names.from_source(name) is None


@pytest.mark.parametrize("transform", names.AXES)
@pytest.mark.parametrize("layer", [None, 1])
def test_a_tensor_comes_back_from_its_parameter(transform, layer):
    dims = 4 if transform == "conv" else 2
    tensor = np.random.default_rng(0).standard_normal((2, 3, 5, 7)[:dims])
    link = names.Link("source", "path", layer, transform)
    ours = names.to_ours(link, tensor)
    parameter = ours if layer is None else np.stack([ours * 0, ours])
    assert names.source_shape(link, parameter.shape) == tensor.shape
    np.testing.assert_array_equal(names.to_source(link, parameter), tensor)


def test_linear_weights_are_transposed_and_convolutions_become_hwio():
    linear = np.arange(6.0).reshape(2, 3)
    link = names.from_source("connector.fc1.weight")
    np.testing.assert_array_equal(names.to_ours(link, linear), linear.T)
    conv = np.arange(210.0).reshape(2, 3, 5, 7)
    link = names.from_source("encoder.conv_in.weight")
    assert names.to_ours(link, conv)[4, 6, 2, 1] == conv[1, 2, 4, 6]


def test_the_patch_convolution_becomes_the_linear_form_of_the_reference(golden):
    tables = np.load(golden / "common" / "tables.npz")
    conv, linear = tables["conv_weight"], tables["conv_linear_weight"]
    np.testing.assert_array_equal(names.patch_as_linear(conv), linear)


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": (2, 3)}}, "e": 4}
    assert names.flatten(tree) == {"a/b": 1, "a/c/d": (2, 3), "e": 4}
    assert names.unflatten(names.flatten(tree)) == tree
