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

from inset_jax.core import mesh, stages
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.kernels.cross_entropy import chunked_cross_entropy
from inset_jax.kernels.flow_kernel import fused
from inset_jax.kernels.flow_loss import FlowForm, FlowHead, FlowTarget, flow_loss, weighted
from inset_jax.model import flow, inset, layers
from inset_jax.train import guard, optim

Tree = dict[str, Any]
TIME_BUCKETS = 10  # equal parts of [0, 1] that the flow loss is reported by


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


class ByTime(NamedTuple):
    """Weighted sums of the flow loss over the targets in each part of [0, 1], timesteps shifted."""

    flow: jax.Array  # float32 [..., TIME_BUCKETS]
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
    by_time: ByTime
    grad_norm: jax.Array  # before clipping
    grad_norms: dict[str, jax.Array]  # the same by part of the model, see `optim.norms`
    learning_rate: jax.Array
    finite: jax.Array  # bool
    verdict: guard.Verdict


def weights(packs: Pack) -> Weights:
    """Sums the weights of all targets of all packs, whatever dimensions are in front."""
    return Weights(jnp.sum(packs.ce_weight), jnp.sum(packs.gen_weight))


def _entropy(params: Tree, decoded, pack: Pack, config: Config) -> jax.Array:
    """The cross entropy of each next-token target: float32 [P, C]."""
    hidden = jnp.take_along_axis(decoded.hidden["und"], pack.ce_index[..., None], axis=1)
    head = params["llm"]["head"]["kernel"]
    if config.compute.gradient_sums == "compute":  # its gradient has the dtype that it comes in
        head = head.astype(hidden.dtype)
    chunk = config.compute.cross_entropy_chunk
    return chunked_cross_entropy(hidden, head, pack.ce_label, chunk)


def _flow(model, params: Tree, decoded, pack: Pack, coefficient: jax.Array, config: Config):
    """coefficient x the weighted sum of the flow errors, and the error of each token [P, G].

    On TPUs both and their gradient come from one kernel that reads the last hidden states once.
    """
    kind, form = config.model.prediction, config.compute.flow_loss
    if form == "fused" or (form == "auto" and mesh.platform() == "tpu"):
        head = FlowHead(params["llm"]["norm"]["gen"]["scale"], **params["latent_out"])
        target = FlowTarget(pack.gen_latent, pack.gen_noise, pack.gen_weight)
        form = FlowForm(config.model.llm.norm_eps, kind)
        return fused(decoded.last["gen"], head, target, coefficient, form)
    prediction = model.predict(decoded.hidden["gen"])
    error = flow_loss(prediction, flow.target(pack.gen_latent, pack.gen_noise, kind))
    return coefficient * jnp.sum(weighted(error, pack.gen_weight)), error


def loss_function(definition, config: Config) -> Callable:
    """Returns a function (params, packs [P, ...], Weights) -> (total, (Losses, ByExample, ByTime)).

    The weights may be those of a larger batch that these packs are a part of: the losses of all
    parts then add up to the loss of the whole.
    """
    # packs of a later stage may hold more
    examples = max(own.config.data.capacity.examples for own in stages.stages(config))

    def loss(params: Tree, pack: Pack, whole: Weights):
        model = inset.bind(definition, params)
        if config.compute.gradient_sums == "float32":
            layers.sum_in_float32(model)
        decoded, timestep = model(pack, config.loss.timestep_shift, config.compute)
        # a weight of zero in total means that every summand is zero too
        shares = [1 / jnp.where(w > 0, w, 1.0) for w in whole]
        entropy = weighted(_entropy(params, decoded, pack, config), pack.ce_weight)
        coefficient = config.loss.flow_weight * shares[1]
        flow_part, error = _flow(model, params, decoded, pack, coefficient, config)
        error = weighted(error, pack.gen_weight)
        means = [jnp.sum(x) * share for x, share in zip((entropy, error), shares, strict=True)]
        total = config.loss.cross_entropy_weight * means[0] + flow_part
        by_example = ByExample(
            *(
                _sum_by(index, values, examples)
                for values, index in (
                    (entropy, pack.ce_example),
                    (pack.ce_weight, pack.ce_example),
                    (error, pack.gen_example),
                    (pack.gen_weight, pack.gen_example),
                )
            )
        )
        bucket = jnp.minimum(timestep * TIME_BUCKETS, TIME_BUCKETS - 1).astype(jnp.int32)
        sums = [_sum_by(bucket, x, TIME_BUCKETS).sum(0) for x in (error, pack.gen_weight)]
        return total, (Losses(total, *means), by_example, ByTime(*sums))

    return loss


def gradients(definition, config: Config) -> Callable:
    """Returns a function (params, packs [accumulation, P, ...]) -> (gradients of the trained part,
    Losses, ByExample, ByTime), all of the global batch."""
    loss = loss_function(definition, config)

    def over_all(params: Tree, packs: Pack):
        trained, frozen = optim.split(params, config.optimizer.frozen)
        over_trained = lambda part, pack, whole: loss(optim.merge(frozen, part), pack, whole)
        return _accumulate(jax.value_and_grad(over_trained, has_aux=True), trained, packs)

    return over_all


def train_step(definition, config: Config) -> Callable[[Tree, Pack], tuple[Tree, Report]]:
    """Returns a function (state, packs [accumulation, P, ...]) -> (state, Report).

    The state is {"params", "ema", "opt_state", "guard", "step"}; "ema" holds the trained part only.
    A bad step (`train.guard`) leaves all of it as it was, and the report says so; if such steps are
    skipped, its number and the guard's memory go on.
    """
    gradient = gradients(definition, config)
    optimizer = optim.create(config.optimizer, config.run.steps)
    goes_on = {"step", "guard"} if config.run.on_bad_step == guard.SKIP else set()

    def step(state: Tree, packs: Pack) -> tuple[Tree, Report]:
        trained, frozen = optim.split(state["params"], config.optimizer.frozen)
        grads, losses, by_example, by_time = gradient(state["params"], packs)
        moved, opt_state, told = optimizer.update(grads, state["opt_state"], trained)
        finite = jnp.isfinite(losses.total) & jnp.isfinite(told["grad_norm"])
        verdict, memory = guard.judge(state["guard"], finite, told["grad_norm"], config.run)
        new = {
            "params": optim.merge(frozen, moved),
            "ema": optim.average(state["ema"], moved, config.optimizer.ema_decay),
            "opt_state": opt_state,
            "guard": memory,
            "step": state["step"] + 1,
        }
        if_good = lambda n, o: jnp.where(verdict.good, n, o)
        kept = {
            name: new[name] if name in goes_on else jax.tree.map(if_good, new[name], old)
            for name, old in state.items()
        }
        told |= {"grad_norms": optim.norms(grads), "finite": finite, "verdict": verdict}
        return kept, Report(losses, by_example, by_time, **told)

    return step


def initial_state(params: Tree, config: Config) -> Tree:
    """Returns the state before the first step; the average starts at the parameters."""
    trained, _ = optim.split(params, config.optimizer.frozen)
    return {
        "params": params,
        "ema": jax.tree.map(jnp.copy, trained),
        "opt_state": optim.create(config.optimizer, config.run.steps).init(trained),
        "guard": guard.initial(config.run),
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
        "guard": guard.logical(),
        "step": (),
    }


def _accumulate(gradient: Callable, trained: Tree, packs: Pack):
    """Sums gradients and losses over the first dimension of `packs`, one slice at a time."""
    whole = weights(packs)
    if packs.und_token.shape[0] == 1:
        first = jax.tree.map(lambda x: x[0], packs)
        (_, (losses, by_example, by_time)), grads = gradient(trained, first, whole)
        return grads, losses, jax.tree.map(lambda x: x[None], by_example), by_time

    def body(carry, pack):
        (_, (losses, by_example, by_time)), grads = gradient(trained, pack, whole)
        return jax.tree.map(jnp.add, carry, (grads, losses, by_time)), by_example

    zero = jnp.zeros(())
    sums = ByTime(*(jnp.zeros(TIME_BUCKETS) for _ in ByTime._fields))
    start = (jax.tree.map(jnp.zeros_like, trained), Losses(zero, zero, zero), sums)
    (grads, losses, by_time), by_example = jax.lax.scan(body, start, packs)
    return grads, losses, by_example, by_time


def _sum_by(index: jax.Array, values: jax.Array, parts: int) -> jax.Array:
    """Sums [P, token] over the tokens of each index: [P, parts]. Padding (-1) goes nowhere."""
    one_hot = index[..., None] == jnp.arange(parts)
    return jnp.sum(jnp.where(one_hot, values[..., None], 0.0), axis=1)
