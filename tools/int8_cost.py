"""What int8 weights cost: python -m tools.int8_cost [--checkpoint DIR] [--golden DIR]

Draws sentences of the demo's world with a model as it is and with int8 kernels in the layers of its
language model; or the guidance cases of a folder of reference results. Prints the relative error of
the guided velocity where the unchanged model's drawing passes, and the PSNR of the drawings.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from tools import outcome

ROW = "2 references"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.int8_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--checkpoint", help="folder of a run or of one checkpoint")
    flag("--golden", type=pathlib.Path, help="folder with ckpt/ and generate.npz")
    flag("--row", default=ROW, help="which sentences, as tools.judge calls them (%(default)s)")
    flag("--sentences", type=int, default=8, help="how many are drawn (%(default)s)")
    options = parser.parse_args(arguments)
    if not (options.checkpoint or options.golden):
        parser.error("--checkpoint or --golden is missing")
    return outcome.status(lambda: _report(options), failure=1)


def _report(options: argparse.Namespace) -> int:
    import numpy as np

    from inset_jax.model import int8
    from inset_jax.sample.sampler import Sampler

    sampler, cases = (_golden if options.golden else _world)(options)
    params = sampler.params | {"model": int8.shrink(sampler.params["model"])}
    shrunk = Sampler(sampler.config, params, sampler.compute)
    errors, ratios = [], []
    for request, settings in cases:
        error, ratio = _cost(sampler, shrunk, request, settings)
        errors += error
        ratios.append(ratio)
    print(
        f"{len(cases)} drawings: velocity off by {np.mean(errors):.2%} (mean), {max(errors):.2%} "
        f"(worst evaluation); PSNR {np.mean(ratios):.1f} dB (mean), {min(ratios):.1f} dB (worst)"
    )
    return 0


def _cost(sampler, shrunk, request, settings) -> tuple[list[float], float]:
    """Relative errors of the velocities, one an evaluation, and the PSNR of the picture."""
    import numpy as np

    from inset_jax.sample import trace

    exact, other = (trace.draw(own, request, settings) for own in (sampler, shrunk))
    there = trace.velocities(shrunk, request, settings, exact)
    norm = lambda v: np.linalg.norm(v.reshape(len(v), -1), axis=1)
    error = norm(there - exact.velocity) / norm(exact.velocity)
    square = np.mean((exact.image.astype(float) - other.image.astype(float)) ** 2)
    return error.tolist(), float(10 * np.log10(255**2 / max(square, 1e-9)))


def _world(options: argparse.Namespace):
    from inset_jax.engine import artwork, exam
    from inset_jax.sample.api import Generator
    from inset_jax.sample.prompt import Prompt
    from tools import demo_page, judging

    generator = Generator.load(options.checkpoint, dtype="float32")
    scenes = exam.scenes(artwork.load(demo_page.ARTWORK), options.row, options.sentences)
    sentences = [judging.sentence(scene) for scene in scenes]
    return generator.sampler, [generator.request(Prompt(s.pieces, s.source)) for s in sentences]


def _golden(options: argparse.Namespace):
    from inset_jax.parity import sampling
    from inset_jax.parity.networks import reference
    from inset_jax.parity.report import load

    golden = load(options.golden / "generate.npz")
    sampler = sampling.sampler_of(reference(options.golden))
    requests = sampling.requests_of(golden.arrays, sampler)
    cases = json.loads(golden.arrays["cases_json"].tobytes()).values()
    return sampler, [sampling.asked(case, requests[case["ctx"]]) for case in cases]


if __name__ == "__main__":
    sys.exit(main())
