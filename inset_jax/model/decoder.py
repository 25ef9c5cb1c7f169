"""The Mixture-of-Transformers decoder: two experts, two streams, one attention.

Each expert is a plain dense block over its own stream; the streams meet in attention, where the
queries of each stream see the keys [kept; und; gen]. Source: BAGEL, section 2 (MoT); Qwen2.5 with
an RMS norm on queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from inset_jax.core.batch import STREAMS, Kept, Visibility
from inset_jax.core.config import ComputeConfig, LlmConfig
from inset_jax.core.mesh import constrain
from inset_jax.kernels.attend import attend, chosen
from inset_jax.model import layers
from inset_jax.model.layers import Linear, RmsNorm

ACTIVATION = ("pack", "token", "feature")

INPUT = "layer_input"  # of a layer, as remat policies know it

# What a layer keeps for its backward pass beside its input: "dots" computes no product of matrices
# twice, "offload" keeps nothing and has the input in the host's memory until it is needed.
REMAT: dict[str, Callable | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention", layers.PRODUCT),
    ),
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(INPUT,),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def remat(body: Callable, policy: str) -> Callable:
    """Returns the body of a scan over layers, with what its backward pass keeps decided.

    Args:
      body: (input of the layer, what is scanned over) -> (its output, what is collected).
      policy: a name in REMAT.
    """
    if policy == "none":
        return body

    def named(x, layer):
        return body(jax.tree.map(lambda leaf: checkpoint_name(leaf, INPUT), x), layer)

    return jax.checkpoint(named, policy=REMAT[policy], prevent_cse=False)


class Attention(nnx.Module):
    """One expert's projections around the shared attention."""

    def __init__(self, config: LlmConfig, rngs: nnx.Rngs):
        model, head = config.model_dim, config.head_dim
        query, pair = config.query_heads * head, config.kv_heads * head
        self.query = Linear((model, query), ("embed", "heads"), rngs)
        self.key = Linear((model, pair), ("embed", "kv_heads"), rngs)
        self.value = Linear((model, pair), ("embed", "kv_heads"), rngs)
        self.out = Linear((query, model), ("heads", "embed"), rngs, bias=False)
        self.query_norm = RmsNorm(head, "head_dim", config.norm_eps, rngs)
        self.key_norm = RmsNorm(head, "head_dim", config.norm_eps, rngs)
        self.head_dim = head

    def project(self, x: jax.Array, cos_sin) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [P, T, M] -> query [P, T, H, D], key and value [P, T, N, D]; normed and rotated."""
        split = lambda y: rearrange(y, "p t (h d) -> p t h d", d=self.head_dim)
        query = layers.rotate(self.query_norm(split(self.query(x))), cos_sin)
        key = layers.rotate(self.key_norm(split(self.key(x))), cos_sin)
        return query, key, split(self.value(x))


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlmConfig, rngs: nnx.Rngs):
        wide = (config.model_dim, config.mlp_dim)
        self.gate = Linear(wide, ("embed", "mlp"), rngs, bias=False)
        self.up = Linear(wide, ("embed", "mlp"), rngs, bias=False)
        self.down = Linear(wide[::-1], ("mlp", "embed"), rngs, bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Expert(nnx.Module):
    """One expert's share of a layer."""

    def __init__(self, config: LlmConfig, rngs: nnx.Rngs):
        self.input_norm = RmsNorm(config.model_dim, "embed", config.norm_eps, rngs)
        self.attention = Attention(config, rngs)
        self.post_norm = RmsNorm(config.model_dim, "embed", config.norm_eps, rngs)
        self.mlp = Mlp(config, rngs)


class MotLayer(nnx.Module):
    """One layer: an expert a stream."""

    def __init__(self, config: LlmConfig, rngs: nnx.Rngs):
        for name in STREAMS:
            setattr(self, name, Expert(config, rngs))

    def __call__(
        self,
        streams: dict[str, jax.Array],
        cos_sin: dict[str, tuple[jax.Array, jax.Array]],
        visibility: dict[str, Visibility],
        kept: Kept | None,
        implementation: str | Callable,
    ) -> tuple[dict[str, jax.Array], Kept]:
        """Returns the streams after this layer and the keys and values they brought.

        `kept` is one layer's slice: key and value [P, kept, N, D].
        """
        present = [name for name in STREAMS if name in streams]
        projected = {}
        for name in present:
            expert = getattr(self, name)
            projected[name] = expert.attention.project(
                expert.input_norm(streams[name]), cos_sin[name]
            )
        own = Kept(*(jnp.concatenate([projected[n][i] for n in present], 1) for i in (1, 2)))
        key, value = own
        if kept is not None:
            key = jnp.concatenate([kept.key.astype(key.dtype), key], axis=1)
            value = jnp.concatenate([kept.value.astype(value.dtype), value], axis=1)
        after = {}
        for name in present:
            expert = getattr(self, name)
            seen = attend(projected[name][0], key, value, visibility[name], implementation)
            seen = expert.attention.out(rearrange(seen, "p t h d -> p t (h d)"))
            x = constrain(streams[name] + seen, ACTIVATION)
            after[name] = constrain(x + expert.mlp(expert.post_norm(x)), ACTIVATION)
        return after, own


class Decoded(NamedTuple):
    """What the decoder returns; `kept` and `residuals` only when they were asked for."""

    hidden: dict[str, jax.Array]  # a stream: [P, T, M] after the final norm
    last: dict[str, jax.Array]  # a stream: [P, T, M] before it
    kept: Kept | None  # own keys and values of every layer, [layer, P, own, N, D]
    residuals: dict[str, jax.Array] | None  # a stream: [layer, P, T, M], after each layer


class Decoder(nnx.Module):
    """All layers and the final norms."""

    def __init__(self, config: LlmConfig, rngs: nnx.Rngs):
        self.layers = layers.stack(lambda r: MotLayer(config, r), config.layers, rngs)
        self.norm = nnx.Dict(
            {n: RmsNorm(config.model_dim, "embed", config.norm_eps, rngs) for n in STREAMS}
        )
        self.config = config

    def __call__(
        self,
        streams: dict[str, jax.Array],
        positions: dict[str, jax.Array],
        visibility: dict[str, Visibility],
        compute: ComputeConfig,
        kept: Kept | None = None,
        collect: tuple[str, ...] = (),
    ) -> Decoded:
        """Runs the layers by `lax.scan` over the stacked parameters.

        Args:
          streams: a stream: [P, T, M]; a stream that is absent is not computed.
          positions: a stream: int32 [P, A, T].
          visibility: a stream: intervals over its queries for all keys [kept; und; gen].
          kept: keys and values of a still context, laid out before the streams' own.
          collect: of "kept" and "residuals", what to return for every layer.
        """
        cos_sin = {
            name: layers.rotary(positions[name], self.config.head_dim, self.config.rope_theta)
            for name in streams
        }
        definition, stacked = nnx.split(self.layers)

        def body(streams, layer):
            params, kept = layer
            module = nnx.merge(definition, params)
            after, own = module(streams, cos_sin, visibility, kept, chosen(compute))
            outputs = {"kept": own, "residuals": after}
            return after, {name: outputs[name] for name in collect}

        last, collected = jax.lax.scan(remat(body, compute.remat), streams, (stacked, kept))
        return Decoded(
            {name: self.norm[name](x) for name, x in last.items()},
            last,
            collected.get("kept"),
            collected.get("residuals"),
        )
