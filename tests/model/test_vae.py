"""The autoencoder against stored arrays of the reference code, and what it refuses."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.extend.core import jaxprs_in_params
from safetensors.numpy import load_file

from inset_jax.core.config import VaeConfig
from inset_jax.core.mesh import RULES
from inset_jax.model import vae

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
BAR = 1e-4  # relative L2


class Replay(NamedTuple):
    """The reference's arrays, and ours after one jitted encode and decode of the same inputs."""

    stored: dict[str, np.ndarray]
    ours: dict[str, jax.Array]
    model: vae.Vae


def leaves(tree, prefix=""):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, f"{prefix}{name}.")
        else:
            yield prefix + name, node


def source_name(path: str) -> str:
    parent, _, last = path.rpartition(".")
    return f"{parent}.{'bias' if last == 'bias' else 'weight'}"


def source_shape(leaf) -> tuple[int, ...]:
    return leaf.shape if leaf.ndim < 4 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))


def load(config: VaeConfig, file: pathlib.Path) -> dict:
    """Reads ae.safetensors by the scheme in the module's docstring, nothing else."""
    tensors = load_file(file)
    _, shapes = vae.abstract(config)

    def fill(tree, prefix=""):
        filled = {}
        for name, node in tree.items():
            if isinstance(node, dict):
                filled[name] = fill(node, f"{prefix}{name}.")
            else:
                tensor = tensors.pop(source_name(prefix + name))
                filled[name] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
                assert filled[name].shape == node.shape
        return filled

    params = fill(shapes)
    assert not tensors, f"not in our tree: {sorted(tensors)}"
    return params


def nhwc(array: np.ndarray) -> np.ndarray:
    return rearrange(array, "b c h w -> b h w c")


def assert_close(ours, stored, bar: float = BAR):
    assert ours.shape == stored.shape
    error = np.linalg.norm(np.asarray(ours, np.float64) - stored) / np.linalg.norm(stored)
    assert error <= bar, f"relative L2 {error:.1e}"


@pytest.fixture(scope="module")
def replay() -> Replay:
    values = json.loads((GOLDEN / "tiny_a/ckpt/config.json").read_text())["vae_config"]
    config = VaeConfig(
        channels=values["ch"],
        multipliers=tuple(values["ch_mult"]),
        res_blocks=values["num_res_blocks"],
        latent_channels=values["z_channels"],
        scale=values["scale_factor"],
        shift=values["shift_factor"],
    )
    params = load(config, GOLDEN / "tiny_a/ckpt/ae.safetensors")
    definition, _ = vae.abstract(config)
    stored = dict(np.load(GOLDEN / "tiny_a/vae.npz"))
    bind = lambda params: vae.bind(definition, params)

    @jax.jit
    def run(params, image, noise, padded, padded_noise):
        model = bind(params)
        moments, seen = model.encoder(image)
        mean, log_variance = model.encode_moments(image)
        encoded = model.encode(image, noise)
        _, seen_back = model.decoder(model.unscale(encoded))
        return {
            "moments": moments,
            "mean": mean,
            "logvar": log_variance,
            "encoded": encoded,
            "encoded_mean_only": model.encode(image, None),
            "decoded_from_encoded": model.decode(encoded),
            "padded_latent": model.encode(padded, padded_noise),
            **{f"act/{name}": value for name, value in (seen | seen_back).items()},
        }

    inputs = ("image", "noise", "padded_images", "padded_noise")
    ours = run(params, *(nhwc(stored[name]) for name in inputs))
    return Replay(stored, ours, bind(params))


def test_encoder_and_decoder_replay_the_reference(replay):
    for name in ("moments", "encoded", "encoded_mean_only", "decoded_from_encoded"):
        assert_close(replay.ours[name], nhwc(replay.stored[name]))


def test_every_stored_activation_is_reproduced(replay):
    names = [name for name in replay.stored if name.startswith("act/")]
    assert len(names) == 16
    for name in names:
        assert_close(replay.ours[name], nhwc(replay.stored[name]))


def test_moments_are_mean_and_log_variance(replay):
    for name in ("mean", "logvar"):
        assert_close(replay.ours[name], nhwc(replay.stored[name]))


def test_batch_of_odd_latent_sides_decodes(replay):
    decoded = jax.jit(replay.model.decode)(nhwc(replay.stored["latent2"]))
    assert_close(decoded, nhwc(replay.stored["decoded2"]))


def test_zero_padded_batch_is_the_references_and_changes_the_smaller_image(replay):
    images, noise = nhwc(replay.stored["padded_images"]), nhwc(replay.stored["padded_noise"])
    alone = nhwc(replay.stored["small_alone_latent"])
    rows, columns = alone.shape[1:3]
    stride = replay.model.config.downsample
    small = images[1, : rows * stride, : columns * stride]
    np.testing.assert_array_equal(vae.zero_padded([images[0], small]), images)
    batched = nhwc(replay.stored["padded_latent"])
    assert_close(replay.ours["padded_latent"], batched)
    encode = jax.jit(replay.model.encode)
    assert_close(encode(small[None], noise[1:, :rows, :columns]), alone)
    assert np.abs(batched[1, :rows, :columns] - alone[0]).max() > 0.5


def test_tokens_run_row_by_row_with_the_channel_innermost(replay):
    encoded, tokens = nhwc(replay.stored["encoded"]), replay.stored["latent_tokens"][None]
    rows = int(replay.stored["latent_tokens_hw"][0])
    np.testing.assert_array_equal(vae.patchify(encoded, 2), tokens)
    np.testing.assert_array_equal(vae.unpatchify(tokens, rows, 2), encoded)


def test_picture_is_the_references_within_one_level(replay):
    levels = np.asarray(vae.to_uint8(replay.ours["decoded_from_encoded"]))[0]
    assert levels.dtype == np.uint8
    assert np.abs(levels.astype(int) - replay.stored["decode_image_uint8"]).max() <= 1


def test_grey_levels_are_cut_off_not_rounded():
    values = jnp.asarray([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    np.testing.assert_array_equal(vae.to_uint8(values), [0, 0, 127, 254, 255, 255])


def test_bfloat16_keeps_float32_outside_and_is_near(replay):
    image = nhwc(replay.stored["image"])
    in_bfloat16 = lambda image: replay.model.encode_moments(image, jnp.bfloat16)
    mean, log_variance = jax.jit(in_bfloat16)(image)
    assert mean.dtype == log_variance.dtype == jnp.float32
    assert_close(mean, nhwc(replay.stored["mean"]), bar=0.05)


def test_full_size_tree_has_the_names_and_shapes_of_the_released_file():
    manifest = json.loads((GOLDEN / "manifest_ae.json").read_text())
    _, shapes = vae.abstract(VaeConfig())
    ours = {source_name(path): source_shape(leaf) for path, leaf in leaves(shapes)}
    assert ours == {name: tuple(entry["shape"]) for name, entry in manifest.items()}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_819_683


def test_every_parameter_has_known_logical_names():
    config = VaeConfig(channels=32, multipliers=(1, 2), res_blocks=1, latent_channels=4)
    names, (_, shapes) = dict(leaves(vae.logical_axes(config))), vae.abstract(config)
    for path, leaf in leaves(shapes):
        assert len(names[path]) == leaf.ndim
        assert set(names[path]) <= set(RULES)


def test_seed_decides_the_random_weights():
    config = VaeConfig(channels=32, multipliers=(1,), res_blocks=1, latent_channels=4)
    first, again, other = (vae.create(config, seed)[1] for seed in (0, 0, 1))
    kernel = lambda params: np.asarray(params["encoder"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel(first), kernel(again))
    assert np.abs(kernel(first) - kernel(other)).max() > 0


def test_decoding_1024_pixels_never_holds_all_attention_scores():
    definition, shapes = vae.abstract(VaeConfig())
    decode = lambda params, z: vae.bind(definition, params).decode(z, jnp.bfloat16)
    latents = jax.ShapeDtypeStruct((1, 128, 128, 16), jnp.float32)
    traced = jax.make_jaxpr(decode)(shapes, latents)
    assert all(list(shape).count(128 * 128) < 2 for shape in all_shapes(traced.jaxpr))


def all_shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from all_shapes(inner)


def test_width_that_32_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"widths \[48, 96\].*multiple of 32"):
        vae.create(VaeConfig(channels=48, multipliers=(1, 2)), 0)


def test_image_of_other_sides_is_refused(replay):
    with pytest.raises(ValueError, match=r"20 x 32 px.*multiples of 8"):
        replay.model.encode_moments(np.zeros((1, 20, 32, 3), np.float32))
    with pytest.raises(ValueError, match=r"these are \(1, 16, 16, 4\)"):
        replay.model.encode_moments(np.zeros((1, 16, 16, 4), np.float32))


def test_latents_of_another_width_are_refused(replay):
    with pytest.raises(ValueError, match=r"width, 16\], these are \(1, 2, 2, 8\)"):
        replay.model.decode(np.zeros((1, 2, 2, 8), np.float32))
