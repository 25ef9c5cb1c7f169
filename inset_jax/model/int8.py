"""The language model's kernels in eight bits, for machines of little memory: drawing only.

Of the layers' kernels, which are nine tenths of the model, every column (one output channel) gets
the scale max |column| / 127 and whole numbers from -127 to 127. A product is x @ whole numbers, in
the dtype of x, which holds them exactly, times the scale. Everything else stays as it is.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from inset_jax.model.layers import Linear

KERNELS = "llm/layers/*/kernel"  # by path in the tree of the model
LARGEST = 127


def is_kernel(path: str) -> bool:
    """Whether the parameter of this path becomes int8."""
    return fnmatch.fnmatchcase(path, KERNELS)


def scale_path(path: str) -> str:
    """The path of the scales of a kernel."""
    return path + "_scale"


def quantised(kernel):
    """Returns int8 [..., in, out] and its scales, float32 [..., out]; NumPy of NumPy, else JAX."""
    if isinstance(kernel, np.ndarray) and kernel.ndim > 2:  # a layer at a time: half the memory
        values, scales = zip(*map(quantised, kernel), strict=True)
        return np.stack(values), np.stack(scales)
    xp = np if isinstance(kernel, np.ndarray) else jnp
    exact = kernel.astype(xp.float32)
    largest = xp.max(xp.abs(exact), axis=-2)
    scale = xp.where(largest > 0, largest / LARGEST, xp.ones_like(largest))  # a column of zeros
    return xp.rint(exact / scale[..., None, :]).astype(xp.int8), scale


def shrink(params: Mapping) -> dict:
    """Returns a tree of the model, {"llm": ...}, with int8 kernels in its layers."""

    def visit(tree, path: str):
        if not isinstance(tree, Mapping):
            return {"": tree} if not is_kernel(path) else dict(zip(("", "_scale"), quantised(tree)))
        found = {}
        for key, value in tree.items():
            for suffix, one in visit(value, f"{path}/{key}" if path else key).items():
                found[key + suffix] = one
        return {"": found}

    return visit(params, "")[""]


def is_shrunk(params: Mapping) -> bool:
    """Whether a tree of the model has int8 kernels."""
    leaves = jax.tree.leaves(params["llm"]["layers"])
    return any(leaf.dtype == jnp.int8 for leaf in leaves)


def declare(module: nnx.Module) -> None:
    """Turns the kernels of all linear layers in a module to int8, with their scales beside them."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, Linear):
            logical = node.kernel.get_metadata("logical")
            value, scale = quantised(node.kernel[...])
            node.kernel = nnx.Param(value, logical=logical)
            node.kernel_scale = nnx.data(nnx.Param(scale, logical=logical[-1:]))
