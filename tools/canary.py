"""Computes a few dozen figures and compares them with those of another machine.

python -m tools.canary                                          against docs/canary.json
python -m tools.canary --checkpoint BAGEL-7B-MoT --out here.json
python -m tools.canary --checkpoint BAGEL-7B-MoT --against there.json

Without a checkpoint: one layer of each network at the widths of the 7B, with weights that come from
keys. Losses by kind, gradient norms by part, a velocity and a drawing with fixed noise. Exit status
1 if a figure is farther off than the dtype allows. On several hosts, every host runs the same.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

from tools import outcome

CONFIG = "configs/inset_7b.py"
EXPECTED = pathlib.Path(__file__).parents[1] / "docs" / "canary.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.canary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a BAGEL folder with its tokenizer, or a run")
    add("--against", type=pathlib.Path, metavar="FILE", help="figures to compare with")
    add("--out", type=pathlib.Path, metavar="FILE", help="writes the figures, as JSON")
    add("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU")
    add("--mesh", metavar="AXIS=N,...", help="as of inset_jax.generate (default: fsdp=-1)")
    for name in ("coordinator", "processes", "process"):
        add(f"--{name}", help="as of inset_jax.train")
    options = parser.parse_args(arguments)
    if not options.checkpoint and not options.out:
        options.against = options.against or EXPECTED
    return outcome.status(lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> int:
    from inset_jax.core import processes

    with processes.joined(processes.place(vars(options), os.environ)) as group:
        return _measure(options, group is None or group.index == 0)


def _measure(options: argparse.Namespace, is_first: bool) -> int:
    import jax

    from inset_jax.checkpoint import load
    from inset_jax.core import mesh as meshes
    from inset_jax.core import overrides
    from inset_jax.core.config import MeshConfig
    from inset_jax.data import text
    from inset_jax.generate import read_mesh
    from inset_jax.parity import activations, canary

    dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    mesh = meshes.build(read_mesh(options.mesh) or MeshConfig())
    # a TPU multiplies float32 in bfloat16 unless it is asked not to
    precision = "highest" if dtype == "float32" else "default"
    with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
        if options.checkpoint:
            loaded = load.load_any(options.checkpoint, mesh)
            model, params = loaded.config, loaded.params
            words = loaded.tokenizer or pathlib.Path(options.checkpoint, "tokenizer.json")
            encode = text.load(words, model.tokens, model.llm.vocab_size).encode
        else:
            model, encode = canary.thin(overrides.load(CONFIG).model), canary.encode_bytes
            params = canary.keyed_params(canary.experiment(model, dtype), mesh)
        given = canary.inputs(model, encode)
        found = canary.figures(canary.experiment(model, dtype), params, given)
    if not is_first:
        return 0
    if options.out:
        canary.save(options.out, found, given, options.checkpoint or canary.KEYED, dtype)
    if options.against:
        results = canary.compare(options.against, found, given, dtype)
        return 1 if activations.told(results)["failed"] else 0
    for name, values in found.items():
        print(f"{name:32} {' '.join(f'{value:.6g}' for value in values)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
