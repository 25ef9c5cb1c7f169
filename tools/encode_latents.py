"""Encodes the target and clean pictures of records once, so that training need not do it.

python -m tools.encode_latents SRC DST --config=FILE [--autoencoder=WHAT] [--config.field=value ...]

SRC is a folder of records; DST becomes the same with the autoencoder's moments, in half
precision, beside each such picture. The config is that of the training: it gives the sizes, and the
autoencoder too, as run.init_from or run.autoencoder, unless --autoencoder names one (an
ae.safetensors, a BAGEL folder, a run's folder). All devices of the machine work. The same command
goes on after an interruption; with --share=I/N several machines share the shards, and the command
without it finishes.
"""

from __future__ import annotations

import argparse
import sys

from tools import outcome


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    from inset_jax.data import build

    parser = argparse.ArgumentParser(
        prog="python -m tools.encode_latents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="folder of records")
    parser.add_argument("folder", metavar="DST", help="folder of records to make")
    parser.add_argument("--autoencoder", metavar="WHAT", help="instead of the config's")
    parser.add_argument(
        "--share", type=build.share, default=(0, 1), metavar="I/N", help="see above"
    )
    options, rest = parser.parse_known_args(arguments)
    return outcome.status(lambda: _encode(options, rest), resumes=True)


def _encode(options: argparse.Namespace, rest: list[str]) -> int:
    from inset_jax.core import checks, overrides
    from inset_jax.data import build, rewrite

    config = overrides.parse(["encode_latents", *rest], {}).config
    run = config.run
    checks.check(config)
    where = options.autoencoder or run.init_from or run.autoencoder
    if not where:
        raise ValueError(
            "no autoencoder: expected --autoencoder=..., run.init_from or run.autoencoder"
        )

    from inset_jax.train import moments  # late: JAX takes a second to import

    params = moments.load_autoencoder(where, config.model)
    encoder = moments.Encoder(config.model.vae, params, config.compute.dtype)
    print(f"autoencoder {encoder.digest} of {where}")
    records = moments.Encoded.of(options.source, config, encoder)
    progress = build.say_progress
    built = build.build_records(
        records, options.folder, rewrite.ONE_TO_ONE, 0, options.share, progress
    )
    return build.say_outcome(built, options.folder, False, 20)


if __name__ == "__main__":
    sys.exit(main())
