"""What weights compute, not only what they are: against stored arrays, or of two forms of a model.

Equal bytes in another order would pass a comparison by name; they do not pass this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.checkpoint import convert, differences, load
from inset_jax.core.batch import Pack
from inset_jax.core.config import CapacityConfig, ModelConfig
from inset_jax.data import pack as packing
from inset_jax.data.layout import Item, layout
from inset_jax.model import inset, vae
from inset_jax.parity import report
from inset_jax.parity.networks import COMPUTE

FILES = ("vae.npz", "vit.npz", "train_forward.npz")  # of a golden folder: forward passes alone
SEED = 20250915
SHIFT = 1.0  # of the timestep of the fixed input
TEXT, PATCHES, LATENTS = 6, (2, 3), (2, 2)  # sizes of the fixed input: tokens, rows and columns


def against_golden(path: str, golden: str, weights: str | None = None) -> Iterator[report.Result]:
    """Runs a model on the stored inputs of a golden folder; yields a result for each array.

    Args:
      path: what `load.load_any` takes; the average where there is one.
      golden: a model's golden folder (vae.npz, ...).

    Raises:
      ValueError: no golden folder, or of another model.
    """
    if weights == "model":
        raise ValueError(
            "--activations with a golden folder runs what is loaded first: the average"
        )
    files = [Path(golden) / name for name in FILES if (Path(golden) / name).is_file()]
    if not files:
        raise ValueError(f"{golden}: none of {', '.join(FILES)} there")
    for file in files:
        stored, ours = report.replay(report.load(file)._replace(weights=Path(path)))
        yield from report.check(stored, ours)


def of_two(one: str, two: str, weights: str | None = None) -> Iterator[report.Result]:
    """Runs the same fixed input through two forms of a model; yields a result for each array.

    Each is loaded as a whole in its own dtypes, one after the other; the arithmetic is float32.

    Raises:
      ValueError: they are different models, or cannot be loaded.
    """
    first, config = _run(one, weights)
    second, other = _run(two, weights)
    if unlike := differences.models(other, config):
        raise ValueError(f"{two}: is another model than {one}: {'; '.join(unlike)}")
    for name, array in first.items():
        apart = float(np.max(np.abs(array - second[name]), initial=0.0))
        same = np.array_equal(array, second[name]) and bool(np.isfinite(array).all())
        yield report.Result("fixed input", name, array.shape, apart, 0.0, same)


def _run(path: str, weights: str | None) -> tuple[dict[str, np.ndarray], ModelConfig]:
    which = load.PARAMS if weights == "model" else load.EMA
    loaded = load.load_any(path, weights=which, dtype=convert.KEEP)
    config = loaded.config
    image = jnp.asarray(_random().standard_normal((1, 32, 48, 3), np.float32).clip(-1, 1))
    found = jax.jit(_network, static_argnums=0)(config, loaded.params["model"], fixed_pack(config))
    found |= jax.jit(_autoencoder, static_argnums=0)(config, loaded.params["vae"], image)
    return jax.device_get(found), config


def _network(config: ModelConfig, params: Any, pack: Pack) -> dict[str, jax.Array]:
    model = inset.bind(inset.abstract(config)[0], _wide(params))
    decoded, _ = model(pack, SHIFT, COMPUTE, collect=("residuals",))
    features = model.images(pack.vit_patch, pack.vit_place, pack.vit_visibility, COMPUTE)
    targets = decoded.hidden["und"][0, pack.ce_index[0]]
    return {
        "image features": features,
        **{f"residuals, {name}": array for name, array in decoded.residuals.items()},
        **{f"hidden, {name}": array for name, array in decoded.hidden.items()},
        "velocity": model.predict(decoded.hidden["gen"]),
        "logits": model.logits(targets),
    }


def _autoencoder(config: ModelConfig, params: Any, image: jax.Array) -> dict[str, jax.Array]:
    model = vae.bind(vae.abstract(config.vae)[0], _wide(params))
    mean, log_variance = model.encode_moments(image)
    latent = model.encode(image, None)
    return {"VAE mean": mean, "VAE log variance": log_variance, "VAE picture": model.decode(latent)}


def _wide(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def fixed_pack(config: ModelConfig) -> Pack:
    """Returns the one input [1, ...]: a text, an image for the ViT, a text with loss, a target."""
    random, side = _random(), config.vit.patch
    ids = random.integers(0, config.llm.vocab_size, (2, TEXT))
    picture = random.uniform(-1, 1, (PATCHES[0] * side, PATCHES[1] * side, 3)).astype(np.float32)
    tokens = LATENTS[0] * LATENTS[1], config.latent_dim
    items = [
        Item("text", ids=ids[0].tolist()),
        Item("vit", image=picture),
        Item("text", ids=ids[1].tolist(), loss=True),
        Item(
            "target",
            size=LATENTS,
            latent=random.standard_normal(tokens, np.float32),
            noise=random.standard_normal(tokens, np.float32),
            timestep=0.25,
            loss=True,
        ),
    ]
    laid = layout([items], config)
    room = CapacityConfig(und=64, gen=8, vit=8, cross_entropy=16, examples=1)
    return packing.stack([packing.assemble(laid, room, config)])


def _random() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(SEED))


def told(results: Iterator[report.Result], as_json: bool = False) -> dict[str, Any]:
    """Prints results as they come; returns how many there are and which failed."""
    if not as_json:
        print(report.HEADER)
    found = []
    for result in results:
        found.append(result)
        if not as_json:
            print(report.line(result), flush=True)
    failed = [f"{result.file}:{result.array}" for result in found if not result.passed]
    worst = max((result.error for result in found), default=0.0)
    if not as_json:
        print(f"{len(found)} arrays compared, {len(failed)} failed")
    return {"arrays": len(found), "failed": failed, "worst": worst}
