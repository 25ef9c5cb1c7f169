"""The laptop demo: a small model of the real architecture, trained live on two CPU cores.

About 1.6M parameters without the autoencoder. All numbers are our own. Expected figure:
docs/demo.md has the table of the shipped weights (59,190 steps; 1,000 are the preset's). Hardware:
two CPU cores, 1.8 steps a second (one: 1.2). `python -m tools.demo` draws the records and calls:

    python -m inset_jax.train --config=configs/demo.py --workdir=DIR \\
        --config.data.train="('RECORDS',)" --config.data.tokenizer=FILE \\
        --config.run.autoencoder=assets/demo/ae.safetensors
"""

from inset_jax.core.config import (
    CapacityConfig,
    ComputeConfig,
    Config,
    DataConfig,
    DropoutConfig,
    LatentConfig,
    LlmConfig,
    LossConfig,
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


def model() -> ModelConfig:
    return ModelConfig(
        llm=LlmConfig(
            vocab_size=512,
            model_dim=128,
            layers=4,
            query_heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_dim=256,
            rope_theta=1e4,
        ),
        vit=VitConfig(width=96, layers=2, heads=3, mlp_dim=192, patch=8, side=8),
        vae=VaeConfig(
            kind="linear", multipliers=(1,) * 4, latent_channels=32, scale=1.0, shift=0.0
        ),
        latents=LatentConfig(patch=1, max_side=16),
        tokens=TokenConfig(text_start=508, text_end=509, image_start=510, image_end=511),
        connector_side=8,
        position_ratio=4.0,
        position_step=2.8,
        position_scale=2.0,
        time_scale=30.0,
        prediction="clean",
    )


def experiment() -> Config:
    return Config(
        name="demo",
        model=model(),
        compute=ComputeConfig(dtype="float32", remat="dots", cross_entropy_chunk=256),
        data=DataConfig(
            packs=8,
            capacity=CapacityConfig(und=240, gen=192, vit=144, cross_entropy=128, examples=5),
            vit_size=SizeLimits(max_side=32, min_side=32, stride=8),
            vae_size=SizeLimits(max_side=128, min_side=64, stride=8),
            dropout=DropoutConfig(
                example_text=0.05,
                example_images=0.05,
                example_both=0.05,
                segment_text=0.0,
                segment_vit=0.0,
                segment_vae=0.0,
            ),
            max_example_tokens=432,
            posterior="mean",
            workers=1,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            peak_lr=2e-2,
            adam_lr_ratio=0.1,
            weight_decay=0.5,
            decay_follows_rate=True,
            warmup_steps=50,
            schedule="cosine",
            final_lr_ratio=0.02,
            eps=1e-8,
            ema_decay=0.99,
            first_step_zero=False,
        ),
        # few sentences are to be written, and one batch's few words must not outweigh its pictures
        loss=LossConfig(timestep_shift=4.0, cross_entropy_weight=0.02),
        run=RunConfig(
            steps=1000,
            log_every=25,
            save_every=250,
            validate_every=250,
            validation_packs=64,
            sample_every=500,
        ),
        sample=SampleConfig(alpha=1.0, beta=2.0, side=64, num_timesteps=25),
    )


def get_config():
    return to_config_dict(experiment())
