"""The flow loss from the last hidden states on, forward and backward in one pass (Pallas, TPU).

The loss is the end of the network, so its gradient can be formed where the data is: a block of
hidden states is read once, normed, multiplied by the latent head and compared with its target, and
the gradient of that block is written. XLA's plain form (`flow_loss.plain`) reads the hidden states
several times. Weights and the global count enter as one coefficient, so that the cotangent that
arrives here is the constant 1 and nothing multiplies the gradient again.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from inset_jax.core import mesh
from inset_jax.kernels.flow_loss import FlowForm, FlowHead, FlowTarget, plain, weighted
from inset_jax.kernels.interval_form import SUBLANES, dot

TOKENS = 256  # of one step
VMEM_BYTES = 56 << 20


def fused(
    hidden: jax.Array, head: FlowHead, target: FlowTarget, coefficient: jax.Array, form: FlowForm
) -> tuple[jax.Array, jax.Array]:
    """Does what `flow_loss.plain` does; each device works on its own packs and tokens."""
    form = form._replace(interpret=mesh.platform() != "tpu")
    error, loss = _fused(hidden, head, target, coefficient, form)
    return loss, jax.lax.stop_gradient(error)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fused(hidden, head, target, coefficient, form: FlowForm):
    # nobody asks for a gradient: it would be computed in vain
    loss, error = plain(hidden, head, target, coefficient, form)
    return error, loss


def _fused_forward(hidden, head, target, coefficient, form: FlowForm):
    pack = mesh.dividing("pack", hidden.shape[0])
    token = mesh.dividing("token", hidden.shape[1])
    rows, wide, same = (pack, token), (pack, token, None), FlowHead((None,), (None, None), (None,))

    def local(hidden, head, target, coefficient):
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        error, grad, of_head = one_pass(
            flat(hidden), head, FlowTarget(*map(flat, target)), coefficient, form
        )
        names = [name for name in (pack, token) if name]
        of_head = jax.tree.map(lambda x: mesh.total(x, *names), of_head)
        return error.reshape(hidden.shape[:2]), grad.reshape(hidden.shape), of_head

    run = mesh.per_device(local, (wide, same, FlowTarget(wide, wide, rows), ()), (rows, wide, same))
    error, grad, of_head = run(hidden, head, target, coefficient)
    loss = coefficient * jnp.sum(weighted(error, target.weight))
    like = jax.tree.map(lambda x, y: x.astype(y.dtype), of_head, head)
    return (error, loss), (grad, like, target, error)


def _fused_backward(form: FlowForm, residual, cotangent):
    grad, of_head, target, error = residual
    _, slope = cotangent
    # in a training step the slope is the constant 1, and XLA drops these products
    times = lambda x: x * slope.astype(x.dtype)
    of_coefficient = slope * jnp.sum(weighted(error, target.weight))
    nothing = jax.tree.map(jnp.zeros_like, target)
    return times(grad), jax.tree.map(times, of_head), nothing, of_coefficient


_fused.defvjp(_fused_forward, _fused_backward)


def one_pass(
    hidden: jax.Array, head: FlowHead, target: FlowTarget, coefficient: jax.Array, form: FlowForm
) -> tuple[jax.Array, jax.Array, FlowHead]:
    """Returns the error of each token, and gradients of coefficient x sum of weight x error.

    Args:
      hidden: [T, M], before the final norm.
      head: scale [M], kernel [M, L], bias [L], of any float dtype; products are in hidden's.
      target: latent and noise [T, L], weight [T], float32.
      coefficient: float32 scalar.

    Returns:
      float32 [T]; the gradient of `hidden`, in its dtype; and that of `head`, float32.
    """
    tokens, model = hidden.shape
    latents = target.latent.shape[1]
    block = min(TOKENS, -(-tokens // SUBLANES) * SUBLANES)
    by_token = pl.BlockSpec((block, model), lambda t, _: (t, 0))
    across = lambda rows: pl.BlockSpec((rows, block), lambda t, _: (0, t))
    whole = lambda *shape: pl.BlockSpec(shape, lambda t, _: (0,) * len(shape))
    parameters = [whole(1, model), whole(latents, model), whole(latents, 1)]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(pl.cdiv(tokens, block),),
        in_specs=[by_token, across(latents), across(latents), across(1), *parameters],
        out_specs=[across(1), by_token, *parameters],
    )
    shape = lambda size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype)
    call = pl.pallas_call(
        functools.partial(_kernel, tokens=tokens, form=form),
        grid_spec=grid,
        name="flow_loss",
        out_shape=[
            shape((1, tokens)),
            shape(hidden.shape, hidden.dtype),
            shape((1, model)),
            shape((latents, model)),
            shape((latents, 1)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=form.interpret,
    )
    # latents lie [L, T], as XLA lays them out by itself: 64 of them would half fill the lanes
    turned = (target.latent.T, target.noise.T, target.weight[None])
    arrays = (head.scale[None], head.kernel.T.astype(hidden.dtype), head.bias[:, None])
    error, grad, scale, kernel, bias = call(coefficient.reshape(1), hidden, *turned, *arrays)
    return error[0], grad, FlowHead(scale[0], kernel.T, bias[:, 0])


def _kernel(
    coefficient,
    hidden,
    latent,
    noise,
    weight,
    scale,
    kernel,
    bias,
    *results,
    tokens,
    form: FlowForm,
):
    error, grad, grad_scale, grad_kernel, grad_bias = results
    latents, block = latent.shape
    step = pl.program_id(0)

    @pl.when(step == 0)
    def _():
        for sums in (grad_scale, grad_kernel, grad_bias):
            sums[...] = jnp.zeros_like(sums)

    def inside(array, dim):
        # the last block may reach beyond the tokens, where anything may lie
        token = lax.broadcasted_iota(jnp.int32, array.shape, dim) + step * block
        return jnp.where(token < tokens, array.astype(jnp.float32), 0.0)

    x = inside(hidden[...], 0)
    inverse = lax.rsqrt(jnp.mean(x * x, 1, keepdims=True) + form.eps)
    unit = x * inverse
    gain = scale[...].astype(jnp.float32)
    normed = (unit * gain).astype(hidden.dtype)
    prediction_LT = dot(kernel[...], normed, (1, 1)) + bias[...].astype(jnp.float32)
    wanted_LT = noise[...] - latent[...] if form.kind == "velocity" else latent[...]
    wrong_LT = inside(prediction_LT - wanted_LT, 1)
    error[...] = jnp.mean(wrong_LT * wrong_LT, 0, keepdims=True)

    factor = (2 / latents) * coefficient[0]
    pull_LT = wrong_LT * (inside(weight[...], 1) * factor)
    grad_bias[...] += jnp.sum(pull_LT, 1, keepdims=True)
    rounded_LT = pull_LT.astype(hidden.dtype)
    grad_kernel[...] += dot(rounded_LT, normed, (1, 0))
    of_normed = dot(rounded_LT, kernel[...], (0, 0))
    grad_scale[...] += jnp.sum(of_normed * unit, 0, keepdims=True)
    of_unit = of_normed * gain
    back = of_unit - unit * jnp.mean(of_unit * unit, 1, keepdims=True)
    grad[...] = (back * inverse).astype(grad.dtype)
