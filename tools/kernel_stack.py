"""The language model of BAGEL-7B, forward and backward, compiled for slices that are not there.

All 28 layers with both experts, 16,384 + 16,384 tokens a device, parameters in float32 split over
all devices, bfloat16 compute, attention by the Pallas kernels. Says whether it compiles, and what
memory it asks for.
"""

from __future__ import annotations

import time

from tools import hlo_bytes

SLICES = {"v5p": "v5p:2x2x4", "v6e": "v6e:4x4", "tpu7x": "tpu7x:2x2x4"}
TOKENS = 16384  # of each stream, on each device
GIB = 1 << 30
KERNELS = ("interval_forward", "interval_shift", "interval_backward")  # of which all must be inside


def report(chips: list[str]) -> tuple[dict, list[str]]:
    """Compiles the stack for each chip and prints its memory; a failure is a missed bar."""
    figures, missed = {}, []
    for chip in chips:
        try:
            figures[chip] = one(chip)
        except Exception as error:  # whatever the compiler refuses is the result
            missed.append(f"{chip}: {str(error)[:300]}")
            print(f"does not compile: {missed[-1]}", flush=True)
            continue
        print(
            "{chip}: {devices} devices, arguments {arguments_gib:.2f} GiB, temporaries "
            "{temporaries_gib:.2f} GiB, peak {peak_gib:.2f} GiB a device; compiled in "
            "{seconds:.0f} s".format(chip=chip, **figures[chip]),
            flush=True,
        )
        for name, (used, allowed) in figures[chip]["vmem"].items():
            print(f"  {name}: {used / 1e6:.1f} MB of VMEM, at most {allowed / 1e6:.1f}", flush=True)
        absent = [name for name in KERNELS if name not in figures[chip]["vmem"]]
        missed += [f"{chip}: {name} is not in the compiled program" for name in absent]
    return {"stack": figures}, missed


def one(chip: str) -> dict:
    """Compiles the stack for one chip's slice; "vmem" holds `hlo_bytes.fast_memory`."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from inset_jax.core import mesh
    from inset_jax.core.batch import STREAMS, Visibility
    from inset_jax.core.config import ComputeConfig, MeshConfig, ModelConfig
    from inset_jax.model import inset

    wrap = {"wrap": (True, True, True)} if chip != "v6e" else {}
    slice_ = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[chip], **wrap)
    devices = mesh.build(MeshConfig(), slice_.devices)
    config, compute = ModelConfig(), ComputeConfig(attention="pallas")
    definition, shapes = inset.abstract(config)
    placed = lambda shape, dtype, names: jax.ShapeDtypeStruct(
        shape, dtype, sharding=mesh.sharding(devices, names, shape)
    )
    params = jax.tree.map(
        lambda x, names: placed(x.shape, x.dtype, names), shapes, inset.logical_axes(config)
    )
    packs = devices.size
    side = placed((packs, 2 * TOKENS), jnp.int32, ("pack", None))
    model = config.llm.model_dim
    stream = placed((packs, TOKENS, model), jnp.bfloat16, ("pack", "token", "feature"))
    position = placed((packs, 1, TOKENS), jnp.int32, ("pack", None, None))
    arguments = (
        params["llm"],
        {name: stream for name in STREAMS},
        {name: position for name in STREAMS},
        {name: Visibility(side, side) for name in STREAMS},
    )

    def loss(llm, streams, positions, visibility):
        bound = inset.bind(definition, params | {"llm": llm})
        decoded = bound.decode(streams, positions, visibility, compute)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in decoded.hidden.values())

    places = jax.tree.map(lambda x: x.sharding, arguments[:2])
    gradients = jax.jit(jax.grad(loss, (0, 1)), out_shardings=places)
    start = time.perf_counter()
    with jax.set_mesh(devices):
        compiled = gradients.lower(*arguments).compile()
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    return {
        "devices": devices.size,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "peak_gib": memory.peak_memory_in_bytes / GIB,
        "seconds": seconds,
        "vmem": hlo_bytes.fast_memory(compiled.as_text()),
    }
