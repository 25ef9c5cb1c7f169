"""The demo's autoencoder: 8 x 8 pixels to 32 numbers and back, by a matrix each way.

All numbers are our own. Expected figure: 28.4 dB on held-out scenes; the convolutional
autoencoder of configs/demo_vae.py, trained for 38 minutes, has 26.3 dB on them. Hardware: one core,
half a minute.
Commands:

    python -m tools.draw_world --out runs/world --objects 1,3
    python -m tools.fit_principal --config=configs/demo_linear_vae.py --out ae.safetensors
    python -m inset_jax.train --config=configs/demo.py --config.run.autoencoder=ae.safetensors ...
"""

from inset_jax.core.config import AutoencoderConfig, AutoencoderRunConfig, CropConfig, VaeConfig
from inset_jax.core.overrides import to_config_dict


def experiment() -> AutoencoderConfig:
    return AutoencoderConfig(
        name="demo_linear_vae",
        vae=VaeConfig(
            kind="linear", multipliers=(1,) * 4, latent_channels=32, scale=1.0, shift=0.0
        ),
        data=CropConfig(
            train=("runs/world",), validation=("runs/world",), side=64, shrink=1.0, batch=64
        ),
        run=AutoencoderRunConfig(validation_images=128, measure_images=4096),
    )


def get_config():
    return to_config_dict(experiment())
