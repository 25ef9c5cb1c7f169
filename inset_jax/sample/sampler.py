"""Drawing and writing: the loops around the model.

A `Sampler` holds parameters and compiled programs. `draw` computes the still part once, then runs
one forward pass a step for all branches of all pictures; `write` appends tokens to the same cache.
The loops are Python's, so that they can be watched and interrupted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.core.batch import Kept, Pack
from inset_jax.core.config import ComputeConfig, ModelConfig, SampleConfig
from inset_jax.core.mesh import by_pack, constrain, fetch, ways
from inset_jax.data.layout import Item
from inset_jax.model import flow, inset, int8, vae
from inset_jax.sample import cache, guidance, write
from inset_jax.sample.guidance import Scales
from inset_jax.sample.plan import Request, Step, plan
from inset_jax.sample.write import Turn, Writing


class Moment(NamedTuple):
    """What a watcher is shown after each evaluation; arrays are still on the device."""

    index: int  # of the evaluation, from 0
    count: int  # of all evaluations
    t: float
    state: jax.Array  # float32 [P, R, L], x_t that the evaluation read
    velocity: jax.Array  # float32 [P, R, L], after guidance


class Word(NamedTuple):
    """What a watcher is shown after each token of all contexts."""

    index: int
    limit: int
    token: np.ndarray  # int32 [P, E]
    logits: jax.Array  # float32 [P, E, vocab]
    hidden: jax.Array  # [P, E, M], what the logits come from


class Drawing(NamedTuple):
    """The latents of all pictures, in the order of the requests, and what they cost."""

    latents: list[np.ndarray]  # float32 [rows * columns, L] each
    evaluations: int  # forward passes of the loop, each over all branches and pictures
    still_passes: int  # forward passes over the contexts: 1, or 0 if all are empty


class Now(NamedTuple):
    """The numbers that change from step to step, float32 []."""

    t: Any
    dt: Any  # to the next t
    renorm_min: Any


class Programs(NamedTuple):
    """The compiled functions of one model; shapes are compiled as they come."""

    keep: Callable  # (params, pack) -> Kept
    step: Callable  # (params, kept, arrays, state, now, renorm) -> (state, velocity)
    token: Callable  # (params, kept, lines, turn, greedy) -> (token, logits, hidden, kept)
    encode: Callable  # (vae params, image [1, H, W, 3], noise) -> tokens [1, rows * columns, L]
    decode: Callable  # (vae params, tokens [B, rows * columns, L], rows) -> uint8 [B, H, W, 3]


@functools.cache
def programs(config: ModelConfig, compute: ComputeConfig, is_int8: bool = False) -> Programs:
    """Compiled once for equal arguments, whoever asks."""
    definition, _ = inset.abstract(config, is_int8)
    vae_definition, _ = vae.abstract(config.vae)
    patch = config.latents.patch

    def keep(params, pack):
        return cache.keep(inset.bind(definition, params), pack, compute)

    def token(params, kept, batch, turn, greedy):
        return write.step(inset.bind(definition, params), kept, batch, turn, greedy, compute)

    def step(params, kept, arrays, state, now, renorm):
        model = inset.bind(definition, params)
        v = velocity(model, kept, arrays, state, now.t, compute)
        v = guide(v, arrays, renorm, now.renorm_min)
        rows = ("pack", None, None)  # each pack's state stays with the devices that draw it
        return constrain(state - now.dt * v, rows), constrain(v, rows)

    def encode(params, image, noise):
        latents = vae.bind(vae_definition, params).encode(image, noise)
        return vae.patchify(latents, patch)

    def decode(params, tokens, rows):
        latents = vae.unpatchify(tokens, rows, patch)
        return vae.to_uint8(vae.bind(vae_definition, params).decode(latents))

    return Programs(
        jax.jit(keep),
        jax.jit(step, static_argnames="renorm"),
        jax.jit(token, static_argnames="greedy", donate_argnames="kept"),
        jax.jit(encode),
        jax.jit(decode, static_argnames="rows"),
    )


def velocity(
    model: inset.Inset,
    kept: Kept | None,
    arrays: Step,
    state: jax.Array,
    t: jax.Array,
    compute: ComputeConfig,
) -> jax.Array:
    """One forward pass over the noise segments: their velocities, float32 [P, G, L].

    Args:
      state: float32 [P, R, L], x_t.
      t: float32 [], the same for all.
    """
    streams, latent, time = embed(model, arrays, state, t, compute)
    decoded = model.decode(streams, arrays.position, arrays.visibility, compute, kept)
    prediction = model.predict(decoded.hidden["gen"])
    return flow.to_velocity(prediction, latent, time, model.config.prediction)


def embed(
    model: inset.Inset, arrays: Step, state: jax.Array, t: jax.Array, compute: ComputeConfig
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """What enters the first layer, a stream, and the latents [P, G, L] at their times [P, G]."""
    latent = jnp.take_along_axis(state, arrays.source[..., None], axis=1)
    time = jnp.full(arrays.source.shape, t)
    streams = {
        "und": model.embed_und(arrays.token, jnp.full_like(arrays.token, -1), None, compute),
        "gen": model.embed_gen(latent, time, arrays.place, compute),
    }
    return streams, latent, time


def guide(v: jax.Array, arrays: Step, renorm: str, renorm_min: jax.Array) -> jax.Array:
    """From the branches' velocities [P, G, L] to the pictures' [P, R, L]."""
    branches = [
        jnp.take_along_axis(v, arrays.rows[:, number, :, None], axis=1)
        for number in range(arrays.rows.shape[1])
    ]
    if len(branches) == 1:
        return branches[0]
    scales = Scales(arrays.first, arrays.second, arrays.picture)
    return guidance.combine(*branches, scales, renorm, renorm_min)


class Sampler:
    """A model that draws. Works under whatever mesh is set (`jax.set_mesh`), or on one device."""

    def __init__(self, config: ModelConfig, params: dict[str, Any], compute: ComputeConfig):
        """`params` is {"model": tree, "vae": tree}, as checkpoints hold them, or `int8.shrink`."""
        self.config = config
        self.params = params
        self.compute = compute
        self.programs = programs(config, compute, int8.is_shrunk(params["model"]))

    def encode(self, image: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """A picture's clean latents: float32 [rows * columns, L].

        Args:
          image: float32 [H, W, 3] in [-1, 1], sides multiples of the latent stride.
          noise: standard normal draws [h, w, c] for the posterior, or None for its mean.
        """
        noise = None if noise is None else noise[None]
        return fetch(self.programs.encode(self.params["vae"], image[None], noise))[0]

    def decode(self, latents: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A picture from its latents: uint8 [H, W, 3]. `size` counts rows and columns of tokens."""
        return self.decode_all([latents], [size])[0]

    def decode_all(
        self, latents: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """The pictures of several latents; those of one size together, as many as there are packs.

        Raises:
          ValueError: latents are not of their size.
        """
        for one, size in zip(latents, sizes, strict=True):
            if one.shape != (math.prod(size), self.config.latent_dim):
                raise ValueError(f"latents {one.shape} are not {size} of {self.config.latent_dim}")
        found: dict[int, np.ndarray] = {}
        for size in dict.fromkeys(sizes):
            numbers = [number for number, own in enumerate(sizes) if own == size]
            for start in range(0, len(numbers), pack_count()):
                some = numbers[start : start + pack_count()]
                filled = some + [some[-1]] * (pack_count() - len(some))
                batch = by_pack(np.stack([latents[number] for number in filled]))
                pixels = fetch(self.programs.decode(self.params["vae"], batch, size[0]))
                found |= zip(some, pixels)
        return [found[number] for number in range(len(latents))]

    def keep(self, pack: Pack | None) -> Kept | None:
        """Keys and values of a still pack; None for nothing."""
        return None if pack is None else self.programs.keep(self.params["model"], by_pack(pack))

    def draw(
        self,
        requests: Sequence[Request],
        settings: SampleConfig,
        watch: Callable[[Moment], None] | None = None,
    ) -> Drawing:
        """Draws all pictures of all requests together.

        Args:
          settings: guidance, interval, renormalisation, timesteps and shift; the scales are the
            requests' own.
          watch: called after every evaluation; an exception that it raises ends the drawing.

        Raises:
          ValueError: unusable settings, or pictures larger than the position table.
        """
        guidance.check(settings)
        laid = plan(requests, settings.guidance, self.config, pack_count())
        kept = self.keep(laid.still)
        guided, plain, state = by_pack((laid.guided, laid.plain, laid.state))
        times = list(zip(*flow.schedule(settings.num_timesteps, settings.shift), strict=True))
        for index, (t, dt) in enumerate(times):
            arrays = guided if guidance.acts_at(settings, t) else plain
            before, now = state, Now(t, dt, np.float32(settings.renorm_min))
            state, v = self.programs.step(
                self.params["model"], kept, arrays, state, now, settings.renorm
            )
            state.block_until_ready()  # progress is then true, and Ctrl-C stops here
            if watch is not None:
                watch(Moment(index, len(times), float(t), before, v))
        return Drawing(laid.pictures_of(fetch(state)), len(times), int(kept is not None))

    def write(
        self,
        contexts: Sequence[Sequence[Item]],
        limit: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        watch: Callable[[Word], None] | None = None,
        to_the_limit: bool = False,
    ) -> list[Writing]:
        """Continues each context with a text of at most `limit` tokens, all contexts together.

        Args:
          temperature: 0 takes the likeliest token; above, tokens are drawn.
          seeds: one a context, for drawing; what is written does not depend on the other contexts.
          watch: called after every token; an exception that it raises ends the writing.
          to_the_limit: goes on when all texts have ended; only a watcher sees the difference.

        Raises:
          ValueError: an empty context, a limit below 1 or a negative temperature.
        """
        if limit < 1 or temperature < 0 or not all(contexts):
            raise ValueError(
                f"cannot write: limit {limit} (at least 1), temperature {temperature} (0 or more), "
                f"{sum(not items for items in contexts)} empty contexts"
            )
        packs = pack_count()
        seeds = range(len(contexts)) if seeds is None else seeds
        deal = lambda values: [list(values)[pack::packs] for pack in range(packs)]
        still, _ = cache.still_pack(deal(contexts), self.config)
        batch = by_pack(write.lines(deal(contexts), still, deal(seeds), self.config))
        queries = batch.position.shape[1]
        kept = write.room(self.keep(still), queries, cache.bucket(limit))
        token = np.full((packs, queries), self.config.tokens.text_start, np.int32)
        written: list[list[int]] = [[] for _ in contexts]
        ended = [False] * len(contexts)
        for index in range(limit):
            turn = Turn(token, np.int32(index), np.float32(temperature))
            token, logits, hidden, kept = self.programs.token(
                self.params["model"], kept, batch, turn, temperature == 0
            )
            token = fetch(token)
            if watch is not None:
                watch(Word(index, limit, token, logits, hidden))
            for number, ids in enumerate(written):
                word = int(token[number % packs, number // packs])
                ended[number] = ended[number] or word == self.config.tokens.text_end
                if not ended[number]:
                    ids.append(word)
            if all(ended) and not to_the_limit:
                break
        return [Writing(ids, end) for ids, end in zip(written, ended, strict=True)]


def pack_count() -> int:
    """P under the current mesh: one pack for each group of devices that shares no data."""
    return ways("pack")
