"""A model of one layer and packs with everything in them, small enough to compile in seconds."""

import jax
import numpy as np
import pytest

from inset_jax.core.batch import Pack
from inset_jax.core.config import (
    CapacityConfig,
    ComputeConfig,
    Config,
    DataConfig,
    LatentConfig,
    LlmConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TokenConfig,
    VaeConfig,
    VitConfig,
)
from inset_jax.data import pack as packing
from inset_jax.data.pack import Item

MODEL = ModelConfig(
    llm=LlmConfig(
        vocab_size=40, model_dim=16, layers=1, query_heads=2, kv_heads=1, head_dim=8, mlp_dim=24
    ),
    vit=VitConfig(width=8, layers=1, heads=2, mlp_dim=12, patch=2, side=4),
    vae=VaeConfig(channels=32, multipliers=(1, 1), res_blocks=1, latent_channels=4),
    latents=LatentConfig(patch=2, max_side=4),
    tokens=TokenConfig(36, 37, 38, 39),
    connector_side=4,
)
CONFIG = Config(
    name="test",
    model=MODEL,
    compute=ComputeConfig(
        dtype="float32", attention="reference", remat="none", cross_entropy_chunk=8
    ),
    data=DataConfig(capacity=CapacityConfig(und=64, gen=16, vit=16, cross_entropy=16, examples=3)),
    optimizer=OptimizerConfig(
        peak_lr=1e-2, warmup_steps=0, eps=1e-4, ema_decay=0.5, first_step_zero=False
    ),
    loss=LossConfig(cross_entropy_weight=0.5, flow_weight=2.0, timestep_shift=2.0),
    run=RunConfig(steps=10),
)


def _make_pack(seed: int, texts: int = 1, draws: bool = True, answers: bool = True) -> Pack:
    """One pack: `texts` examples with answers to learn, one with a picture to draw."""
    rng = np.random.default_rng(seed)
    ids = lambda n: [int(i) for i in rng.integers(0, 36, n)]
    image = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    latents = lambda: rng.standard_normal((4, MODEL.latent_dim)).astype(np.float32)
    examples = [
        [
            Item("text", ids(3)),
            Item("vit", image=image),
            Item("text", ids(4), loss=answers, special_label=-1),
        ]
        for _ in range(texts)
    ]
    if draws:
        target = Item(
            "target", size=(2, 2), latent=latents(), noise=latents(), timestep=float(rng.normal())
        )
        examples.append([Item("text", ids(2)), Item("vit", image=image), target])
    laid = packing.layout(examples, MODEL)
    return packing.assemble(laid, CONFIG.data.capacity, MODEL)


def _batch(*packs: Pack, accumulation: int = 1) -> Pack:
    """Packs as [accumulation, P, ...]."""
    fold = lambda x: x.reshape(accumulation, -1, *x.shape[1:])
    return jax.tree.map(fold, packing.stack(packs))


@pytest.fixture(scope="session")
def config() -> Config:
    return CONFIG


@pytest.fixture(scope="session")
def make_pack():
    return _make_pack


@pytest.fixture(scope="session")
def batch():
    return _batch
