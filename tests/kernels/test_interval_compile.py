"""The kernels compile for TPUs at the shapes of the model; libtpu does it without a TPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

# packs, queries, keys, query heads, key-value heads, head width, dtype
SHAPES = {
    "language model, two packs": (2, 4096, 8192, 28, 4, 128, "bfloat16"),
    "float32": (1, 1024, 2048, 28, 4, 128, "float32"),
    "one device of four that share the heads": (1, 4096, 8192, 7, 1, 128, "bfloat16"),
    "ViT": (1, 16384, 16384, 16, 16, 72, "bfloat16"),
    "a step of sampling": (3, 200, 5000, 28, 4, 128, "bfloat16"),
    "a few markers": (1, 6, 5000, 28, 4, 128, "bfloat16"),
    "more keys than fast memory holds": (1, 4096, 81920, 28, 4, 128, "bfloat16"),
}

COMPILE = """
import functools, sys
from tools import bundles

bundles.prepare(None)
import jax, jax.numpy as jnp
from inset_jax.core import mesh
from inset_jax.core.batch import Visibility
from inset_jax.core.config import MeshConfig
from inset_jax.kernels.attend import attend

chip, shapes = sys.argv[1], eval(sys.argv[2])
for name, (packs, queries, keys, heads, kv_heads, width, dtype) in shapes.items():
    array = lambda tokens, heads: bundles_shape((packs, tokens, heads, width), dtype)
    bundles_shape = lambda shape, kind: jax.ShapeDtypeStruct(shape, kind, sharding=whole)
    devices = mesh.build(MeshConfig(), bundles.described(chip)[:1])
    whole = jax.NamedSharding(devices, jax.P())
    side = bundles_shape((packs, keys), jnp.int32)

    def gradients(query, key, value, low, high):
        run = lambda *arrays: attend(*arrays, Visibility(low, high))  # auto: a TPU is described
        out, back = jax.vjp(run, query, key, value)
        return back(out)

    with jax.set_mesh(devices):
        lowered = jax.jit(gradients).lower(
            array(queries, heads), array(keys, kv_heads), array(keys, kv_heads), side, side
        )
    assert "tpu_custom_call" in lowered.as_text(), name
    lowered.compile()
    print("compiled", name, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ["v5p", "v6e", "tpu7x"])
def test_every_shape_of_the_model_compiles_forward_and_backward(chip):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, chip, repr(SHAPES)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.splitlines() == [f"compiled {name}" for name in SHAPES], done.stderr[-2000:]
