"""AdamW or Muon over what trains, with schedule, clipping and an average of the weights.

Parameters are split by path patterns into what trains and what is frozen; gradients, optimizer
state and the average exist for the first part alone. The state is a plain nested dict.

Source of the defaults: BAGEL's trainer (AdamW, eps 1e-15, clip by global norm, average without
warm-up). Muon: Keller Jordan et al.; its scale by sqrt(max(in, out)) x 0.2 after Liu et al., 2025
(arXiv:2502.16982), which lets it share AdamW's learning rate. A decay that follows the rate:
Defazio, 2025 (arXiv:2506.02285, AdamC), here for all that decays. Noise keeps matrices at a size
of about the root of rate / decay, so under a constant decay a falling rate shrinks them all.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from inset_jax.core import mesh as meshes
from inset_jax.core.batch import STREAMS
from inset_jax.core.config import OptimizerConfig
from inset_jax.model.inset import FROZEN

Tree = dict[str, Any]

MUON_MOMENTUM = 0.95  # of the orthogonalised momentum; beta1 and beta2 belong to AdamW
MUON_RMS = 0.2  # root mean square of Muon's update at learning rate 1: that of a typical AdamW step
PARTS = (*STREAMS, "vit", "rest")  # of the model, for gradient norms
CLIP_GUARD = 1e-6  # added to the norm before dividing, as PyTorch's clip_grad_norm_ does


class Optimizer(NamedTuple):
    """Two pure functions over the trained part of the parameters."""

    init: Callable[[Tree], Tree]  # trained -> state
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree, dict[str, jax.Array]]]
    # gradients, state, trained -> trained, state, {"grad_norm", "learning_rate"}


def split(params: Tree, patterns: tuple[str, ...]) -> tuple[Tree, Tree]:
    """Splits a tree by its paths, `llm/layers/und/mlp/up/kernel`, into (trained, frozen).

    Args:
      params: nested dict of anything.
      patterns: fnmatch patterns of what is frozen, beside the sin-cos tables that always are.

    Raises:
      ValueError: a pattern matches nothing, or nothing is left to train.
    """
    flat = flatten_dict(params, sep="/")
    for pattern in patterns:
        if not fnmatch.filter(flat, pattern):
            near = difflib.get_close_matches(pattern, [f"{name}/*" for name in params], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; parts are {', '.join(params)}"
            raise ValueError(f"optimizer.frozen: {pattern!r} matches no parameter{hint}")
    is_frozen = lambda path: any(fnmatch.fnmatchcase(path, p) for p in (*FROZEN, *patterns))
    trained = {path: value for path, value in flat.items() if not is_frozen(path)}
    frozen = {path: value for path, value in flat.items() if is_frozen(path)}
    if not trained:
        raise ValueError(f"optimizer.frozen={patterns}: every parameter is frozen")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merge(first: Tree, second: Tree) -> Tree:
    """Joins two trees; where both have a path, the second wins. The inverse of `split`."""
    flat = flatten_dict(first, sep="/") | flatten_dict(second, sep="/")
    return unflatten_dict(flat, sep="/")


def is_block_matrix(path: str) -> bool:
    """Whether Muon takes this parameter: kernels of stacked layers, [layer, in, out], and of the
    autoencoder's convolutions, [row, column, in, out]."""
    is_inside = "layers/" in path or path.startswith(("encoder/", "decoder/"))
    return is_inside and path.endswith("/kernel")


def schedule(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate as a function of the number of updates already made.

    Warm-up is linear. BAGEL's first update has rate 0 (`first_step_zero`); otherwise the count is
    one ahead, so that the first update already moves.
    """
    peak, warmup = config.peak_lr, config.warmup_steps
    if config.schedule == "cosine":
        last = max(steps, warmup + 1)
        curve = optax.schedules.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, last, peak * config.final_lr_ratio
        )
    else:
        curve = optax.schedules.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)
    ahead = 0 if config.first_step_zero else 1
    return lambda count: curve(count + ahead)


def create(config: OptimizerConfig, steps: int) -> Optimizer:
    """Returns the optimizer that the config describes, for a run of so many updates."""
    rate = schedule(config, steps)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    kept = lambda state: _cast(_moments(state), config.moments_dtype)
    wide = lambda moments: _cast(moments, "float32")  # they are computed so

    def init(trained: Tree) -> Tree:
        matrices, rest = _groups(trained, config.name)
        state = {"count": jnp.zeros((), jnp.int32), "adam": kept(adam.init(rest))}
        if matrices:
            state["muon"] = kept(_muon(matrices).init(matrices))
        return state

    def update(grads: Tree, state: Tree, trained: Tree):
        norm = optax.tree.norm(grads)
        clip = jnp.minimum(1.0, config.clip_norm / (norm + CLIP_GUARD))
        grads = jax.tree.map(lambda g: g * clip, grads)
        matrices, rest = _groups(grads, config.name)
        count = state["count"]
        moves, moments = adam.update(rest, optax.ScaleByAdamState(count, **wide(state["adam"])))
        new_state = {"count": count + 1, "adam": kept(moments)}
        if matrices:
            muon = _muon(matrices)
            before = muon.init(matrices)._replace(count=count, **wide(state["muon"]))
            before = before._replace(mu=_shared_out(before.mu))
            turned, moments = muon.update(_shared_out(matrices), before)
            moves = merge(moves, _scaled(turned))
            new_state["muon"] = kept(moments)
        learning_rate = jnp.asarray(rate(count), jnp.float32)
        follows = config.decay_follows_rate and config.peak_lr
        decay = config.weight_decay * (learning_rate / config.peak_lr if follows else 1.0)

        def step(path, p, u):
            beside = matrices and not is_block_matrix("/".join(key.key for key in path))
            own = learning_rate * config.adam_lr_ratio if beside else learning_rate
            return p - own * u - (own * decay * p if _decays(path) else 0)

        moved = jax.tree_util.tree_map_with_path(step, trained, moves)
        return moved, new_state, {"grad_norm": norm, "learning_rate": learning_rate}

    return Optimizer(init, update)


def average(ema: Tree, trained: Tree, decay: float) -> Tree:
    """One step of the exponential moving average: decay * ema + (1 - decay) * trained."""
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, trained)


def norms(grads: Tree) -> dict[str, jax.Array]:
    """Returns the norm of the gradients of each part that trains: und, gen, vit, rest.

    und and gen are the experts with their last norms; the language model's tables, the connector
    and what carries latents in and out are the rest.
    """
    flat = flatten_dict(grads)
    part = lambda path: (
        "vit" if path[0] == "vit" else next((p for p in path if p in STREAMS), "rest")
    )
    inside = {name: [g for path, g in flat.items() if part(path) == name] for name in PARTS}
    return {name: optax.tree.norm(leaves) for name, leaves in inside.items() if leaves}


def state_logical(logical: Tree, config: OptimizerConfig) -> Tree:
    """Returns the logical names of every array of the optimizer state.

    Args:
      logical: those of the trained part of the parameters.
    """
    matrices, rest = _groups(logical, config.name)
    names = {"count": (), "adam": {"mu": rest, "nu": rest}}
    return names | ({"muon": {"mu": matrices}} if matrices else {})


def _groups(tree: Tree, name: str) -> tuple[Tree, Tree]:
    """Splits into (Muon's matrices, AdamW's rest)."""
    flat = flatten_dict(tree, sep="/")
    chosen = {path for path in flat if name == "muon" and is_block_matrix(path)}
    pick = lambda inside: {path: v for path, v in flat.items() if (path in chosen) == inside}
    return unflatten_dict(pick(True), sep="/"), unflatten_dict(pick(False), sep="/")


def _muon(matrices: Tree) -> optax.GradientTransformation:
    """Momentum and Newton-Schulz of every matrix by itself; see `_is_convolution`."""
    numbers = jax.tree.map(
        lambda kernel: optax.contrib.MuonDimensionNumbers(
            (0, 1, 2) if _is_convolution(kernel) else -2, -1
        ),
        matrices,
    )
    return optax.contrib.scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=numbers)


def _shared_out(matrices: Tree) -> Tree:
    """Gives each device whole matrices of its own, of stacks that divide by the devices.

    Newton-Schulz is products of a matrix with itself: devices that have the same matrices would all
    turn all of them, and devices that have parts exchange them at every product.
    """

    def shared(stack: jax.Array) -> jax.Array:
        whole = _is_convolution(stack) or not meshes.dividing("matrix", len(stack))
        return stack if whole else meshes.constrain(stack, ("matrix", None, None))

    return jax.tree.map(shared, matrices)


def _is_convolution(kernel: jax.Array) -> bool:
    """Whether this is one matrix [(row, column, in), out], not a stack of [in, out]."""
    return kernel.ndim == 4


def _scaled(turned: Tree) -> Tree:
    def scaled(update: jax.Array) -> jax.Array:
        *inside, out = update.shape if _is_convolution(update) else update.shape[-2:]
        return update * (MUON_RMS * max(math.prod(inside), out) ** 0.5)

    return jax.tree.map(scaled, turned)


def _moments(state) -> Tree:
    """An optax state as a plain dict, without the count that is kept once and without constants."""
    return {name: value for name, value in state._asdict().items() if name in ("mu", "nu")}


def _cast(tree: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _decays(path) -> bool:
    """Weight decay pulls on matrices and tables; norms and biases are left alone."""
    return path[-1].key in ("kernel", "table")
