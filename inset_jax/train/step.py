"""One training step, pure: losses over the whole global batch, gradients, update, average.

A step takes `[accumulation, P, ...]` packs. Each loss is a sum over all of them divided by the sum
of their weights, so accumulation, packing and layout leave the result unchanged; what is absent
(no next-token target, no picture to draw) costs 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.kernels.cross_entropy import chunked_cross_entropy
from inset_jax.kernels.flow_loss import flow_loss
from inset_jax.model import flow, inset
from inset_jax.train import optim

Tree = dict[str, Any]
TokenLoss = Callable[[Tree, Pack], tuple[jax.Array, jax.Array]]


class Weights(NamedTuple):
    """What the two losses are divided by: sums of the weights of all targets, float32 scalars."""

    cross_entropy: jax.Array
    flow: jax.Array


class ByExample(NamedTuple):
    """Weighted sums of both losses over each example's targets, for losses by kind of data."""

    cross_entropy: jax.Array  # float32 [..., P, E]
    cross_entropy_weight: jax.Array
    flow: jax.Array
    flow_weight: jax.Array


class Losses(NamedTuple):
    """float32 scalars, of the global batch."""

    total: jax.Array
    cross_entropy: jax.Array
    flow: jax.Array


class Report(NamedTuple):
    """What a step says about itself."""

    losses: Losses
    by_example: ByExample
    grad_norm: jax.Array  # before clipping
    learning_rate: jax.Array
    finite: jax.Array  # bool; if not, the step changed nothing


def weights(packs: Pack) -> Weights:
    """Sums the weights of all targets of all packs, whatever dimensions are in front."""
    return Weights(jnp.sum(packs.ce_weight), jnp.sum(packs.gen_weight))


def token_losses(definition, config: Config) -> TokenLoss:
    """Returns a function (params, packs [P, ...]) -> (cross entropy [P, C], flow error [P, G]).

    Both float32 and unweighted. The flow error is the mean square over the channels of a token, of
    the velocity or of the clean latent (`model.prediction`).
    """
    kind, chunk = config.model.prediction, config.compute.cross_entropy_chunk

    def losses(params: Tree, pack: Pack) -> tuple[jax.Array, jax.Array]:
        model = inset.bind(definition, params)
        decoded, _ = model(pack, config.loss.timestep_shift, config.compute)
        hidden = jnp.take_along_axis(decoded.hidden["und"], pack.ce_index[..., None], axis=1)
        head = params["llm"]["head"]["kernel"].astype(hidden.dtype)
        entropy = chunked_cross_entropy(hidden, head, pack.ce_label, chunk)
        prediction = model.predict(decoded.hidden["gen"])
        target = flow.target(pack.gen_latent, pack.gen_noise, kind)
        return entropy, flow_loss(prediction, target)

    return losses


def loss_function(definition, config: Config) -> Callable:
    """Returns a function (params, packs [P, ...], Weights) -> (total, (Losses, ByExample)).

    The weights may be those of a larger batch that these packs are a part of: the losses of all
    parts then add up to the loss of the whole.
    """
    per_token = token_losses(definition, config)
    examples = config.data.capacity.examples

    def loss(params: Tree, pack: Pack, whole: Weights):
        entropy, error = per_token(params, pack)
        entropy = _weighted(entropy, pack.ce_weight)
        error = _weighted(error, pack.gen_weight)
        sums = (jnp.sum(entropy), jnp.sum(error))
        # a weight of zero in total means that every summand is zero too
        means = [s / jnp.where(w > 0, w, 1.0) for s, w in zip(sums, whole, strict=True)]
        total = config.loss.cross_entropy_weight * means[0] + config.loss.flow_weight * means[1]
        by_example = ByExample(
            *(
                _sum_by_example(values, index, examples)
                for values, index in (
                    (entropy, pack.ce_example),
                    (pack.ce_weight, pack.ce_example),
                    (error, pack.gen_example),
                    (pack.gen_weight, pack.gen_example),
                )
            )
        )
        return total, (Losses(total, *means), by_example)

    return loss


def train_step(definition, config: Config) -> Callable[[Tree, Pack], tuple[Tree, Report]]:
    """Returns a function (state, packs [accumulation, P, ...]) -> (state, Report).

    The state is {"params", "ema", "opt_state", "step"}; "ema" holds the trained part only. A loss
    or gradient that is not finite leaves all of it as it was, and the report says so.
    """
    loss = loss_function(definition, config)
    optimizer = optim.create(config.optimizer, config.run.steps)
    patterns = config.optimizer.frozen

    def step(state: Tree, packs: Pack) -> tuple[Tree, Report]:
        trained, frozen = optim.split(state["params"], patterns)
        over_trained = lambda part, pack, whole: loss(optim.merge(frozen, part), pack, whole)
        gradient = jax.value_and_grad(over_trained, has_aux=True)
        grads, losses, by_example = _accumulate(gradient, trained, packs)
        moved, opt_state, told = optimizer.update(grads, state["opt_state"], trained)
        new = {
            "params": optim.merge(frozen, moved),
            "ema": optim.average(state["ema"], moved, config.optimizer.ema_decay),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        finite = jnp.isfinite(losses.total) & jnp.isfinite(told["grad_norm"])
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
        return kept, Report(losses, by_example, finite=finite, **told)

    return step


def initial_state(params: Tree, config: Config) -> Tree:
    """Returns the state before the first step; the average starts at the parameters."""
    trained, _ = optim.split(params, config.optimizer.frozen)
    return {
        "params": params,
        "ema": jax.tree.map(jnp.copy, trained),
        "opt_state": optim.create(config.optimizer, config.run.steps).init(trained),
        "step": jnp.zeros((), jnp.int32),
    }


def state_logical(config: Config) -> Tree:
    """Returns the logical names of every array of the state; () for scalars."""
    logical = inset.logical_axes(config.model)
    trained, _ = optim.split(logical, config.optimizer.frozen)
    return {
        "params": logical,
        "ema": trained,
        "opt_state": optim.state_logical(trained, config.optimizer),
        "step": (),
    }


def _accumulate(gradient: Callable, trained: Tree, packs: Pack):
    """Sums gradients and losses over the first dimension of `packs`, one slice at a time."""
    whole = weights(packs)
    if packs.und_token.shape[0] == 1:
        first = jax.tree.map(lambda x: x[0], packs)
        (_, (losses, by_example)), grads = gradient(trained, first, whole)
        return grads, losses, jax.tree.map(lambda x: x[None], by_example)

    def body(carry, pack):
        (_, (losses, by_example)), grads = gradient(trained, pack, whole)
        return jax.tree.map(jnp.add, carry, (grads, losses)), by_example

    zero = (jax.tree.map(jnp.zeros_like, trained), Losses(*(jnp.zeros(()) for _ in range(3))))
    (grads, losses), by_example = jax.lax.scan(body, zero, packs)
    return grads, losses, by_example


def _weighted(values: jax.Array, weight: jax.Array) -> jax.Array:
    """values * weight, and exactly 0 where the weight is 0, whatever the padding computes."""
    return jnp.where(weight > 0, values, 0.0) * weight


def _sum_by_example(values: jax.Array, example: jax.Array, examples: int) -> jax.Array:
    """Sums [P, token] over the tokens of each example: [P, E]. Padding (-1) goes nowhere."""
    one_hot = example[..., None] == jnp.arange(examples)
    return jnp.sum(jnp.where(one_hot, values[..., None], 0.0), axis=1)
