"""Contexts, guidance, trajectories and texts against the reference (tests/golden)."""

import json
import pathlib

import jax
import numpy as np
import pytest

from inset_jax.checkpoint import bagel, convert
from inset_jax.core.config import ComputeConfig, SampleConfig
from inset_jax.data.layout import Item
from inset_jax.sample import trace
from inset_jax.sample.plan import Picture, Request, branch_items
from inset_jax.sample.sampler import Sampler

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_a"
BAR = 1e-4
CASES = json.loads(np.load(GOLDEN / "generate.npz")["cases_json"].tobytes())
BRANCH = {"gen": "full", "cfg_text": "without_last_text", "cfg_img": "text"}
CONTEXTS = ("ctx", "stock")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "generate.npz"))


@pytest.fixture(scope="module")
def sampler():
    config = bagel.config_from_bagel(GOLDEN / "ckpt")
    params = jax.tree.map(np.asarray, convert.load_bagel(GOLDEN / "ckpt"))
    return Sampler(config, params, ComputeConfig(dtype="float32", remat="none"))


@pytest.fixture(scope="module")
def requests(golden, sampler):
    return {name: request(golden, sampler, name) for name in CONTEXTS}


def request(golden, sampler, name):
    height_width = lambda image: np.moveaxis(image, 0, -1)
    items = []
    for stored in json.loads(golden[f"{name}/items_json"].tobytes()):
        if stored["type"] == "text":
            items.append(Item("text", ids=stored["ids"]))
            continue
        if name == "stock":
            noise = height_width(golden["stock/vae_posterior_noise0"][0])
            items.append(trace.clean_item(sampler, height_width(golden[stored["vae"]]), noise))
        items.append(Item("vit", image=height_width(golden[stored["vit"]])))
    rows, columns = golden["image_shape"] // sampler.config.latent_stride
    return Request(tuple(items), (Picture((int(rows), int(columns)), golden["init_noise"]),))


def distance(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("name", CONTEXTS)
def test_kept_keys_and_values_of_every_branch(name, golden, sampler, requests):
    contexts = [branch_items(requests[name], branch, sampler.config) for branch in BRANCH.values()]
    for branch, kept in zip(BRANCH, trace.kept(sampler, contexts), strict=True):
        for ours, side in zip(kept, "kv", strict=True):
            assert distance(ours, golden[f"{name}/{branch}/{side}"]) < BAR, (branch, side)


@pytest.mark.parametrize("case", CASES)
def test_drawing(case, golden, sampler, requests):
    stored = CASES[case]
    settings = SampleConfig(
        guidance="bagel",
        interval=tuple(stored["cfg_interval"]),
        renorm=stored["cfg_renorm_type"],
        renorm_min=stored["cfg_renorm_min"],
        num_timesteps=stored["num_timesteps"],
        shift=stored["timestep_shift"],
    )
    scales = (stored["cfg_text_scale"], stored["cfg_img_scale"])
    ours = trace.draw(sampler, requests[stored["ctx"]]._replace(scales=scales), settings)
    assert len(ours.t) == stored["num_timesteps"] - 1
    for name, array in (
        ("t", ours.t),
        ("x_t", ours.state),
        ("v_t", ours.velocity),
        ("final_latent", ours.latent),
    ):
        assert distance(array, golden[f"{case}/{name}"]) < BAR, name
    levels = ours.image.astype(int) - golden[f"{case}/image_uint8"]
    assert np.abs(levels).max() <= 1


@pytest.mark.parametrize("name", CONTEXTS)
def test_greedy_text(name, sampler, requests):
    stored = np.load(GOLDEN / "text_gen.npz")
    count = len(stored[f"{name}/argmax"])
    ours = trace.write(sampler, requests[name].items, count)
    assert ours.token.tolist() == stored[f"{name}/argmax"].tolist()
    assert distance(ours.logits, stored[f"{name}/logits"]) < BAR
    assert distance(ours.hidden, stored[f"{name}/last_hidden"]) < BAR
