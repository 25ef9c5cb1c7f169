"""Next-token cross entropy over a large vocabulary; only one chunk of logits exists at a time.

The backward pass computes each chunk's logits a second time instead of keeping them: four products
of C x M x vocab instead of three, against C x vocab numbers of memory (BAGEL: 4,096 x 152,064).
Where one chunk holds all tokens, its logits are kept.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from inset_jax.core import mesh


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_cross_entropy(
    hidden: jax.Array, head: jax.Array, label: jax.Array, chunk: int
) -> jax.Array:
    """Returns -log softmax(hidden @ head)[label] of every token, float32 [P, C].

    Args:
      hidden: [P, C, M].
      head: [M, vocab], of the same dtype, or float32, which is then rounded to it: the gradient
        has the dtype of the head. Sums over M and over the vocabulary are float32.
      label: int32 [P, C], below vocab.
      chunk: tokens (of all packs of one device) whose logits exist at once.

    Raises:
      ValueError: shapes or dtypes that do not fit together.
    """
    return _forward(hidden, head, label, chunk)[0]


def _forward(hidden, head, label, chunk):
    _check(hidden, head, label, chunk)
    size = _chunk_size(hidden, chunk)
    keep = size == hidden.shape[1]

    def step(head, part):
        hidden, label = part
        logits = _logits(hidden, head)
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        of_label = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
        return head, (log_sum - of_label, log_sum, (logits,) if keep else ())

    def local(hidden, head, label):
        _, (loss, log_sum, kept) = lax.scan(step, head, (_cut(hidden, size), _cut(label, size)))
        return _join(loss, label), log_sum, kept

    packs, chunks = _split(hidden)
    run = _per_device(local, (packs, (), packs), (packs, chunks, chunks))
    loss, log_sum, kept = run(hidden, head.astype(hidden.dtype), label)
    return loss, (hidden, head, label, log_sum, kept)


def _backward(chunk, residual, grad):
    hidden, head, label, log_sum, kept = residual
    size, dtype = _chunk_size(hidden, chunk), head.dtype

    def local(hidden, head, label, grad, log_sum, kept):
        word = jnp.arange(head.shape[1])

        def step(grad_head, part):
            hidden, label, grad, log_sum, kept = part
            logits = kept[0] if kept else _logits(hidden, head)
            probability = jnp.exp(logits - log_sum[..., None])
            slope = grad[..., None] * (probability - (label[..., None] == word))
            slope = slope.astype(hidden.dtype)
            grad_head += _dot("pcm,pcv->mv", hidden, slope)
            return grad_head, _dot("pcv,mv->pcm", slope, head).astype(hidden.dtype)

        # padding has a gradient of zero, so whatever it computes adds nothing
        parts = (*(_cut(x, size) for x in (hidden, label, grad)), log_sum, kept)
        grad_head, grad_hidden = lax.scan(step, jnp.zeros(head.shape, jnp.float32), parts)
        return _join(grad_hidden, hidden), grad_head.astype(dtype)[None]

    packs, chunks = _split(hidden)
    inputs = (packs, (), packs, packs, chunks, chunks)
    # each device's share of the head's gradient in a row of its own; their sum is what XLA reduces,
    # once, where it would reduce every chunk's share by itself
    run = _per_device(local, inputs, (packs, packs))
    grad_hidden, shares = run(hidden, head.astype(hidden.dtype), label, grad, log_sum, kept)
    return grad_hidden, jnp.sum(shares, axis=0), None


def _split(hidden: jax.Array) -> tuple[tuple, tuple]:
    """Logical names of arrays [P, ...] and [chunk, P, ...]: split by packs where these divide."""
    pack = mesh.dividing("pack", hidden.shape[0])
    return (pack,), (None, pack)


def _per_device(local, inputs, outputs):
    """Each device works on its own packs, with the head whole: gathered once, not once a chunk.

    Where the vocabulary is split, sums run over several devices: those are left to XLA.
    """
    return local if mesh.ways("vocab") > 1 else mesh.per_device(local, inputs, outputs)


chunked_cross_entropy.defvjp(_forward, _backward)


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return _dot("pcm,mv->pcv", hidden, head)


def _dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _chunk_size(hidden: jax.Array, chunk: int) -> int:
    """Tokens of each pack in one chunk: equal chunks that waste little padding."""
    packs, tokens, _ = hidden.shape
    local_packs = packs if mesh.dividing("pack", packs) is None else packs // mesh.ways("pack")
    most = max(chunk // max(local_packs, 1), 1)
    chunks = max(-(-tokens // most), 1)
    return -(-tokens // chunks)


def _cut(array: jax.Array, size: int) -> jax.Array:
    """[P, C, ...] -> [chunk, P, size, ...], padded with zeros."""
    packs, tokens = array.shape[:2]
    chunks = -(-tokens // size) if size else 0
    padding = [(0, 0), (0, chunks * size - tokens)] + [(0, 0)] * (array.ndim - 2)
    cut = jnp.pad(array, padding).reshape(packs, chunks, size, *array.shape[2:])
    return jnp.moveaxis(cut, 1, 0)


def _join(chunks: jax.Array, like: jax.Array) -> jax.Array:
    """Undoes the cut: [chunk, P, size, ...] -> [P, C, ...]."""
    joined = jnp.moveaxis(chunks, 0, 1)
    joined = joined.reshape(joined.shape[0], -1, *joined.shape[3:])
    return joined[:, : like.shape[1]]


def _check(hidden, head, label, chunk: int) -> None:
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[2] != head.shape[0]:
        raise ValueError(
            "chunked_cross_entropy expects hidden [P, C, M] and head [M, vocab]: hidden "
            f"{hidden.shape}, head {head.shape}"
        )
    if label.shape != hidden.shape[:2]:
        raise ValueError(f"chunked_cross_entropy: hidden {hidden.shape}, label {label.shape}")
    if head.dtype not in (hidden.dtype, jnp.float32):
        raise ValueError(f"chunked_cross_entropy: hidden {hidden.dtype}, head {head.dtype}")
    if chunk < 1:
        raise ValueError(f"chunked_cross_entropy: chunk is {chunk}, expected at least 1")
