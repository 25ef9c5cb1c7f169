"""The whole model: embed, decode, heads.

Modules define, plain dicts run: `create` builds the NNX modules once and splits them into a
definition and a nested dict of float32 arrays (layers stacked in front); `bind` puts the two
together again inside a jitted function, at no cost when it runs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from inset_jax.core.batch import NULL_IMAGE, NULL_TEXT, Kept, Pack, Visibility
from inset_jax.core.config import ComputeConfig, ModelConfig
from inset_jax.core.mesh import constrain
from inset_jax.model import bridge, flow, int8, layers
from inset_jax.model.decoder import ACTIVATION, Decoded, Decoder
from inset_jax.model.layers import Embedding, Linear, Table
from inset_jax.model.vit import Vit

Params = dict[str, Any]

FROZEN = ("latent_position/*", "connector_position/*")  # sin-cos tables: never trained


class LanguageModel(Decoder):
    """The decoder with its token embedding and head."""

    def __init__(self, config, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        size = (config.vocab_size, config.model_dim)
        self.embed = Embedding(size, ("vocab", "embed"), rngs)
        self.head = Linear(size[::-1], ("embed", "vocab"), rngs, bias=False)


class Inset(nnx.Module):
    """BAGEL's networks without the autoencoder, which stands alone (`model.vae`)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        model, latent = config.llm.model_dim, config.latent_dim
        self.llm = LanguageModel(config.llm, rngs)
        self.vit = Vit(config.vit, rngs)
        self.connector = bridge.Connector(config.vit.width, model, rngs)
        self.connector_position = frozen_table(config, config.connector_side, rngs)
        self.time = bridge.TimeEmbedding(model, config.time_scale, rngs)
        self.latent_in = Linear((latent, model), ("small", "embed"), rngs)
        # zero, so that the first prediction of an untrained head is zero (BAGEL)
        self.latent_out = Linear((model, latent), ("embed", "small"), rngs, init=layers.zeros)
        self.latent_position = frozen_table(config, config.latents.max_side, rngs)
        if config.null_token:
            self.null = Table((2, model), ("small", "embed"), rngs)  # rows: text, image
        self.config = config

    def images(
        self, patch: jax.Array, place: jax.Array, visibility: Visibility, compute: ComputeConfig
    ) -> jax.Array:
        """ViT patches [P, V, X] to features [P, V, M] that enter the und stream."""
        features, _ = self.vit(patch, place, visibility, compute)
        position = constrain(self.connector_position(place, features.dtype), ACTIVATION)
        return self.connector(features) + position

    def embed_und(
        self, token: jax.Array, patch: jax.Array, features: jax.Array | None, compute: ComputeConfig
    ) -> jax.Array:
        """Embeds the und stream: [P, U, M].

        Args:
          token: int32 [P, U].
          patch: int32 [P, U], row of `features`, or a negative code where there is no image.
          features: [P, V, M] from `images`; None where the pack has no images.
        """
        x = constrain(self.llm.embed(token, jnp.dtype(compute.dtype)), ACTIVATION)
        if self.config.null_token:
            row = jnp.where(patch == NULL_IMAGE, 1, 0)
            is_null = ((patch == NULL_TEXT) | (patch == NULL_IMAGE))[..., None]
            x = jnp.where(is_null, self.null(row, x.dtype), x)
        if features is not None:
            rows = jnp.take_along_axis(features, jnp.maximum(patch, 0)[..., None], axis=1)
            x = jnp.where((patch >= 0)[..., None], rows.astype(x.dtype), x)
        return constrain(x, ACTIVATION)

    def embed_gen(
        self, latent: jax.Array, timestep: jax.Array, place: jax.Array, compute: ComputeConfig
    ) -> jax.Array:
        """Embeds the gen stream: latents [P, G, L] at times [P, G] in [0, 1] -> [P, G, M]."""
        dtype = jnp.dtype(compute.dtype)
        x = constrain(self.latent_in(latent.astype(dtype)), ACTIVATION) + self.time(timestep, dtype)
        return x + constrain(self.latent_position(place, dtype), ACTIVATION)

    def decode(
        self,
        streams: dict[str, jax.Array],
        positions: dict[str, jax.Array],
        visibility: dict[str, Visibility],
        compute: ComputeConfig,
        kept: Kept | None = None,
        collect: tuple[str, ...] = (),
    ) -> Decoded:
        """The decoder's layers and final norms; see `Decoder.__call__`."""
        return self.llm(streams, positions, visibility, compute, kept, collect)

    def predict(self, hidden_gen: jax.Array) -> jax.Array:
        """Latent head: [P, G, M] -> float32 [P, G, L]; `config.prediction` says of what."""
        return self.latent_out(hidden_gen).astype(jnp.float32)

    def logits(self, hidden_und: jax.Array) -> jax.Array:
        """Language head: [..., M] -> float32 [..., vocab]. For a few tokens; losses use chunks."""
        return self.llm.head(hidden_und).astype(jnp.float32)

    def __call__(
        self,
        pack: Pack,
        timestep_shift: float,
        compute: ComputeConfig,
        collect: tuple[str, ...] = (),
    ) -> tuple[Decoded, jax.Array]:
        """One training forward pass over a batch of packs.

        Returns:
          what the decoder returns, and the timesteps [P, G] after sigmoid and shift.
        """
        streams, timestep = self.embed(pack, timestep_shift, compute)
        positions = {"und": pack.und_position, "gen": pack.gen_position}
        return self.decode(streams, positions, pack.visibility, compute, None, collect), timestep

    def embed(
        self, pack: Pack, timestep_shift: float, compute: ComputeConfig
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """What enters the first layer, a stream, and the timesteps [P, G]."""
        features = None
        if pack.vit_patch.shape[1]:
            features = self.images(pack.vit_patch, pack.vit_place, pack.vit_visibility, compute)
        und = self.embed_und(pack.und_token, pack.und_patch, features, compute)
        timestep = flow.timestep(pack.gen_timestep, timestep_shift)
        if not pack.gen_latent.shape[1]:
            return {"und": und}, timestep
        noisy = flow.interpolate(pack.gen_latent, pack.gen_noise, timestep)
        gen = self.embed_gen(noisy, timestep, pack.gen_place, compute)
        return {"und": und, "gen": gen}, timestep


def frozen_rows(config: ModelConfig, side: int) -> np.ndarray:
    """The sin-cos table of a model for `side` x `side` places, float32 [side * side, M]."""
    waves = config.llm.model_dim, side, config.position_ratio, config.position_step
    return config.position_scale * bridge.sincos_table(*waves)


def frozen_table(config: ModelConfig, side: int, rngs: nnx.Rngs) -> Table:
    """A sin-cos table: a parameter, so that checkpoints carry it, but never trained."""
    init = lambda key, shape, dtype: jnp.asarray(frozen_rows(config, side), dtype)
    return Table((side * side, config.llm.model_dim), ("small", "embed"), rngs, init=init)


def create(config: ModelConfig, seed: int) -> tuple[nnx.GraphDef, Params]:
    """Returns the model's definition and random parameters, a nested dict of float32 arrays."""
    definition, _ = abstract(config)
    build = lambda: nnx.to_pure_dict(nnx.split(Inset(config, nnx.Rngs(seed)))[1])
    return definition, jax.jit(build)()


def abstract(config: ModelConfig, is_int8: bool = False) -> tuple[nnx.GraphDef, Params]:
    """Like `create` with shapes for arrays; allocates nothing.

    Args:
      is_int8: whether the kernels of the language model's layers are int8 (`model.int8`).
    """
    definition, state = _abstract_state(config, is_int8)
    return definition, nnx.to_pure_dict(state)


def logical_axes(config: ModelConfig, is_int8: bool = False) -> dict:
    """The tree of parameters with a tuple of logical names (`core.mesh.RULES`) for each array."""
    _, state = _abstract_state(config, is_int8)

    def names(path, variable):
        stacked = any(getattr(key, "key", None) == "layers" for key in path)
        return (("layer",) if stacked else ()) + variable.get_metadata("logical")

    is_variable = lambda node: isinstance(node, nnx.Variable)
    tree = jax.tree_util.tree_map_with_path(names, state, is_leaf=is_variable)
    return nnx.to_pure_dict(tree)


def bind(definition: nnx.GraphDef, params: Params) -> Inset:
    """Joins a definition and its parameters; meant for the inside of a jitted function."""
    return nnx.merge(definition, params)


def _abstract_state(config: ModelConfig, is_int8: bool):
    def build():
        model = Inset(config, nnx.Rngs(0))
        if is_int8:
            int8.declare(model.llm.layers)
        return model

    return nnx.split(nnx.eval_shape(build))
