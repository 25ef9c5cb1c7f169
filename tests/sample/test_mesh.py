"""Drawing and writing on a mesh equal those on one device. Devices are counted once a process, so
they run in a process of their own: this file as a script."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from inset_jax.core import simulated

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ONE = {}
MESHES = [
    {"fsdp": 2, "context": 2, "tensor": 2},  # every kind of split, more sentences than packs
    {"dcn": 2, "fsdp": 4},  # weights replicated twice, packs that have nothing to do
]


def draw(sizes: dict[str, int]) -> dict:
    """Latents, pictures and words of a few sentences on a mesh; {} is one device."""
    import contextlib

    import jax

    from inset_jax.core import mesh as meshes
    from inset_jax.core.config import MeshConfig, SampleConfig
    from inset_jax.model import inset, vae
    from inset_jax.sample.plan import Request
    from inset_jax.sample.sampler import Sampler
    from tests.sample import small

    sampler = small.make_sampler(small.CONFIG)
    text, image, picture = small.text, small.image, small.picture
    requests = [
        Request((text(1, 2), image(1), text(3), image(2, 28, 28)), (picture(1),), (4.0, 1.5)),
        Request((text(7, 8, 9),), (picture(2, 3, 1), picture(3, 3, 1)), (4.0, 1.0)),
        Request((image(3, 32, 32, "clean"), text(5, 6)), (picture(4, 2, 2),), (2.0, 3.0)),
    ]
    where, share = contextlib.nullcontext(), 1.0
    if sizes:
        chosen = jax.devices()[: int(np.prod(list(sizes.values())))]
        mesh = meshes.build(MeshConfig(**sizes), chosen)
        logical = {
            "model": inset.logical_axes(small.CONFIG),
            "vae": vae.logical_axes(small.CONFIG.vae),
        }
        place = lambda names, leaf: jax.device_put(leaf, meshes.sharding(mesh, names, leaf.shape))
        is_names = lambda node: isinstance(node, tuple)
        params = jax.tree.map(place, logical, sampler.params, is_leaf=is_names)
        sampler = Sampler(small.CONFIG, params, small.COMPUTE)
        kernel = params["model"]["llm"]["layers"]["gen"]["mlp"]["up"]["kernel"]
        where, share = jax.set_mesh(mesh), kernel.addressable_shards[0].data.size / kernel.size
    with where:
        settings = SampleConfig(guidance="inset", num_timesteps=3, renorm="global")
        latents = sampler.draw(requests, settings).latents
        pictures = [p for request in requests for p in request.pictures]
        pixels = sampler.decode_all(latents, [picture.size for picture in pictures])
        words = sampler.write([request.items for request in requests], 3)
    return {
        "share": share,
        "latents": [latent.tolist() for latent in latents],
        "pixels": [own.astype(int).tolist() for own in pixels],
        "words": [own.ids for own in words],
    }


@pytest.fixture(scope="module")
def drawn():
    own = simulated.several(DEVICES, QUICK) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, json.dumps([ONE, *MESHES])]
    ran = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(MESHES)))
def test_a_mesh_draws_and_writes_what_one_device_does(drawn, number):
    one, many = drawn[0], drawn[number + 1]
    for ours, theirs in zip(many["latents"], one["latents"], strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    for ours, theirs in zip(many["pixels"], one["pixels"], strict=True):
        assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 1  # cut off, not rounded
    assert many["words"] == one["words"]
    sizes = MESHES[number]
    assert many["share"] == 1 / (sizes["fsdp"] * sizes.get("tensor", 1))  # really split


if __name__ == "__main__":
    print(json.dumps([draw(sizes) for sizes in json.loads(sys.argv[1])]))
