"""How fast a training step runs on the CPU at hand, against what its matrix multiply could do.

The configuration is the one of which tests/golden/timing.json holds the reference's times: two
samples of [text, 510 tokens, next-token loss | noisy picture, 512 latents and two markers] through
four layers of 512, forward and backward in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inset_jax.core import config as configs
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config, ModelConfig
from inset_jax.core.host import peak_memory
from inset_jax.data import pack as packs
from inset_jax.model import inset
from inset_jax.train import optim, step

SAMPLES, TEXT, ROWS, COLUMNS = 2, 508, 16, 32  # text ids and latent tokens of a sample
BAR = 0.60  # what PyTorch BAGEL reaches
SIDE = 2048  # of the square float32 matrices whose product sets the rate


class Timing(NamedTuple):
    """Seconds of every round, of the step and of the matrix multiply just before it."""

    step: list[float]
    multiply: list[float]
    work: float  # operations of one step that somebody sees the result of

    def rate(self, best: Callable) -> float:
        """Operations a second of the matrix multiply; `best` is min or np.median."""
        return 2 * SIDE**3 / best(self.multiply)

    def ratio(self, best: Callable) -> float:
        """Visible work over what the matrix multiply would have done in the step's time."""
        return self.work / (best(self.step) * self.rate(best))


def configuration() -> Config:
    """Returns the configuration of tests/golden/timing.json."""
    config = configs.edit(
        Config(name="cpu_step"),
        model__llm=configs.LlmConfig(
            vocab_size=4096,
            model_dim=512,
            layers=4,
            query_heads=8,
            kv_heads=2,
            head_dim=64,
            mlp_dim=1536,
        ),
        # no picture is read here: the smallest ViT there can be
        model__vit=configs.VitConfig(width=64, layers=1, heads=1, mlp_dim=64),
        model__tokens=configs.TokenConfig(4092, 4093, 4094, 4095),
        # as in the reference, no product of matrices is computed twice
        compute=configs.ComputeConfig(dtype="float32", remat="dots"),
        data__capacity=configs.CapacityConfig(
            und=1024, gen=1024, vit=0, cross_entropy=1018, examples=SAMPLES
        ),
        loss__cross_entropy_weight=1.0,
    )
    return config


def batch(config: Config, seed: int = 0) -> Pack:
    """Returns the two samples in one pack, with P = 1 in front."""
    random = np.random.default_rng(seed)
    latents = lambda: random.standard_normal((ROWS * COLUMNS, config.model.latent_dim), np.float32)
    sample = lambda: [
        packs.Item("text", ids=random.integers(0, 4000, TEXT).tolist(), loss=True),
        packs.Item("target", size=(ROWS, COLUMNS), latent=latents(), noise=latents()),
    ]
    laid = packs.layout([sample() for _ in range(SAMPLES)], config.model)
    return packs.stack([packs.assemble(laid, config.data.capacity, config.model)])


def visible_work(config: ModelConfig, pack: Pack) -> float:
    """Counts the operations of a forward and backward pass whose results somebody sees.

    A product of matrices costs two operations a multiply-add, and twice that again for its two
    gradients. Attention counts visible pairs only; nothing is counted for what is computed twice,
    for tokens nobody predicts, or for the time embedding (a row a picture).
    """
    llm = config.llm
    heads, kv_heads = llm.query_heads * llm.head_dim, llm.kv_heads * llm.head_dim
    per_token = llm.model_dim * (2 * heads + 2 * kv_heads + 3 * llm.mlp_dim)
    tokens = np.sum(pack.und_example >= 0) + np.sum(pack.gen_example >= 0)
    pairs = sum(np.sum(np.maximum(v.high - v.low, 0)) for v in pack.visibility.values())
    blocks = llm.layers * (6 * per_token * tokens + 12 * heads * pairs)
    head = 6 * llm.model_dim * llm.vocab_size * np.sum(pack.ce_weight > 0)
    latents = config.latent_dim * llm.model_dim * np.sum(pack.gen_example >= 0)
    return float(blocks + head + (6 + 4) * latents)  # latents need no gradient themselves


def gradient_step(config: Config) -> tuple[Callable, dict, dict]:
    """Returns (params, pack) -> (loss, gradients), jitted, and the parameters in two parts."""
    definition, params = inset.create(config.model, seed=0)
    trained, frozen = optim.split(params, ("vit/*", "connector/*"))
    loss = step.loss_function(definition, config)

    @jax.jit
    def run(trained, frozen, pack):
        of_trained = lambda part: loss(optim.merge(frozen, part), pack, step.weights(pack))[0]
        return jax.value_and_grad(of_trained)(trained)

    return run, trained, frozen


def measure(rounds: int) -> Timing:
    """Times `rounds` pairs of one matrix multiply and one step, after a warm-up of each."""
    config = configuration()
    pack = batch(config)
    run, trained, frozen = gradient_step(config)
    on_device = jax.tree.map(jnp.asarray, pack)
    matrix = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    multiply = jax.jit(jnp.matmul)
    timing = Timing([], [], visible_work(config.model, pack))
    for number in range(-1, rounds):
        seconds = [
            _seconds(multiply, matrix, matrix),
            _seconds(run, trained, frozen, on_device),
        ]
        if number >= 0:
            timing.multiply.append(seconds[0])
            timing.step.append(seconds[1])
    return timing


def report(timing: Timing) -> dict[str, float]:
    """Returns the figures, best and median of the rounds."""
    return {
        "work_gflop": timing.work / 1e9,
        "ratio": timing.ratio(min),
        "ratio_median": timing.ratio(np.median),
        "step_s": min(timing.step),
        "step_median_s": float(np.median(timing.step)),
        "multiply_gflops": timing.rate(min) / 1e9,
        "multiply_median_gflops": timing.rate(np.median) / 1e9,
        "peak_memory_mb": peak_memory() / 1e6,
        "rounds": len(timing.step),
    }


def _seconds(function: Callable, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start
