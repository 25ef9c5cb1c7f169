"""BAGEL's folder: its JSON files as a `ModelConfig` and back.

    config.json          latent_patch_size, max_latent_size, vit_max_num_patch_per_side, vae_config
    llm_config.json      Qwen2's names
    vit_config.json      SigLIP's names; num_hidden_layers counts one layer that never runs
    special_tokens.json  ids of the four tokens, where they are not Qwen2.5's (`tokenizer`)

The released folder has no vae_config: BAGEL hard-codes the full-size FLUX autoencoder, as the
defaults of `VaeConfig` do, and a table of 64 latent tokens and of 70 patches a side.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from inset_jax.checkpoint import json_files, tokenizer, unfinished
from inset_jax.core.config import (
    LatentConfig,
    LlmConfig,
    ModelConfig,
    VaeConfig,
    VitConfig,
)

CONFIG_FILES = ("config.json", "llm_config.json", "vit_config.json", tokenizer.STATED)
UNUSED_VIT_LAYERS = 1  # stored but never run: BAGEL reads the features before SigLIP's last layer

# file -> our field -> BAGEL's key
LLM_KEYS = {
    "vocab_size": "vocab_size",
    "model_dim": "hidden_size",
    "layers": "num_hidden_layers",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}
VIT_KEYS = {
    "width": "hidden_size",
    "mlp_dim": "intermediate_size",
    "heads": "num_attention_heads",
    "patch": "patch_size",
}
VAE_KEYS = {
    "channels": "ch",
    "res_blocks": "num_res_blocks",
    "latent_channels": "z_channels",
    "scale": "scale_factor",
    "shift": "shift_factor",
}
VAE_KIND = "kind"  # ours; BAGEL knows one kind of autoencoder, and its files do not say so
# what the code here computes, whatever the folder says: anything else is refused
FIXED: dict[str, dict[str, Any]] = {
    "config.json": {"connector_act": "gelu_pytorch_tanh", "interpolate_pos": False},
    "llm_config.json": {"hidden_act": "silu", "rope_scaling": None},
    "vit_config.json": {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3},
}


def is_bagel(folder: str | pathlib.Path) -> bool:
    """Whether a folder looks like BAGEL's: it has the language model's config and no steps.

    Raises:
      ValueError: a conversion into the folder has not come to its end.
    """
    unfinished.refuse(folder)
    folder = pathlib.Path(folder)
    if (folder / "llm_config.json").is_file():
        return True
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def config_from_bagel(folder: str | pathlib.Path) -> ModelConfig:
    """Reads the sizes of a BAGEL-format folder.

    Raises:
      ValueError: a file or key is missing or of the wrong type, or asks for what BAGEL's code
        never does (another activation, rotary scaling).
    """
    unfinished.refuse(folder)
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    main = json_files.read(folder / "config.json") if (folder / "config.json").is_file() else {}
    llm, vit = _part(folder, "llm_config", main), _part(folder, "vit_config", main)
    _check_fixed("config.json", main, folder / "config.json")
    vae = main.get("vae_config") or {}
    llm_where, vit_where = folder / "llm_config.json", folder / "vit_config.json"
    where = folder / "config.json"
    return ModelConfig(
        llm=to_llm_config(llm, llm_where),
        vit=to_vit_config(vit, vit_where),
        vae=to_vae_config(vae, where) if vae else VaeConfig(),
        latents=LatentConfig(
            patch=json_files.number(main, "latent_patch_size", where, default=LatentConfig.patch),
            max_side=json_files.number(
                main, "max_latent_size", where, default=LatentConfig.max_side
            ),
        ),
        tokens=tokenizer.special_ids(folder, llm["vocab_size"]),
        connector_side=json_files.number(
            main, "vit_max_num_patch_per_side", where, default=ModelConfig.connector_side
        ),
    )


def to_files(config: ModelConfig) -> dict[str, dict]:
    """Returns BAGEL's JSON files for a model, by file name; the inverse of `config_from_bagel`.

    Raises:
      ValueError: BAGEL's format cannot say what the config asks for.
    """
    llm, vit, vae = config.llm, config.vit, config.vae
    for found, wanted, field in (
        (config.prediction, "velocity", "prediction"),
        (config.null_token, False, "null_token"),
        (config.time_scale, 1.0, "time_scale"),
        (llm.query_heads * llm.head_dim, llm.model_dim, "llm.query_heads * llm.head_dim"),
    ):
        if found != wanted:
            raise ValueError(
                f"BAGEL's format cannot hold this model: {field} is {found!r}, not {wanted!r}"
            )
    return {
        "config.json": {
            "model_type": "bagel",
            "visual_gen": True,
            "visual_und": True,
            "latent_patch_size": config.latents.patch,
            "max_latent_size": config.latents.max_side,
            "vit_max_num_patch_per_side": config.connector_side,
            **FIXED["config.json"],
            "vae_config": from_vae_config(vae),
        },
        "llm_config.json": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **{key: getattr(llm, field) for field, key in LLM_KEYS.items()},
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "qk_norm": True,
            "layer_module": "Qwen2MoTDecoderLayer",
        },
        "vit_config.json": {
            "model_type": "siglip_vision_model",
            **{key: getattr(vit, field) for field, key in VIT_KEYS.items()},
            "num_hidden_layers": vit.layers + UNUSED_VIT_LAYERS,
            "image_size": vit.side * vit.patch,
            "layer_norm_eps": vit.norm_eps,
            **FIXED["vit_config.json"],
        },
        tokenizer.STATED: {
            key: getattr(config.tokens, field) for field, (key, _) in tokenizer.KEYS.items()
        },
    }


def from_vae_config(config: VaeConfig) -> dict[str, Any]:
    """Returns an autoencoder's sizes under BAGEL's keys; `to_vae_config` is the inverse."""
    return {
        **{key: getattr(config, field) for field, key in VAE_KEYS.items()},
        **({} if config.kind == "flux" else {VAE_KIND: config.kind}),
        "in_channels": 3,
        "out_ch": 3,
        "downsample": config.downsample,
        "ch_mult": list(config.multipliers),
    }


def to_vae_config(values: Mapping[str, Any], where: pathlib.Path) -> VaeConfig:
    """Reads an autoencoder's sizes from BAGEL's keys; `where` is the file, for messages.

    Raises:
      ValueError: a key is missing or of the wrong type.
    """
    found = {field: json_files.number(values, key, where) for field, key in VAE_KEYS.items()}
    multipliers = values.get("ch_mult")
    if not isinstance(multipliers, list) or not all(isinstance(m, int) for m in multipliers):
        raise ValueError(f"{where}: vae_config.ch_mult is {multipliers!r}, expected whole numbers")
    kind = values.get(VAE_KIND, "flux")
    if kind not in ("flux", "linear"):
        raise ValueError(f"{where}: vae_config.{VAE_KIND} is {kind!r}, expected 'flux' or 'linear'")
    return VaeConfig(**found, multipliers=tuple(multipliers), kind=kind)


def to_llm_config(values: Mapping[str, Any], where: pathlib.Path) -> LlmConfig:
    """Reads the language model's sizes from Qwen2's keys; `where` is the file, for messages.

    Raises:
      ValueError: a key is missing, of the wrong type, or asks for what is not done here.
    """
    _check_fixed("llm_config.json", values, where)
    defaults = {"rope_theta": LlmConfig.rope_theta, "norm_eps": LlmConfig.norm_eps}
    found = {
        field: json_files.number(values, key, where, defaults.get(field))
        for field, key in LLM_KEYS.items()
    }
    if found["model_dim"] % found["query_heads"]:
        raise ValueError(
            f"{where}: hidden_size {found['model_dim']} does not divide into "
            f"num_attention_heads {found['query_heads']}"
        )
    return LlmConfig(**found, head_dim=found["model_dim"] // found["query_heads"])


def to_vit_config(values: Mapping[str, Any], where: pathlib.Path) -> VitConfig:
    """Reads the ViT's sizes from SigLIP's keys; its last layer is stored and never runs.

    Raises:
      ValueError: a key is missing, of the wrong type, or asks for what is not done here.
    """
    _check_fixed("vit_config.json", values, where)
    found = {field: json_files.number(values, key, where) for field, key in VIT_KEYS.items()}
    layers = json_files.number(values, "num_hidden_layers", where) - UNUSED_VIT_LAYERS
    pixels = json_files.number(values, "image_size", where)
    if layers < 0:
        raise ValueError(f"{where}: num_hidden_layers is 0, but one layer is stored and never run")
    if pixels % found["patch"]:
        raise ValueError(
            f"{where}: image_size {pixels} is not a multiple of patch_size {found['patch']}"
        )
    eps = json_files.number(values, "layer_norm_eps", where, VitConfig.norm_eps)
    return VitConfig(**found, layers=layers, side=pixels // found["patch"], norm_eps=eps)


def _check_fixed(name: str, values: Mapping[str, Any], where: pathlib.Path) -> None:
    for key, value in FIXED[name].items():
        if values.get(key, value) != value:
            raise ValueError(f"{where}: {key} is {values[key]!r}; only {value!r} is supported")


def _part(folder: pathlib.Path, name: str, main: Mapping[str, Any]) -> dict[str, Any]:
    """Reads `<name>.json`, or the group of that name inside config.json."""
    path = folder / f"{name}.json"
    if path.is_file():
        return json_files.read(path)
    if isinstance(main.get(name), dict):
        return main[name]
    raise ValueError(
        f"{path}: missing, and config.json has no {name}; expected a BAGEL folder with "
        "llm_config.json, vit_config.json, ema.safetensors and ae.safetensors"
    )
