"""One step of training an autoencoder, pure: loss, gradients, update, average.

loss = reconstruction + kl_weight * KL, each a mean over the pixels or latents of the batch.
The posterior's noise is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from inset_jax.core.config import AutoencoderConfig
from inset_jax.model import vae
from inset_jax.train import optim

Tree = dict[str, Any]


class Losses(NamedTuple):
    """float32 scalars."""

    total: jax.Array
    reconstruction: jax.Array
    kl: jax.Array


class Report(NamedTuple):
    """What a step says about itself."""

    losses: Losses
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array
    finite: jax.Array  # bool; if not, the step changed nothing


def unit_range(pixels: jax.Array) -> jax.Array:
    """Turns uint8 pixels into float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def loss_function(definition, config: AutoencoderConfig) -> Callable:
    """Returns a function (params, pixels uint8 [B, S, S, 3], noise [B, h, w, c]).

    It returns the total, to be differentiated, and all Losses.
    """
    dtype, weights = jnp.dtype(config.run.dtype), config.loss
    is_l1 = weights.reconstruction == "l1"
    distance = lambda difference: jnp.mean(jnp.abs(difference) if is_l1 else difference**2)

    def loss(params: Tree, pixels: jax.Array, noise: jax.Array):
        model, images = vae.bind(definition, params), unit_range(pixels)
        mean, log_variance = model.encode_moments(images, dtype)
        latents = model.scale(vae.sample(mean, log_variance, noise))
        difference = model.decode(latents, dtype) - images
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        reconstruction = distance(difference)
        total = reconstruction + weights.kl_weight * kl
        return total, Losses(total, reconstruction, kl)

    return loss


def train_step(definition, config: AutoencoderConfig) -> Callable:
    """Returns a function (state, pixels uint8 [B, S, S, 3]) -> (state, Report).

    The state is {"params", "ema", "opt_state", "step"}; "ema" holds the trained part only. A loss
    or gradient that is not finite leaves all of it as it was, and the report says so.
    """
    loss = loss_function(definition, config)
    optimizer = optim.create(config.optimizer, config.run.steps)
    rows = config.data.side // config.vae.downsample
    shape = (config.data.batch, rows, rows, config.vae.latent_channels)

    def step(state: Tree, pixels: jax.Array) -> tuple[Tree, Report]:
        trained, frozen = optim.split(state["params"], config.optimizer.frozen)
        over_trained = lambda part, *batch: loss(optim.merge(frozen, part), *batch)
        key = jax.random.fold_in(jax.random.key(config.run.seed), state["step"])
        noise = jax.random.normal(key, shape)
        grads, losses = jax.grad(over_trained, has_aux=True)(trained, pixels, noise)
        moved, opt_state, told = optimizer.update(grads, state["opt_state"], trained)
        new = {
            "params": optim.merge(frozen, moved),
            "ema": optim.average(state["ema"], moved, config.optimizer.ema_decay),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        finite = jnp.isfinite(losses.total) & jnp.isfinite(told["grad_norm"])
        kept = optax.tree.where(finite, new, state)
        return kept, Report(losses, finite=finite, **told)

    return step


def initial_state(params: Tree, config: AutoencoderConfig) -> Tree:
    """Returns the state before the first step; the average starts at the parameters."""
    trained, _ = optim.split(params, config.optimizer.frozen)
    return {
        "params": params,
        "ema": jax.tree.map(jnp.copy, trained),
        "opt_state": optim.create(config.optimizer, config.run.steps).init(trained),
        "step": jnp.zeros((), jnp.int32),
    }


def psnr(images: jax.Array, decoded: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image in dB, float32 [B]; both in [-1, 1]."""
    error = (jnp.clip(decoded, -1, 1) - images) / 2
    return -10 * jnp.log10(jnp.mean(error**2, (1, 2, 3)))
