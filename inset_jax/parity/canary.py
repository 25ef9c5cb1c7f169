"""A few dozen figures of a fixed input, to compare machines by: losses, gradients, a drawing.

The weights are those of a checkpoint, or come from keys at the real widths with one layer of each
network (`keyed_params`), so that the figures to expect can ship with the project. What goes in is a
function of this file and the tokenizer: sentences, a pattern of pixels, keyed noise.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from inset_jax.checkpoint import names, store
from inset_jax.core import mesh as meshes
from inset_jax.core.batch import Pack
from inset_jax.core.config import (
    CapacityConfig,
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    SampleConfig,
    TokenConfig,
    edit,
)
from inset_jax.data import pack as packing
from inset_jax.data.keyed import keyed, normal
from inset_jax.data.layout import Item, layout
from inset_jax.model import inset
from inset_jax.parity.report import Result
from inset_jax.sample.plan import Picture, Request
from inset_jax.sample.sampler import Sampler
from inset_jax.train import optim, start, step

KEYED = "keyed weights, one layer"
KINDS = ("t2i", "interleaved", "editing", "understanding")  # the examples of the pack, in order
VOCABULARY = 4096  # of keyed weights: two tables of 152,064 rows would be all that they hold
PATCHES, LATENTS = (4, 6), (6, 8)  # sizes of every picture: rows and columns
ROOM = CapacityConfig(und=256, gen=256, vit=128, cross_entropy=64, examples=4)
SETTINGS = SampleConfig(num_timesteps=8)  # INSET's guidance, three branches
SOME = 16  # numbers of an array that are kept as they are
# the largest relative difference, of losses, norms and means and of single numbers; measured in
# docs/pods.md
BARS = {"float32": (1e-4, 1e-4), "bfloat16": (1e-2, 0.1)}

Encode = Callable[[str], Sequence[int]]
Figures = dict[str, list[float]]


class Inputs(NamedTuple):
    """Everything that goes in beside the weights."""

    pack: Pack  # without P
    request: Request


def experiment(model: ModelConfig, dtype: str) -> Config:
    """The experiment that a model is measured in; `dtype` of the computation."""
    compute = ComputeConfig(dtype=dtype, remat="none")
    return Config("canary", model, compute, DataConfig(capacity=ROOM))


def thin(model: ModelConfig) -> ModelConfig:
    """One layer of each network at its full width, and a small vocabulary."""
    special = TokenConfig(*range(VOCABULARY - 4, VOCABULARY))
    return edit(model, llm__layers=1, vit__layers=1, llm__vocab_size=VOCABULARY, tokens=special)


def encode_bytes(text: str) -> list[int]:
    """Ids of a text for weights that no tokenizer belongs to."""
    return list(text.encode())


def keyed_params(config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns {"model": tree} on a mesh: float32, the same numbers on every machine.

    Every product keeps the variance of what it is given; the frozen tables are the real ones.
    """

    def fill(path: str, shape: tuple[int, ...]) -> np.ndarray:
        head, last = path.split("/")[0], path.split("/")[-1]
        if head in ("latent_position", "connector_position"):
            return inset.frozen_rows(config.model, math.isqrt(shape[0]))
        numbers = normal(keyed("canary", 0, path, 0), shape)
        if last in ("scale", "bias"):
            return (last == "scale") + np.float32(0.1) * numbers
        return numbers * np.float32(shape[-2 if last == "kernel" else -1] ** -0.5)

    wanted = names.flatten(start.wanted(config, mesh)[0]["params"])
    filled = {
        path: meshes.put(fill(path, leaf.shape), leaf.sharding) for path, leaf in wanted.items()
    }
    return {"model": names.unflatten(filled)}


def inputs(config: ModelConfig, encode: Encode) -> Inputs:
    """Returns what is fed in: an example of each kind, and a sentence to draw."""
    text = lambda words, **how: Item("text", ids=encode(words), **how)
    rows, columns = (side * config.vit.patch for side in PATCHES)
    y, x = np.indices((rows, columns))
    pattern = np.stack([5 * y, 3 * x, y * x], -1).astype(np.uint8)  # modulo 256
    picture = Item("vit", image=pattern)
    tokens = LATENTS[0] * LATENTS[1], config.latent_dim
    noise = lambda name: normal(keyed("canary", 0, name, 0), tokens)

    def target(name: str, timestep: float) -> Item:
        latent = noise(f"latent {name}")
        return Item("target", size=LATENTS, latent=latent, noise=noise(name), timestep=timestep)

    clean = Item("clean", size=LATENTS, latent=noise("latent clean"))
    answer = text("Stripes and a grid.", loss=True)
    examples = {
        "t2i": [text("A lamp on a table."), target("t2i", -0.5)],
        "interleaved": [text("The"), picture, text("in the rain."), target("interleaved", 0.3)],
        "editing": [picture, clean, text("Make it night."), target("editing", 1.0)],
        "understanding": [picture, text("What is it?"), answer],
    }
    laid = layout([examples[kind] for kind in KINDS], config, KINDS)
    sentence = (text("A lamp on"), picture, text("in the rain."))
    drawn = Request(
        sentence, (Picture(LATENTS, noise("drawing")),), (SETTINGS.alpha, SETTINGS.beta)
    )
    return Inputs(packing.assemble(laid, ROOM, config), drawn)


@functools.cache
def _program(config: Config):
    """(params, packs) -> norms by part, losses, sums by example; compiled once for a config."""
    gradients = step.gradients(inset.abstract(config.model)[0], config)

    def program(params, packs):
        grads, losses, by_example, _ = gradients(params, packs)
        return optim.norms(grads), losses, by_example

    return jax.jit(program)


def figures(config: Config, params: Mapping[str, Any], given: Inputs) -> Figures:
    """Computes all figures under the mesh that is set; every process of it calls this.

    On a mesh of several packs all are the same one, so that no figure depends on their number.

    Args:
      params: {"model": tree}, and "vae" if the drawing shall be decoded.
    """
    mesh = jax.sharding.get_mesh()
    packs = math.prod(mesh.shape[axis] for axis in meshes.RULES["pack"])
    own = [given.pack] * (packs // meshes.share(mesh, packs).count)
    batch = start.place(packing.stack([packing.stack(own)]), mesh)
    norms, losses, by_example = jax.tree.map(meshes.fetch, _program(config)(params["model"], batch))
    found = {f"loss/{name}": [value] for name, value in losses._asdict().items()}
    sums = {
        name: array.reshape(-1, len(KINDS)).sum(0) for name, array in by_example._asdict().items()
    }
    for name in ("cross_entropy", "flow"):
        for kind, total, weight in zip(KINDS, sums[name], sums[f"{name}_weight"]):
            found |= {f"loss/{name}/{kind}": [total / weight]} if weight else {}
    found |= {f"grad_norm/{part}": [value] for part, value in norms.items()}
    found |= _drawing(Sampler(config.model, params, config.compute), given.request)
    return {name: [float(x) for x in values] for name, values in found.items()}


def _drawing(sampler: Sampler, request: Request) -> dict[str, Sequence[float]]:
    """Figures of the first velocity after guidance, of the latents drawn, of their picture."""
    velocity: list[np.ndarray] = []

    def watch(moment) -> None:
        if not moment.index:
            velocity.append(meshes.fetch(moment.velocity)[0, : len(request.pictures[0].noise)])

    (latent,) = sampler.draw([request], SETTINGS, watch).latents
    found = {}
    for name, array in (("velocity", velocity[0]), ("latent", latent)):
        found[f"{name}/mean, std"] = [array.mean(), array.std()]
        found[f"{name}/some"] = array.ravel()[:: array.size // SOME]
    if "vae" in sampler.params:
        pixels = sampler.decode(latent, LATENTS).astype(np.float64)
        found["picture/mean, std"] = [*pixels.mean((0, 1)), *pixels.std((0, 1))]
    return found


def fingerprint(given: Inputs) -> str:
    """Names the input: figures of another one cannot be compared."""
    digest = hashlib.blake2b(digest_size=8)
    for array in jax.tree.leaves(given):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(path: Path, found: Figures, given: Inputs, weights: str, dtype: str) -> None:
    """Writes the figures as JSON with what they are of."""
    about = {
        "weights": weights,
        "input": fingerprint(given),
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "tools": store.versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"figures": found}, indent=1) + "\n")


def compare(path: Path, found: Figures, given: Inputs, dtype: str) -> Iterator[Result]:
    """Yields a result for each figure of a file that `save` wrote, and for each that it lacks.

    The bars are those of the coarser dtype of the two.

    Raises:
      ValueError: no such file, or figures of another input.
    """
    try:
        stored = json.loads(path.read_text())
        expected, bars = stored["figures"], max(BARS[dtype], BARS[stored["dtype"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no figures of a canary: {error}") from error
    if stored.get("input") != fingerprint(given):
        raise ValueError(
            f"{path}: figures of another input (of {stored.get('weights')}): compare those of the "
            "same command, tokenizer and version"
        )
    for name in sorted(expected.keys() | found.keys()):
        bar = bars[name.endswith("/some")]
        ours, theirs = (np.asarray(side.get(name, ()), float) for side in (found, expected))
        if ours.shape != theirs.shape:
            said = f"{len(ours)} numbers here, {len(theirs)} in the file"
            yield Result(path.name, name, theirs.shape, np.inf, bar, False, said)
            continue
        error = float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))
        passed = error <= bar  # not so where one is no number
        said = "" if passed else f"{ours.tolist()[:2]}, expected {theirs.tolist()[:2]}"
        yield Result(path.name, name, theirs.shape, error, bar, passed, said)
