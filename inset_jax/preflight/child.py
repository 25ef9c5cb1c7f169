"""One compile, in a process of its own: python -m inset_jax.preflight.child FOLDER.

libtpu reads its flags once, speaks on stderr, and may be ended in the middle of a compile; none of
that is for the process that asks. Reads FOLDER/request.json; leaves FOLDER/program.json before the
compile, FOLDER/result.json and FOLDER/program.hlo after it.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time


def main(folder: pathlib.Path) -> None:
    """Compiles what the request names."""
    import jax

    from inset_jax.core import mesh as meshes
    from inset_jax.core import overrides
    from inset_jax.core.config import Config
    from inset_jax.kernels.interval_form import block_for
    from inset_jax.preflight import chips, program, sampling

    request = json.loads((folder / "request.json").read_text())
    config = overrides.from_dict(request["config"], Config)
    began = time.perf_counter()
    mesh = meshes.build(config.mesh, chips.described(chips.parse(request["slice"])))
    with jax.set_mesh(mesh):
        name, *options = request["program"]
        if name == "step":
            built = program.build(config, mesh)
        else:
            built = sampling.build(config, mesh, name, "int8" in options)
        lowered = built.function.lower(*built.arguments)
        block = block_for(config.compute.attention_block or None)
    traced = time.perf_counter() - began
    known = {
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "parts": {name: program.device_bytes(tree) for name, tree in built.held.items()},
        "beside": built.beside,
        "unsplit": program.unsplit(built, mesh),
        "stacked": program.stacked(built),
        "parameters": program.parameter_count(config),
        "kernels": kernels(lowered.as_text()),
        "block": list(block),
        "trace_seconds": traced,
    }
    _write(folder / "program.json", known)
    with jax.set_mesh(mesh):
        compiled = lowered.compile()
    memory = compiled.memory_analysis()
    sizes = [name for name in dir(memory) if name.endswith("_in_bytes")]
    (folder / "program.hlo").write_text(compiled.as_text())
    seconds = time.perf_counter() - began - traced
    figures = {name.removesuffix("_in_bytes"): getattr(memory, name) for name in sizes}
    _write(folder / "result.json", {"compile_seconds": seconds, "memory": figures})


def kernels(text: str) -> dict[str, int]:
    """Returns the Pallas kernels of a lowered program: name -> how often it stands there."""
    import collections
    import re

    return dict(collections.Counter(re.findall(r'kernel_name = "([^"]+)"', text)))


def _write(path: pathlib.Path, values: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values))
    part.rename(path)  # whole, or not there


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
