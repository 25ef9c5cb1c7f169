import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.kernels import flow_kernel
from inset_jax.kernels.flow_kernel import fused
from inset_jax.kernels.flow_loss import FlowForm, FlowHead, FlowTarget, plain


@pytest.fixture
def flow_case(monkeypatch):
    """Two packs of 35 tokens, a third of them without weight, in blocks of 16 tokens."""
    monkeypatch.setattr(flow_kernel, "TOKENS", 16)
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    head = FlowHead(1 + 0.1 * normal(96), 0.1 * normal(96, 16), normal(16))
    weight = jnp.asarray(random.integers(0, 3, (2, 35)), jnp.float32)
    return normal(2, 35, 96), head, FlowTarget(normal(2, 35, 16), normal(2, 35, 16), weight)


def run(function, kind, hidden, head, target, slope=1.0):
    """(loss, errors), gradients towards hidden, head and coefficient."""

    def loss(hidden, head, coefficient):
        value, error = function(hidden, head, target, coefficient, FlowForm(1e-6, kind))
        return slope * value, error

    wanted = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    return jax.jit(wanted)(hidden, head, jnp.float32(0.37))


@pytest.mark.parametrize("kind", ["velocity", "clean"])
def test_loss_errors_and_gradients_equal_the_plain_form(kind, flow_case, distance):
    got, expected = (run(f, kind, *flow_case, slope=3.0) for f in (fused, plain))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype and distance(ours, theirs) < 1e-5


def test_bfloat16_differs_by_rounding_only(flow_case, distance):
    hidden, head, target = flow_case
    got, expected = (
        run(f, "velocity", hidden.astype(jnp.bfloat16), head, target) for f in (fused, plain)
    )
    assert got[1][0].dtype == jnp.bfloat16
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert distance(ours, theirs) < 4e-3


def test_tokens_without_weight_pull_on_nothing(flow_case):
    hidden, head, target = flow_case
    _, (grad, *_) = run(fused, "velocity", hidden, head, target)
    silent = np.asarray(target.weight) == 0
    assert silent.any() and not np.asarray(grad)[silent].any()
    assert np.asarray(grad)[~silent].any(-1).all()


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from inset_jax.core import mesh
from inset_jax.core.config import MeshConfig
from inset_jax.kernels.flow_kernel import fused
from inset_jax.kernels.flow_loss import FlowForm, FlowHead, FlowTarget, plain

random = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
head = FlowHead(normal(32), normal(32, 8), normal(8))
target = FlowTarget(normal(4, 24, 8), normal(4, 24, 8), jnp.abs(normal(4, 24)))
loss = lambda f: lambda h, w: f(h, w, target, jnp.float32(0.1), FlowForm(1e-6, "velocity"))
grad = lambda f: jax.jit(jax.value_and_grad(loss(f), (0, 1), has_aux=True))(hidden, head)
hidden = normal(4, 24, 32)
expected = grad(plain)
with jax.set_mesh(mesh.build(MeshConfig(fsdp=2, context=2, tensor=2))):
    got = grad(fused)
for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
print("equal")
"""


def test_on_a_mesh_each_device_takes_its_packs_and_tokens():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, env=os.environ | flags
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
