"""Fits the linear autoencoder to pictures and writes it as ae.safetensors, in seconds.

python -m tools.fit_principal --config=configs/demo_linear_vae.py --out ae.safetensors
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from inset_jax.core import checks, overrides
from inset_jax.core.config import AutoencoderConfig
from tools import outcome

OPTIONS = {"out": "the file to write"}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv if argv is None else list(argv)
    if any(argument.lstrip("-") in ("help", "h") for argument in argv[1:]):
        print(__doc__)
        return 0
    return outcome.status(lambda: fit(argv), failure=1)


def fit(argv: Sequence[str]) -> int:
    command = overrides.parse(argv, OPTIONS, AutoencoderConfig)
    config, out = command.config, command.options["out"]
    if not out:
        raise ValueError("--out=FILE is missing: the file to write")
    checks.check_autoencoder(config)
    if config.vae.kind != "linear":
        raise ValueError(f"vae.kind={config.vae.kind!r}: only a linear autoencoder is fitted")

    import jax
    import numpy as np

    from inset_jax.checkpoint import autoencoder
    from inset_jax.core import mesh as meshes
    from inset_jax.data.crops import Crops, held_out
    from inset_jax.train.autoencoder import measure, principal

    crops = Crops(config.data, config.run.seed)
    count = -(-config.run.measure_images // config.data.batch)
    batches = [crops.batch(step) for step in range(count)]
    found = principal.fit(np.concatenate(batches), config.vae)
    mesh = meshes.build(config.mesh)
    everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        gauge = measure.Gauge(config, everywhere)
        seen = gauge.held_out(found.params, held_out(config.data, config.run.validation_images))
    facts = {
        "fitted to": [pathlib.PurePath(folder).name for folder in config.data.train],
        "cuts": count * config.data.batch,
        "share of the variance kept": found.kept,
        "held-out PSNR, dB": seen.psnr,
    }
    autoencoder.save(out, found.params, config.vae, facts, config.run.file_dtype)
    print(
        f"{out}: {config.vae.latent_channels} numbers for {config.vae.downsample}^2 pixels keep "
        f"{found.kept:.1%} of the variance; {seen.psnr:.1f} dB on {seen.pictures} held-out pictures"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
