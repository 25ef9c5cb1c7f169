"""One step on eight devices equals the step on one. Devices are counted once a process, so the
steps run in a process of their own: this file as a script."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from inset_jax.core import simulated

DEVICES = 8
ONE = {"fsdp": 1}
QUICK = (  # what is compiled here runs once
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def measure(sizes: dict[str, int]) -> dict:
    """One step of configs/tiny.py on a mesh: figures that must not depend on it."""
    import jax
    import numpy as np

    from configs import tiny
    from inset_jax.core import mesh as meshes
    from inset_jax.core.config import MeshConfig, edit
    from inset_jax.data import pack as packing
    from inset_jax.data.pack import Item
    from inset_jax.model import inset
    from inset_jax.train import start, step

    config = edit(
        tiny.experiment(),
        data__packs=4,
        compute__remat="full",
        optimizer__first_step_zero=False,
        optimizer__eps=1e-3,
        mesh=MeshConfig(**sizes),
    )

    def example(rng):
        ids = lambda n: rng.integers(0, 500, n).tolist()
        pixels = rng.integers(0, 256, (28, 42, 3), dtype=np.uint8)
        latents = lambda: rng.standard_normal((6, config.model.latent_dim)).astype(np.float32)
        target = Item(
            "target", size=(2, 3), latent=latents(), noise=latents(), timestep=rng.normal()
        )
        words = [Item("text", ids(5)), Item("text", ids(int(rng.integers(1, 9))), loss=True)]
        return [words[0], Item("vit", image=pixels), words[1], target]

    def pack(number):
        rng = np.random.default_rng(number)
        laid = packing.layout([example(rng) for _ in range(1 + number % 2)], config.model)
        return packing.assemble(laid, config.data.capacity, config.model)

    packs = packing.stack([packing.stack([pack(n) for n in range(config.data.packs)])])
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    mesh = meshes.build(config.mesh, devices)
    definition, _ = inset.abstract(config.model)
    with jax.set_mesh(mesh):
        shapes = start.wanted(config, mesh)[0]
        places = jax.tree.map(lambda leaf: leaf.sharding, shapes)

        # filled here: compiling the initialisers takes longer than the step does
        random = np.random.default_rng(0)
        fill = lambda leaf: 0.1 * random.standard_normal(leaf.shape).astype(leaf.dtype)
        state = step.initial_state(jax.tree.map(fill, shapes["params"]), config)
        state = jax.device_put(state, places)
        advance = jax.jit(step.train_step(definition, config), out_shardings=(places, None))
        state, report = advance(state, start.place(packs, mesh))
        embed = lambda params, ids: inset.bind(definition, params).llm.embed(ids, "float32")
        ids = meshes.by_pack(np.array([[0, -1, 511, 512]] * config.data.packs))
        rows = jax.jit(embed)(state["params"], ids)
    kernel = state["params"]["llm"]["layers"]["gen"]["mlp"]["up"]["kernel"]
    norms = jax.tree.map(lambda x: float(np.linalg.norm(np.asarray(x))), state["params"])
    return {
        "losses": [float(x) for x in report.losses],
        "grad_norm": float(report.grad_norm),
        "by_example": [np.asarray(x).tolist() for x in report.by_example],
        "params": jax.tree.leaves(norms),
        "unknown": np.isnan(np.asarray(rows)).all(-1).tolist(),
        "share": kernel.addressable_shards[0].data.size / kernel.size,
    }


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 2, "context": 2, "tensor": 2},
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_step_on_a_mesh_equals_the_step_on_one_device(sizes):
    root = pathlib.Path(__file__).parents[2]
    own = simulated.several(DEVICES, QUICK) | {"PYTHONPATH": str(root)}
    command = [sys.executable, __file__, json.dumps([ONE, sizes])]
    ran = subprocess.run(command, env=os.environ | own, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, many = json.loads(ran.stdout.splitlines()[-1])
    assert one["losses"][1] > 0
    assert one["losses"][2] > 0
    for figure in ("losses", "grad_norm", "params"):
        assert many[figure] == pytest.approx(one[figure], rel=1e-5), figure
    for ours, theirs in zip(many["by_example"], one["by_example"], strict=True):
        for row, other in zip(ours[0], theirs[0], strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    # ids that are no rows of the table are alike as well, and seen
    assert many["unknown"] == one["unknown"] == [[False, True, False, True]] * 4
    assert many["share"] == 1 / (sizes["fsdp"] * sizes["tensor"])  # really split


if __name__ == "__main__":
    print(json.dumps([measure(sizes) for sizes in json.loads(sys.argv[1])]))
