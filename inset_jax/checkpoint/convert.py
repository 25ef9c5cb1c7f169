"""BAGEL's weights as our parameters, exactly: what fits, and the whole tree at once.

`names.TABLE` says which tensor goes where; here it is applied to a folder. Nothing is skipped:
every tensor of the files is used once and every parameter filled once, or one error lists what is
not.
"""

from __future__ import annotations

import functools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from inset_jax.checkpoint import autoencoder, bagel, differences, errors, names, tensors
from inset_jax.core.config import ModelConfig

KEEP = "keep"  # dtype: whatever the file has
NULL_TABLE = "model/null/table"  # rows: text, image; BAGEL has no such parameter
EMBEDDING = "model/llm/embed/table"


def abstract(config: ModelConfig) -> dict[str, Any]:
    """Returns the whole tree {"model", "vae"} of shapes; allocates nothing."""
    from inset_jax.model import inset, vae

    return {"model": inset.abstract(config)[1], "vae": vae.abstract(config.vae)[1]}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model by path."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=4)  # tracing the constructors takes about a second
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in names.flatten(abstract(config)).items()}


@functools.lru_cache(maxsize=4)
def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """Returns the names (`core.mesh.RULES`) of every parameter's dims by path."""
    from inset_jax.model import inset, vae

    axes = {"model": inset.logical_axes(config), "vae": vae.logical_axes(config.vae)}
    return names.flatten(axes)


def load_bagel(
    folder: str | pathlib.Path,
    config: ModelConfig | None = None,
    dtype: str = "float32",
    weights: str | None = None,
) -> dict[str, Any]:
    """Reads a BAGEL-format folder into the parameters {"model", "vae"}, NumPy arrays.

    The frozen position tables come from the file like everything else. A learned null token
    (`config.null_token`), which BAGEL does not have, starts as the embeddings of the tokens that
    open a text and an image.

    Args:
      folder: holds ema.safetensors or model.safetensors (or shards with an index) and
        ae.safetensors; the patch embedding may be linear or a convolution.
      config: what is expected; None means what the folder's JSON files say.
      dtype: of the model: "float32", "bfloat16", "float16"; the autoencoder, which computes in
        float32, is in float32 then. Or KEEP for each tensor's own.
      weights: "ema" or "model"; None means the averaged ones if there are any.

    Raises:
      ValueError: the weights are not there; the folder's sizes are not the config's, in one
        sentence; and by name, with the nearest candidate, the tensors that are missing, unexpected,
        misshapen or not finite, of many the first and how many more.
    """
    config = bagel.config_from_bagel(folder) if config is None else config
    wanted = shapes(config)
    params = _read(folder, tensors.open_folder(folder, weights), config, wanted, dtype)
    if NULL_TABLE in wanted:
        tokens = config.tokens
        params[NULL_TABLE] = params[EMBEDDING][[tokens.text_start, tokens.image_start]]
    return names.unflatten({path: params[path] for path in wanted})


def load_autoencoder(file: str | pathlib.Path, config: ModelConfig) -> dict[str, Any]:
    """Reads one file of BAGEL's autoencoder (ae.safetensors) into its tree, float32 NumPy arrays.

    Raises:
      ValueError: as `load_bagel`, for this part; or the file names other sizes, or another scale or
        shift of the latents, than the config.
    """
    stored = autoencoder.read_config(file)
    if stored is not None and stored != config.vae:
        unlike = [
            f"model.vae.{field} is {here} in the config and {getattr(stored, field)} in the file"
            for field, here in vars(config.vae).items()
            if here != getattr(stored, field)
        ]
        raise ValueError(f"{file}: another autoencoder: {'; '.join(unlike)}")
    wanted = {path: shape for path, shape in shapes(config).items() if path.startswith("vae/")}
    params = _read(file, tensors.Tensors([pathlib.Path(file)]), config, wanted, "float32")
    return names.unflatten(params)["vae"]


def _read(
    where: str | pathlib.Path,
    source: tensors.Tensors,
    config: ModelConfig,
    wanted: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> dict[str, np.ndarray]:
    """Reads every wanted parameter that BAGEL has, by path; see `load_bagel`."""
    links, foreign = names.links(wanted)
    assert set(foreign) <= {NULL_TABLE}, foreign
    check(where, source, links, config, wanted)
    params: dict[str, np.ndarray] = {}
    broken: dict[str, int] = {}
    for path, shape in wanted.items():
        if path not in foreign:
            rows = names.from_path(path, shape)
            is_wide = dtype != KEEP and path.startswith("vae/")
            params[path] = _fill(source, rows, shape, "float32" if is_wide else dtype, broken)
    if broken:
        raise errors.not_finite(broken, where)
    return params


def check(
    folder: str | pathlib.Path,
    source: tensors.Tensors,
    links: Mapping[str, names.Link],
    config: ModelConfig,
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    """Compares the headers of a folder with a model; see `load_bagel` for what is raised."""
    found = {name: _linear_shape(name, source[name].shape) for name in source}
    expected = {name: names.source_shape(link, wanted[link.path]) for name, link in links.items()}
    wrong = differences.by_kind(found, expected)
    if not any(wrong.values()):
        return
    unlike = [
        f"{size.field} is {size.here} in the config and {there} in the weights"
        for size in _sizes(config)
        if (there := size.measure(found)) not in (None, size.here)
    ]
    first = f"{folder}: " + ("; ".join(unlike) or "the tensors are not those of the model")
    listed = differences.FEW if unlike else differences.LISTED
    lines = differences.shapes(found, expected, listed)
    raise errors.Unlike("\n".join([first, *lines]), wrong)


class _Size(NamedTuple):
    """One number of the config and how the weights show it."""

    field: str  # ours, with BAGEL's key
    here: int
    pattern: str  # of tensor names; several matches are counted, one is measured
    dim: int | None = None  # dim of the tensor; None counts the different numbers in the names
    square: bool = False  # the dim holds the square

    def measure(self, found: Mapping[str, tuple[int, ...]]) -> int | str | None:
        """Returns what the weights say, or None when they do not."""
        matches = [match for name in found if (match := re.fullmatch(self.pattern, name))]
        if not matches:
            return None
        if self.dim is None:
            return len({match[1] for match in matches})
        shape = found[matches[0][0]]
        if len(shape) <= self.dim:
            return None
        number = shape[self.dim]
        if not self.square:
            return number
        root = math.isqrt(number)
        return root if root * root == number else f"the root of {number}"


def _sizes(config: ModelConfig) -> Iterator[_Size]:
    llm, vit, vae = config.llm, config.vit, config.vae
    layer, embed = (
        r"language_model\.model\.layers\.",
        r"language_model\.model\.embed_tokens\.weight",
    )
    vit_model = r"vit_model\.vision_model\."
    vit_layer = vit_model + r"encoder\.layers\."
    yield _Size("llm.vocab_size", llm.vocab_size, embed, 0)
    yield _Size("llm.model_dim (hidden_size)", llm.model_dim, embed, 1)
    yield _Size("llm.layers (num_hidden_layers)", llm.layers, layer + r"(\d+)\..*")
    gate, key = layer + r"0\.mlp\.gate_proj\.weight", layer + r"0\.self_attn\.k_proj\.weight"
    yield _Size("llm.mlp_dim (intermediate_size)", llm.mlp_dim, gate, 0)
    norm = layer + r"0\.self_attn\.q_norm\.weight"
    yield _Size("llm.head_dim (hidden_size / num_attention_heads)", llm.head_dim, norm, 0)
    width = llm.kv_heads * llm.head_dim
    yield _Size("llm.kv_heads * llm.head_dim (num_key_value_heads)", width, key, 0)
    patch = vit_model + r"embeddings\.patch_embedding\.weight"
    yield _Size("vit.width (hidden_size)", vit.width, patch, 0)
    yield _Size("vit.patch * vit.patch * 3 (patch_size)", vit.patch_dim, patch, 1)
    yield _Size("vit.layers (num_hidden_layers - 1)", vit.layers, vit_layer + r"(\d+)\..*")
    fc1 = vit_layer + r"0\.mlp\.fc1\.weight"
    yield _Size("vit.mlp_dim (intermediate_size)", vit.mlp_dim, fc1, 0)
    position = vit_model + r"embeddings\.position_embedding\.weight"
    yield _Size("vit.side (image_size / patch_size)", vit.side, position, 0, square=True)
    table = r"vit_pos_embed\.pos_embed"
    side = config.connector_side
    yield _Size("connector_side (vit_max_num_patch_per_side)", side, table, 0, square=True)
    table = r"latent_pos_embed\.pos_embed"
    side = config.latents.max_side
    yield _Size("latents.max_side (max_latent_size)", side, table, 0, square=True)
    numbers = "numbers in a latent token (latent_patch_size, z_channels)"
    yield _Size(numbers, config.latent_dim, r"vae2llm\.weight", 1)
    if vae.kind == "linear":
        yield _Size("vae.latent_channels", vae.latent_channels, r"encoder\.conv_in\.weight", 0)
        return
    yield _Size("vae.channels (ch)", vae.channels, r"encoder\.conv_in\.weight", 0)
    channels = "vae.latent_channels (z_channels)"
    yield _Size(channels, vae.latent_channels, r"decoder\.conv_in\.weight", 1)
    levels = "levels of vae.multipliers (ch_mult)"
    yield _Size(levels, len(vae.multipliers), r"encoder\.down\.(\d+)\..*")
    blocks = r"encoder\.down\.0\.block\.(\d+)\..*"
    yield _Size("vae.res_blocks (num_res_blocks)", vae.res_blocks, blocks)


def _linear_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor once the patch convolution is the linear layer that BAGEL stores."""
    if name == names.PATCH_WEIGHT and len(shape) == 4 and shape[1] == 3:
        return (shape[0], math.prod(shape[1:]))
    return shape


def only_dtype(name: str, found: set[np.dtype]) -> np.dtype:
    """Returns the dtype of a parameter, given those of its layers.

    Args:
      name: of the first layer's tensor.

    Raises:
      ValueError: there are several.
    """
    if len(found) > 1:
        raise ValueError(
            f"{name} and its siblings of other layers have several dtypes "
            f"({', '.join(sorted(map(str, found)))}), but are one parameter here: choose one dtype"
        )
    return next(iter(found))


def _fill(
    source: tensors.Tensors,
    rows: tuple[names.Link, ...],
    shape: tuple[int, ...],
    dtype: str,
    broken: dict[str, int],
) -> np.ndarray:
    """Reads one parameter, slice by slice; notes tensors that are not finite in `broken`."""
    if dtype == KEEP:
        kind = only_dtype(rows[0].source, {source[link.source].dtype for link in rows})
    else:
        kind = tensors.numpy_dtype(dtype)
    parameter = np.empty(shape, kind)
    for link in rows:
        tensor = source.read(link.source)
        if link.source == names.PATCH_WEIGHT and tensor.ndim == 4:
            tensor = names.patch_as_linear(tensor)
        part = parameter if link.layer is None else parameter[link.layer]
        part[...] = names.to_ours(link, tensor)
        if bad := int(part.size - np.isfinite(part).sum()):
            broken[link.source] = bad
    return parameter
