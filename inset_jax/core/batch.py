"""The pack: the one structure that data and model meet in.

Dimension letters, used in comments and as suffixes throughout the project:

    P  packs in a batch               A  axes of a rotary position (1 today)
    U  tokens of the und stream       L  numbers in one latent token
    G  tokens of the gen stream       X  numbers in one ViT patch
    K  keys: [und; gen], U + G        M  model width
    V  ViT patches                    H  query heads, N key-value heads, D head width
    C  next-token targets             F  width inside an MLP
    T  any of U, G, V                 E  examples

Everything here is a NamedTuple: a pytree of NumPy arrays on the host and of JAX arrays under jit,
without an import of JAX.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array under jit

STREAMS = ("und", "gen")  # in the order in which their keys are laid out
NULL_TEXT, NULL_IMAGE = -2, -3  # codes in `und_patch` beside -1, for `ModelConfig.null_token`


class Visibility(NamedTuple):
    """Key k is seen by the queries `low[k] <= q < high[k]` of one stream."""

    low: Array  # int32 [..., key]
    high: Array  # int32 [..., key]; high <= low means that nobody sees the key


class Pack(NamedTuple):
    """One pack (or a batch, with P in front): two static streams, and what is to be learned.

    Padding: tokens 0, `und_patch` -1, weights 0, examples -1, visibility empty. A padding query
    sees nothing and yields zeros; a padding key is seen by nobody.
    """

    # the und stream: text, markers, ViT slots
    und_token: Array  # int32 [U], token id; 0 at ViT slots
    und_patch: (
        Array  # int32 [U], row among the pack's ViT patches; -1 where the slot holds a token,
    )
    # NULL_TEXT or NULL_IMAGE where it holds the learned token of a dropped segment
    und_position: Array  # int32 [A, U], rotary position
    und_example: Array  # int32 [U], index of the example in the pack; -1 for padding

    # the gen stream: latents, clean and noisy
    gen_latent: Array  # float32 [G, L], clean latents x0, scaled and shifted
    gen_noise: Array  # float32 [G, L], eps
    gen_timestep: Array  # float32 [G], standard normal draw before sigmoid and shift; -inf = clean
    gen_place: Array  # int32 [G], row of the latent position table
    gen_position: Array  # int32 [A, G]
    gen_example: Array  # int32 [G]
    gen_weight: Array  # float32 [G], weight in the flow loss: 1 target, 0 conditioning or padding

    # who sees what: for the queries of each stream, all keys [und; gen]
    visibility: dict[str, Visibility]  # {"und": [K] into U, "gen": [K] into G}

    # the images that the ViT reads
    vit_patch: Array  # float32 [V, X] in [-1, 1], or uint8 [V, X]; order (row, column, channel)
    vit_place: Array  # int32 [V], row of the ViT's position tables
    vit_visibility: Visibility  # [V] into V: an image's patches see exactly their own image

    # next-token targets
    ce_index: Array  # int32 [C], row of the und stream
    ce_label: Array  # int32 [C]
    ce_weight: Array  # float32 [C], 0 = padding
    ce_example: Array  # int32 [C]


class Kept(NamedTuple):
    """Keys and values of a still context, for every layer; keys after q/k norm and rotation."""

    key: Array  # [layer, P, kept, N, D]
    value: Array  # [layer, P, kept, N, D]
