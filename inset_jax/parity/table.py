"""What each golden array is: an input of the replay, or something that has to come out of it.

One row per name (a regular expression over the whole name) and file. An array that no row knows is
an error: a new array has to be given a role before it can pass. So is an input that no replay has
read, whatever its name: nothing was compared by it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

INPUT = "input"  # read by the replay
WORDS = "words"  # about the others: neither read nor compared
EXACT = "exact"  # equal, shape and value
FORWARD = "forward"  # relative L2 <= FORWARD_BAR
GRADIENT = "gradient"  # relative L2 <= FORWARD_BAR, or at most ZERO_BAR where it is truly zero
ZERO = "zero"  # mathematically zero: absolute value <= ZERO_BAR
LEVEL = "level"  # uint8 picture: within one grey level
ROUNDING = "rounding"  # made of rounding noise: ours by name and shape, whatever the values

COMPARED = (EXACT, FORWARD, GRADIENT, ZERO, LEVEL)

FORWARD_BAR = 1e-4
ZERO_BAR = 1e-6

# softmax does not change when all keys move by the same vector: their bias has no gradient, and
# what Adam makes of the rounding noise in its place cannot be reproduced
VIT_KEY_BIAS = r"vit_model\..*\.k_proj\.bias"


class Row(NamedTuple):
    name: str  # regular expression
    role: str


def _rows(role: str, *names: str) -> tuple[Row, ...]:
    return tuple(Row(name, role) for name in names)


TABLE: dict[str, tuple[Row, ...]] = {
    "tables.npz": (
        *_rows(INPUT, r"sincos2d_rows_index", r"timestep_t", r"rope_(pos|q|k)"),
        *_rows(INPUT, r"train_timestep_raw", r"conv_(weight|bias|image)"),
        *_rows(FORWARD, r"sincos2d_.*", r"timestep_freq_embedding_\d+"),
        *_rows(FORWARD, r"schedule_n\d+_shift[\d.]+_(t|dt)", r"rope_(cos|sin|q_out|k_out)"),
        *_rows(FORWARD, r"train_timestep_shift[\d.]+", r"conv_(linear_weight|patch_embeds)"),
    ),
    "transforms.npz": (
        *_rows(INPUT, r"input_wh", r".*/params_max_min_stride_maxpixels"),
        *_rows(INPUT, r"pixels\d+/(input_uint8_hwc|args_max_min_stride)", r"(rgba|gray)/input"),
        *_rows(EXACT, r".*/img_num\d+/output_wh", r"pixels\d+/pos_.*", r"posids/.*"),
        *_rows(EXACT, r"(rgba|gray)/output"),
        *_rows(FORWARD, r"pixels\d+/(output_chw|patchified)"),
    ),
    "packing.json": (
        *_rows(WORDS, r"conventions"),
        *_rows(INPUT, r"special", r"\w+/(plan|dropout|numpy_seed)"),
        *_rows(FORWARD, r"\w+/packed/(packed_timesteps|ce_loss_weights)"),
        *_rows(EXACT, r"\w+/packed/.*"),
    ),
    "vae.npz": (
        *_rows(INPUT, r"image", r"noise", r"latent\d+", r"padded_images", r"padded_noise"),
        *_rows(FORWARD, r"moments", r"mean", r"logvar", r"encoded(_mean_only)?"),
        *_rows(FORWARD, r"decoded_from_encoded", r"act/.*", r"decoded\d+", r"latent_tokens"),
        *_rows(FORWARD, r"padded_latent", r"small_alone_latent"),
        *_rows(EXACT, r"latent_tokens_hw", r"latent_position_ids"),
        *_rows(LEVEL, r"decode_image_uint8"),
    ),
    "vit.npz": (
        *_rows(INPUT, r"image\d+"),
        *_rows(EXACT, r"packed_vit_position_ids", r"vit_token_seqlens", r"cu_seqlens"),
        *_rows(FORWARD, r"packed_vit_tokens", r"embeddings", r"hidden_layers", r"final"),
        *_rows(FORWARD, r"connector", r"pos_embed", r"connector_plus_pos"),
    ),
    "train_forward.npz": (
        *_rows(INPUT, r"plan_json", r"sample\d+_image\d+", r"vae_posterior_noise", r"noise"),
        *_rows(EXACT, r"split_lens", r"splits_per_sample", r"attn_modes", r"packed_text_\w+"),
        *_rows(EXACT, r"packed_(position|latent_position|vit_position|label)_ids"),
        *_rows(EXACT, r"packed_(vae|vit|und|gen)_token_indexes", r"vit_token_seqlens"),
        *_rows(EXACT, r"(mse|ce)_loss_indexes", r"sequence_length", r"sample_lens"),
        *_rows(EXACT, r"patchified_vae_latent_shapes", r"attn_mask_allowed_\d+"),
        # the draws are read, and come back out of the layout, -inf and order included
        *_rows(FORWARD, r"packed_timesteps", r"packed_vit_tokens", r"ce_loss_weights"),
        *_rows(FORWARD, r"padded_images", r"padded_latent", r"timesteps_shifted", r"time_embeds"),
        *_rows(FORWARD, r"packed_latent_(clean|noised)", r"packed_sequence", r"hidden_layers"),
        *_rows(FORWARD, r"last_hidden", r"connector", r"mse_pred", r"logits", r"mse", r"ce"),
        *_rows(FORWARD, r"ce_mean", r"mse_mean", r"ce_reweighted"),
    ),
    "grads.npz": (
        *_rows(ZERO, VIT_KEY_BIAS),
        *_rows(FORWARD, r"__loss__", r"__total_grad_norm__"),
        *_rows(GRADIENT, r".*"),
    ),
    "train_steps.npz": (
        *_rows(INPUT, r"noise"),
        *_rows(ROUNDING, rf"(param|ema|param_l2)/{VIT_KEY_BIAS}"),
        *_rows(FORWARD, r"lr_used", r"loss", r"ce", r"mse", r"grad_norm"),
        *_rows(FORWARD, r"(param|ema|param_l2)/.*"),
    ),
    "generate.npz": (
        *_rows(INPUT, r"cases_json", r"init_noise", r"image_shape", r"[^/]+/items_json"),
        *_rows(INPUT, r"[^/]+/item\d+_(vit|vae)", r"[^/]+/vae_posterior_noise\d+"),
        *_rows(EXACT, r"[^/]+/(gen|cfg_text|cfg_img)/(kv_len|rope)"),
        *_rows(FORWARD, r"[^/]+/(gen|cfg_text|cfg_img)/(k|v)"),
        *_rows(FORWARD, r"[^/]+/cfg_(text|img)_scale_used"),
        *_rows(FORWARD, r"[^/]+/(x_t|v_t|t|final_latent)"),
        *_rows(LEVEL, r"[^/]+/image_uint8"),
    ),
    "text_gen.npz": (
        *_rows(WORDS, r"note"),
        *_rows(EXACT, r"[^/]+/(input_tokens|argmax)", r"[^/]+/start_\w+"),
        *_rows(FORWARD, r"[^/]+/(logits|last_hidden)"),
    ),
    "manifest_7b.json": _rows(EXACT, r".*"),
    "manifest_ae.json": _rows(EXACT, r".*"),
}


def role_of(file: str, name: str) -> str:
    """Returns the role of an array.

    Raises:
      ValueError: no row of TABLE knows the file or the name.
    """
    if file not in TABLE:
        raise ValueError(f"{file}: not a golden file that is known; they are {sorted(TABLE)}")
    for row in TABLE[file]:
        if re.fullmatch(row.name, name):
            return row.role
    raise ValueError(f"{file}: array {name!r} has no role in parity/table.py")
