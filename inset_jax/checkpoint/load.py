"""One way to open a model, whatever holds it: a run's checkpoints or a BAGEL-format folder."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from inset_jax.checkpoint import bagel, convert, differences, names, tensors, tokenizer
from inset_jax.core import mesh as core_mesh
from inset_jax.core.config import ModelConfig
from inset_jax.model import int8

CHECKPOINTS = "checkpoints"  # where a run's work folder keeps them
EMA, PARAMS = "ema", "params"


class Loaded(NamedTuple):
    """A model ready for use."""

    config: ModelConfig
    params: dict[str, Any]  # {"model", "vae"}, JAX arrays
    tokenizer: pathlib.Path | None  # its tokenizer.json, if it brings one
    info: dict[str, Any]  # kind, path, step, weights, meta: for printing and for metadata


def load_any(
    path: str | pathlib.Path,
    mesh: jax.sharding.Mesh | None = None,
    weights: str = EMA,
    dtype: str = "float32",
    is_int8: bool = False,
) -> Loaded:
    """Loads a model from a work folder, its checkpoint folder, one step of it, or a BAGEL folder.

    Args:
      path: what to load; of several steps, the newest.
      mesh: where the parameters go, split by their logical names; None means the first device.
      weights: "ema" (where there is none, or not of all, the rest are the parameters) or
        "params"; `info` says which they are.
      dtype: of the parameters in memory, but the autoencoder's, which stay in float32;
        `convert.KEEP` for what is stored.
      is_int8: whether the kernels of the language model's layers become int8 (`model.int8`). Those
        of a BAGEL folder do so on the host; those of a checkpoint on the devices, one after the
        other, which hold all of them in `dtype` before.

    Raises:
      ValueError: nothing loadable there, or what `convert.load_bagel` or `store.restore` find.
    """
    if weights not in (EMA, PARAMS):
        raise ValueError(f"weights={weights!r}: expected {EMA!r} or {PARAMS!r}")
    path = pathlib.Path(path)
    if bagel.is_bagel(path):
        config = bagel.config_from_bagel(path)
        asked = "model" if weights == PARAMS else None
        used = EMA if tensors.which(path, asked) == "ema" else PARAMS
        leaves = names.flatten(convert.load_bagel(path, config, dtype, asked))
        places = shardings(config, mesh)
        params: dict[str, jax.Array] = {}
        for name in list(leaves):
            own, where = {name: leaves.pop(name)}, {name: places[name]}
            if is_int8 and int8.is_kernel(name.removeprefix("model/")):
                own = _eight_bits(name, own.pop(name))
                where[int8.scale_path(name)] = _of_scales(places[name])
            params |= {n: core_mesh.put(leaf, where[n]) for n, leaf in own.items()}
        info = {"kind": "bagel", "path": str(path), "step": None, "weights": used, "meta": {}}
        return Loaded(config, names.unflatten(params), tokenizer.find(path), info)
    loaded = _load_step(path, mesh, weights, dtype)
    if not is_int8:
        return loaded
    leaves = names.flatten(loaded.params)
    for name in [n for n in leaves if int8.is_kernel(n.removeprefix("model/"))]:
        leaves |= _eight_bits(name, leaves.pop(name))
    return loaded._replace(params=names.unflatten(leaves))


def _eight_bits(name: str, kernel) -> dict[str, Any]:
    """Returns what takes the place of a kernel: whole numbers and their scales."""
    if isinstance(kernel, np.ndarray):
        values = int8.quantised(kernel)
    else:
        where = kernel.sharding, _of_scales(kernel.sharding)
        values = jax.jit(int8.quantised, out_shardings=where)(kernel)
        kernel.delete()  # before the next one needs room
    return dict(zip((name, int8.scale_path(name)), values, strict=True))


def _of_scales(kernel: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns where the scales [layer, out] of a kernel [layer, in, out] go."""
    if not isinstance(kernel, jax.sharding.NamedSharding):
        return kernel
    layer, _, out = (*kernel.spec, None, None, None)[:3]
    return kernel.update(spec=jax.sharding.PartitionSpec(layer, out))


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """Returns the model behind a path that `load_any` takes, without reading its arrays.

    Raises:
      ValueError: as `load_any`.
    """
    if bagel.is_bagel(path):
        return bagel.config_from_bagel(path)
    from inset_jax.checkpoint import store

    return store.model_config(store.read_meta(*locate(path)))


def shardings(
    config: ModelConfig, mesh: jax.sharding.Mesh | None
) -> Mapping[str, jax.sharding.Sharding]:
    """Returns where each parameter of {"model", "vae"} goes, by path."""
    wanted = convert.shapes(config)
    if mesh is None:
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return dict.fromkeys(wanted, first)
    logical = convert.logical_axes(config)
    return {name: core_mesh.sharding(mesh, logical[name], wanted[name]) for name in wanted}


def locate(path: str | pathlib.Path) -> tuple[pathlib.Path, int]:
    """Returns the folder of checkpoints behind a path, and the step that it means.

    Raises:
      ValueError: there is no complete checkpoint.
    """
    from inset_jax.checkpoint import store

    path = pathlib.Path(path)
    if path.name.isdigit() and store.steps(path.parent).count(int(path.name)):
        return path.parent, int(path.name)
    for directory in (path, path / CHECKPOINTS):
        if found := store.steps(directory):
            return directory, found[-1]
    what = "holds neither" if path.is_dir() else "is no folder, so neither"
    raise ValueError(
        f"{path}: {what} a complete checkpoint nor a BAGEL model (llm_config.json, ema.safetensors)"
    )


def _load_step(
    path: pathlib.Path, mesh: jax.sharding.Mesh | None, weights: str, dtype: str
) -> Loaded:
    from inset_jax.checkpoint import store

    directory, step = locate(path)
    meta = store.read_meta(directory, step)
    config = store.model_config(meta)
    places = shardings(config, mesh)
    stored, averages = store.stored(directory, step, PARAMS), {}
    if weights == EMA and EMA in meta["items"]:
        averages = store.stored(directory, step, EMA)
    found = {name: leaf.shape for name, leaf in stored.items()}
    if lines := differences.shapes(found, convert.shapes(config)):
        first = f"{directory}: the parameters of step {step} are not those of its config:"
        raise ValueError("\n".join([first, *lines]))
    # the autoencoder computes in float32, also where half of it would be kept
    own = lambda name: np.dtype("float32" if name.startswith("vae/") else dtype)
    kept = lambda name: averages.get(name, stored[name]).dtype
    kind = lambda name: kept(name) if dtype == convert.KEEP else own(name)
    wanted = {
        name: jax.ShapeDtypeStruct(shape, kind(name), sharding=places[name])
        for name, shape in convert.shapes(config).items()
    }
    averaged = {name: wanted[name] for name in averages if name in wanted}
    rest = {name: leaf for name, leaf in wanted.items() if name not in averaged}
    trees = {EMA: names.unflatten(averaged), PARAMS: names.unflatten(rest)}
    found = store.restore(directory, trees, step, partial=True)
    leaves = {**names.flatten(found[PARAMS]), **names.flatten(found[EMA])}
    params = names.unflatten({name: leaves[name] for name in wanted})
    used = EMA if averaged else PARAMS
    info = {"kind": "checkpoint", "path": str(path), "step": step, "weights": used, "meta": meta}
    return Loaded(config, params, _tokenizer(directory), info)


def _tokenizer(directory: pathlib.Path) -> pathlib.Path | None:
    for folder in (directory, directory.parent):
        if found := tokenizer.find(folder):
            return found
    return None
