"""A convolutional autoencoder for the demo's world: 64-pixel scenes to 16 x 16 latents.

Small enough for two CPU cores; the demo itself uses that of configs/demo_linear_vae.py.

Its width at full resolution is 64 because BAGEL's norms have 32 groups whatever the width: with 32
channels every group is one channel, and the last norm forgets its level (docs/lab_log.md). All
numbers are our own. Expected figure: 25.8 dB on held-out scenes (21.4 after 500 steps, 24.3 after
1,000) of the world as it was first, 26.3 dB on today's, which these weights never saw. Hardware:
two cores; 38 minutes with other work beside it. Commands:

    python -m tools.draw_world --out runs/world
    python -m inset_jax.train.autoencoder --config=configs/demo_vae.py --workdir=runs/vae
"""

from inset_jax.core.config import (
    AutoencoderConfig,
    AutoencoderLossConfig,
    AutoencoderRunConfig,
    CropConfig,
    OptimizerConfig,
    VaeConfig,
)
from inset_jax.core.overrides import to_config_dict


def experiment() -> AutoencoderConfig:
    return AutoencoderConfig(
        name="demo_vae",
        vae=VaeConfig(channels=32, multipliers=(2, 1, 2), res_blocks=1, latent_channels=8),
        data=CropConfig(train=("runs/world",), validation=("runs/world",), side=64, batch=4),
        loss=AutoencoderLossConfig(),
        optimizer=OptimizerConfig(
            name="muon",
            peak_lr=5e-3,
            warmup_steps=20,
            schedule="cosine",
            final_lr_ratio=0.02,
            eps=1e-8,
            ema_decay=0.99,
            first_step_zero=False,
        ),
        run=AutoencoderRunConfig(
            steps=2000,
            log_every=50,
            save_every=500,
            validate_every=500,
            validation_images=128,
            measure_images=256,
            file_dtype="float16",
        ),
    )


def get_config():
    return to_config_dict(experiment())
