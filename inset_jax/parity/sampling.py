"""Replays of sampling: caches, guided trajectories, pictures, greedy texts."""

from __future__ import annotations

import json

import numpy as np

from inset_jax.core.config import SampleConfig
from inset_jax.data.layout import Item, layout
from inset_jax.parity.networks import COMPUTE, Reference, reference
from inset_jax.parity.report import Golden, load
from inset_jax.sample import guidance, trace
from inset_jax.sample.plan import Picture, Request, branch_items
from inset_jax.sample.sampler import Sampler

# the reference's name of a context -> our branch of BAGEL's guidance
BAGEL = guidance.MODES["bagel"]
CONTEXTS = {"gen": "full", "cfg_text": BAGEL.first, "cfg_img": BAGEL.second}


def sampler_of(ref: Reference) -> Sampler:
    return Sampler(ref.config, ref.params, COMPUTE)


def items_of(name: str, stored, sampler: Sampler) -> tuple[Item, ...]:
    """A stored context as items; an image has a clean VAE copy where its noise is stored.

    Raises:
      ValueError: more noises are stored than there are images to encode.
    """
    items, encoded = [], 0
    prefix = f"{name}/vae_posterior_noise"
    for entry in json.loads(stored[f"{name}/items_json"].tobytes()):
        if entry["type"] == "text":
            items.append(Item("text", ids=entry["ids"]))
        if "vae" in entry and f"{prefix}{encoded}" in stored:
            pixels = stored[entry["vae"]].transpose(1, 2, 0)
            noise = stored[f"{prefix}{encoded}"][0].transpose(1, 2, 0)
            items.append(trace.clean_item(sampler, pixels, noise))
            encoded += 1
        elif "vae" in entry:
            stored.get(entry["vae"])  # listed and left out: the context sees the ViT's copy alone
        if "vit" in entry:
            items.append(Item("vit", image=stored[entry["vit"]].transpose(1, 2, 0)))
    if encoded < (noises := sum(other.startswith(prefix) for other in stored)):
        raise ValueError(f"{prefix}*: {noises} noises, but {encoded} images to encode with them")
    return tuple(items)


def context_names(stored) -> list[str]:
    return [name.removesuffix("/items_json") for name in stored if name.endswith("/items_json")]


def next_position(items: tuple[Item, ...], sampler: Sampler) -> int:
    """The rotary position of whatever follows a context."""
    after = Item("target", size=(1, 1))
    return int(layout([[*items, after]], sampler.config).position[0, -1])


def replay_generate(golden: Golden):
    stored, ref = golden.arrays, reference(golden.folder, golden.weights)
    sampler, ours = sampler_of(ref), {}
    requests = requests_of(stored, sampler)
    for name, request in requests.items():
        ours |= _caches(name, request, sampler)
    for case, settings in json.loads(stored["cases_json"].tobytes()).items():
        ours |= _case(case, settings, requests[settings["ctx"]], sampler)
    return golden, ours


def requests_of(stored, sampler: Sampler) -> dict[str, Request]:
    """The stored contexts, each with the picture that is drawn from it."""
    height, width = stored["image_shape"].tolist()
    stride = sampler.config.latent_stride
    picture = Picture((height // stride, width // stride), stored["init_noise"])
    return {
        name: Request(items_of(name, stored, sampler), (picture,)) for name in context_names(stored)
    }


def _caches(name: str, request: Request, sampler: Sampler) -> dict[str, np.ndarray]:
    """Kept keys and values of every branch, all branches computed in one pack."""
    contexts = {
        context: branch_items(request, branch, sampler.config)
        for context, branch in CONTEXTS.items()
    }
    filled = {context: items for context, items in contexts.items() if items}
    kept = dict(zip(filled, trace.kept(sampler, list(filled.values())), strict=True))
    llm = sampler.config.llm
    nothing = np.zeros((llm.layers, 0, llm.kv_heads, llm.head_dim), np.float32)
    ours = {}
    for context, items in contexts.items():
        tokens = len(layout([list(items)], sampler.config).stream)
        ours[f"{name}/{context}/kv_len"] = np.asarray([tokens])
        ours[f"{name}/{context}/rope"] = np.asarray([next_position(items, sampler)])
        key, value = kept.get(context, (nothing, nothing))
        ours |= {f"{name}/{context}/k": key, f"{name}/{context}/v": value}
    return ours


def asked(settings: dict, request: Request) -> tuple[Request, SampleConfig]:
    """A stored guidance case over its context's request, in our words."""
    low, high = settings["cfg_interval"]
    acts = low < high  # the reference takes an empty interval, in which guidance never acts
    sample = SampleConfig(
        guidance="bagel" if acts else "none",
        interval=(low, high) if acts else (0.0, 1.0),
        renorm=settings["cfg_renorm_type"],
        renorm_min=settings["cfg_renorm_min"],
        num_timesteps=settings["num_timesteps"],
        shift=settings["timestep_shift"],
    )
    scales = (settings["cfg_text_scale"], settings["cfg_img_scale"])
    return request._replace(scales=scales), sample


def _case(case: str, settings: dict, request: Request, sampler: Sampler) -> dict[str, np.ndarray]:
    request, sample = asked(settings, request)
    drawn, scales = trace.draw(sampler, request, sample), request.scales
    guided = sample.guidance != "none"
    acts = np.asarray([guided and guidance.acts_at(sample, t) for t in drawn.t])
    return {
        f"{case}/x_t": drawn.state,
        f"{case}/v_t": drawn.velocity,
        f"{case}/t": drawn.t,
        f"{case}/final_latent": drawn.latent,
        f"{case}/image_uint8": drawn.image,
        f"{case}/cfg_text_scale_used": np.where(acts, scales[0], 1.0),
        f"{case}/cfg_img_scale_used": np.where(acts, scales[1], 1.0),
    }


def replay_text(golden: Golden):
    stored, ref = golden.arrays, reference(golden.folder, golden.weights)
    sampler, ours = sampler_of(ref), {}
    contexts = load(golden.folder / "generate.npz").arrays  # where the contexts' items are
    for name in context_names(contexts):
        if f"{name}/input_tokens" not in stored:
            continue
        items = items_of(name, contexts, sampler)
        words = trace.write(sampler, items, len(stored[f"{name}/input_tokens"]))
        start, tokens = ref.config.tokens.text_start, len(layout([items], ref.config).stream)
        ours |= {
            f"{name}/input_tokens": np.asarray([start, *words.token[:-1]]),
            f"{name}/argmax": words.token,
            f"{name}/logits": words.logits,
            f"{name}/last_hidden": words.hidden,
            f"{name}/start_packed_start_tokens": np.asarray([start]),
            f"{name}/start_packed_query_position_ids": np.asarray([next_position(items, sampler)]),
            f"{name}/start_key_values_lens": np.asarray([tokens]),
            f"{name}/start_packed_key_value_indexes": np.arange(tokens),
        }
    return golden, ours
