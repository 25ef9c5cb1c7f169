"""Replays of training: the packed forward pass, its gradients, a few optimizer steps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from inset_jax.checkpoint import names
from inset_jax.core.batch import Pack
from inset_jax.core.config import CapacityConfig, Config, DataConfig, LossConfig, OptimizerConfig
from inset_jax.data import pack as packing
from inset_jax.data.layout import GEN, UND, Item, Layout, layout
from inset_jax.model import inset, vae
from inset_jax.parity import packing as layouts
from inset_jax.parity.networks import COMPUTE, Reference, reference, to_nchw, to_nhwc
from inset_jax.parity.report import Golden, load
from inset_jax.train import optim, step

PADDING = 5  # tokens added to every capacity: padding must not show in any number


class Batch(NamedTuple):
    """The stored batch, built by our own data path."""

    laid: Layout
    pack: Pack  # [1, ...]
    padded_images: np.ndarray  # [N, H, W, 3]
    padded_latent: jax.Array  # [N, h, w, c]


def build(stored, ref: Reference) -> Batch:
    """Lays out and packs a stored batch; its VAE images are encoded zero-padded, as there."""
    config = ref.config
    plans = json.loads(stored["plan_json"].tobytes())
    examples, pictures = [], []
    for number, plan in enumerate(plans):
        pixels = (
            stored[f"sample{number}_image{n}"].transpose(1, 2, 0)
            for n in range(sum(entry["type"] != "text" for entry in plan))
        )
        items = layouts.items_of(plan, config)
        items = [i if i.kind == "text" else i._replace(image=next(pixels)) for i in items]
        examples.append(items)
        pictures += [item.image for item in items if item.kind in ("clean", "target")]
    padded = vae.zero_padded(pictures)
    latents = jax.jit(ref.vae().encode)(padded, to_nhwc(stored["vae_posterior_noise"]))
    examples = _filled(examples, latents, stored, ref)
    laid = layout(examples, config)
    room = CapacityConfig(
        und=int(np.sum(laid.stream == UND)) + PADDING,
        gen=int(np.sum(laid.stream == GEN)) + PADDING,
        vit=int(laid.vit_length.sum()) + PADDING,
        cross_entropy=len(laid.ce_index) + PADDING,
        examples=len(examples),
    )
    one = packing.assemble(laid, room, config)
    return Batch(laid, packing.stack([one]), padded, latents)


def _filled(examples, latents, stored, ref: Reference) -> list[list[Item]]:
    """Gives each VAE item its latent tokens, flow noise and timestep draw."""
    patch, row, image, result = ref.config.latents.patch, 0, 0, []
    for items in examples:
        result.append([])
        for item in items:
            if item.kind in ("clean", "target"):
                rows, columns = item.size
                own = latents[image, : rows * patch, : columns * patch][None]
                last = row + rows * columns
                item = item._replace(
                    latent=np.asarray(vae.patchify(own, patch)[0]),
                    noise=stored["noise"][row:last],
                    timestep=float(stored["packed_timesteps"][row]),
                )
                row, image = last, image + 1
            result[-1].append(item)
    return result


@cache
def batch_of(folder: Path) -> tuple[Reference, Batch]:
    """The batch of a folder's train_forward.npz, which the other two files train on."""
    ref = reference(folder)
    return ref, build(load(folder / "train_forward.npz").arrays, ref)


def replay_forward(golden: Golden):
    ref = reference(golden.folder, golden.weights)
    batch = build(golden.arrays, ref)
    laid, pack, config = batch.laid, batch.pack, ref.config
    ours = layouts.packed(laid)
    ours |= {f"attn_mask_allowed_{n}": mask for n, mask in enumerate(layouts.masks(laid))}
    ours["padded_images"] = rearrange(batch.padded_images, "n h w c -> n c h w")
    ours["padded_latent"] = to_nchw(batch.padded_latent)
    ours["packed_vit_tokens"] = pack.vit_patch[0, : laid.vit_length.sum()]
    latents = int(np.sum(laid.stream == GEN))
    ours["packed_latent_clean"] = pack.gen_latent[0, :latents]
    shift = timestep_shift(golden.folder)

    def run(params):
        model = ref.model(params)
        streams, timestep = model.embed(pack, shift, COMPUTE)
        decoded, _ = model(pack, shift, COMPUTE, collect=("residuals",))
        features, _ = model.vit(pack.vit_patch, pack.vit_place, pack.vit_visibility, COMPUTE)
        prediction = model.predict(decoded.hidden["gen"])
        logits = model.logits(decoded.hidden["und"][0, pack.ce_index[0]])
        times = model.time(timestep, jnp.float32)
        return streams, timestep, times, decoded, model.connector(features), prediction, logits

    streams, timestep, times, decoded, connected, prediction, logits = jax.jit(run)(
        ref.params["model"]
    )
    noisy = pack.gen_weight[0] > 0
    error = np.asarray(prediction[0] - (pack.gen_noise[0] - pack.gen_latent[0]))[noisy] ** 2
    targets = len(laid.ce_index)
    logits, weights = np.asarray(logits)[:targets], laid.ce_weight
    label = np.arange(targets), pack.ce_label[0, :targets]
    ce = np.asarray(jax.nn.logsumexp(logits, axis=-1)) - logits[label]
    t = np.asarray(timestep)[0, :, None]
    ours |= {
        "timesteps_shifted": timestep[0, :latents],
        "time_embeds": times[0, :latents],
        "packed_latent_noised": ((1 - t) * pack.gen_latent[0] + t * pack.gen_noise[0])[:latents],
        "packed_sequence": in_order(laid, {n: x[0] for n, x in streams.items()}),
        "hidden_layers": np.stack(
            [
                in_order(laid, {n: x[layer, 0] for n, x in decoded.residuals.items()})
                for layer in range(config.llm.layers)
            ]
        ),
        "last_hidden": in_order(laid, {n: x[0] for n, x in decoded.hidden.items()}),
        "connector": connected[0, : laid.vit_length.sum()],
        "mse_pred": np.asarray(prediction[0])[noisy],
        "mse": error,
        "logits": logits,
        "ce": ce,
        "ce_mean": ce.sum() / targets,
        "mse_mean": error.mean(-1).sum() / len(error),
        "ce_reweighted": (ce * weights).sum() / weights.sum(),
    }
    return golden, ours


def in_order(laid: Layout, streams: dict[str, jax.Array]) -> np.ndarray:
    """Joins the two streams [T, M], padding dropped, in reading order."""
    width = next(iter(streams.values())).shape[-1]
    whole = np.zeros((len(laid.stream), width), np.float32)
    for code, name in enumerate(("und", "gen")):
        rows = np.flatnonzero(laid.stream == code)
        if len(rows):
            whole[rows] = np.asarray(streams[name])[: len(rows)]
    return whole


# what the reference's four steps were made with (README of the golden arrays)
STEPS = OptimizerConfig(
    name="adamw",
    peak_lr=1e-3,
    warmup_steps=2,
    schedule="constant",
    beta1=0.9,
    beta2=0.95,
    eps=1e-15,
    weight_decay=0.0,
    clip_norm=1.0,
    ema_decay=0.9,
    first_step_zero=True,
)


def experiment(folder: Path, batch: Batch, ref: Reference) -> Config:
    """The training run that the golden arrays come from."""
    return Config(
        model=ref.config,
        compute=COMPUTE,
        data=DataConfig(capacity=CapacityConfig(examples=len(batch.laid.names))),
        optimizer=STEPS,
        loss=LossConfig(1.0, 1.0, timestep_shift(folder)),
    )


def timestep_shift(folder: Path) -> float:
    """The shift of training, 1 where the checkpoint's folder does not say."""
    path = folder / "ckpt" / "config.json"
    return json.loads(path.read_text()).get("timestep_shift", 1.0) if path.is_file() else 1.0


def by_source(tree: dict) -> dict[str, np.ndarray]:
    """The model's tree of arrays under the reference's names and axes."""
    leaves = {path: np.asarray(leaf) for path, leaf in names.flatten({"model": tree}).items()}
    found, _ = names.links({path: leaf.shape for path, leaf in leaves.items()})
    return {source: names.to_source(link, leaves[link.path]) for source, link in found.items()}


def replay_gradients(golden: Golden):
    ref, batch = batch_of(golden.folder)
    config = experiment(golden.folder, batch, ref)
    definition, _ = inset.abstract(ref.config)
    loss = step.loss_function(definition, config)
    trained, frozen = optim.split(ref.params["model"], ())

    def total(trained):
        return loss(optim.merge(frozen, trained), batch.pack, step.weights(batch.pack))[0]

    value, gradient = jax.jit(jax.value_and_grad(total))(trained)
    ours = by_source(gradient)
    squares = sum(float(np.sum(g.astype(np.float64) ** 2)) for g in ours.values())
    return golden, ours | {"__loss__": value, "__total_grad_norm__": np.sqrt(squares)}


def replay_steps(golden: Golden):
    ref, batch = batch_of(golden.folder)
    config = experiment(golden.folder, batch, ref)
    run = jax.jit(step.train_step(inset.abstract(ref.config)[0], config))
    state = step.initial_state(ref.params["model"], config)
    reports = []
    for noise in golden.arrays["noise"]:
        padded = np.zeros_like(batch.pack.gen_noise)
        padded[0, : len(noise)] = noise
        pack = batch.pack._replace(gen_noise=padded)
        state, report = run(state, jax.tree.map(lambda x: x[None], pack))
        reports.append(report)
    column = lambda pick: np.asarray([pick(report) for report in reports])
    ours = {
        "lr_used": column(lambda r: r.learning_rate),
        "loss": column(lambda r: r.losses.total),
        "ce": column(lambda r: r.losses.cross_entropy),
        "mse": column(lambda r: r.losses.flow),
        "grad_norm": column(lambda r: r.grad_norm),
    }
    params = by_source(state["params"])
    ours |= {f"param/{name}": value for name, value in params.items()}
    ours |= {f"param_l2/{name}": np.linalg.norm(value) for name, value in params.items()}
    ours |= {f"ema/{name}": value for name, value in by_source(state["ema"]).items()}
    return golden, ours
