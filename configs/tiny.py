"""The smallest model with every part of the real one, for tests: a few seconds on one core.

Its sizes are those of a 2-layer test checkpoint; nothing it learns is of use. All numbers are our
own. Expected figure: none. Command:

    python -m inset_jax.train --config=configs/tiny.py --workdir=DIR \\
        --config.data.train="('RECORDS',)" --config.data.tokenizer=RECORDS
"""

from inset_jax.core.config import (
    CapacityConfig,
    ComputeConfig,
    Config,
    DataConfig,
    LatentConfig,
    LlmConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    SizeLimits,
    TokenConfig,
    VaeConfig,
    VitConfig,
)
from inset_jax.core.overrides import to_config_dict


def experiment() -> Config:
    return Config(
        name="tiny",
        model=ModelConfig(
            llm=LlmConfig(
                vocab_size=512,
                model_dim=64,
                layers=2,
                query_heads=4,
                kv_heads=2,
                head_dim=16,
                mlp_dim=96,
            ),
            vit=VitConfig(width=48, layers=2, heads=4, mlp_dim=80, patch=14, side=16),
            vae=VaeConfig(channels=32, multipliers=(1, 1, 2, 2), res_blocks=1),
            latents=LatentConfig(patch=2, max_side=16),
            tokens=TokenConfig(text_start=500, text_end=501, image_start=502, image_end=503),
            connector_side=16,
        ),
        compute=ComputeConfig(dtype="float32", remat="none", cross_entropy_chunk=64),
        data=DataConfig(
            capacity=CapacityConfig(und=128, gen=64, vit=64, cross_entropy=64, examples=8),
            vit_size=SizeLimits(max_side=56, min_side=28, stride=14),
            vae_size=SizeLimits(max_side=64, min_side=32, stride=16),
            max_example_tokens=128,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=2, ema_decay=0.9),
        run=RunConfig(
            steps=8,
            log_every=1,
            save_every=4,
            validate_every=4,
            validation_packs=2,
            sample_every=0,
        ),
        sample=SampleConfig(num_timesteps=4),
    )


def get_config():
    return to_config_dict(experiment())
