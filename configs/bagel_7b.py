"""BAGEL-7B-MoT, fine-tuned as its last stage was (SFT): 14.6B parameters, 7B active.

Sources: [paper] BAGEL's paper, table of training stages, column SFT; [code] the defaults of BAGEL's
released training code; [weights] the shapes and JSON files of the released checkpoint; [ours] a
choice of this project.

Expected figure: not measured here (no accelerator holds it). Hardware, wall time: not measured.

    python -m inset_jax.train --config=configs/bagel_7b.py --workdir=DIR \
        --config.run.init_from=BAGEL-7B-MoT --config.data.train="('RECORDS',)"

The paper mixes text-to-image .3, interleaved understanding .2, video .2, web .2 in this stage; give
one weight a folder in `data.weights`.
"""

from inset_jax.core.config import (
    CapacityConfig,
    Config,
    DataConfig,
    DropoutConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    SizeLimits,
)
from inset_jax.core.overrides import to_config_dict


def experiment() -> Config:
    return Config(
        name="bagel_7b",
        # `model` and `compute` as their defaults: [weights], and [ours] for how it is computed
        data=DataConfig(
            # [code] at most 36,864 tokens a rank and step; [ours] how the streams share them
            capacity=CapacityConfig(und=16384, gen=20480, vit=16384, cross_entropy=4096),
            max_example_tokens=16384,  # [code]
            # [paper] understanding images: short side at least 378, long side at most 980
            vit_size=SizeLimits(
                max_side=980,
                min_side=378,
                stride=14,  # [weights]
                max_pixels=2_007_040,  # [code] the example data configuration
            ),
            # [paper] generated images: 512 to 1024
            vae_size=SizeLimits(
                max_side=1024,
                min_side=512,
                stride=16,  # [code]
                max_pixels=14 * 14 * 9 * 1024,  # [code]
            ),
            # [paper] .1 text, .5 ViT, .1 clean VAE; segment by segment as in [code]
            dropout=DropoutConfig(segment_text=0.1, segment_vit=0.5, segment_vae=0.1),
            posterior="sample",  # [code]
        ),
        optimizer=OptimizerConfig(
            name="adamw",  # [paper]
            peak_lr=2.5e-5,  # [paper]
            schedule="constant",  # [paper]
            warmup_steps=2000,  # [code]
            beta1=0.9,  # [paper]
            beta2=0.95,  # [paper]
            eps=1e-15,  # [paper]
            weight_decay=0.0,  # [paper]
            clip_norm=1.0,  # [paper]
            ema_decay=0.995,  # [paper]
            first_step_zero=True,  # [code]
        ),
        loss=LossConfig(
            cross_entropy_weight=0.25,  # [paper]
            flow_weight=1.0,  # [paper]
            timestep_shift=4.0,  # [paper]
            cross_entropy_reweighting=False,  # [code]
        ),
        run=RunConfig(
            steps=15000,  # [paper]
            save_every=2000,  # [code]
            log_every=10,  # [code]
            validate_every=1000,  # [ours]
            sample_every=1000,  # [ours]
        ),
        sample=SampleConfig(  # [code] the released notebook: its editing, then text-to-image
            guidance="bagel",
            alpha=4.0,
            beta=2.0,
            text_only_alpha=4.0,
            text_only_beta=1.0,
            interval=(0.0, 1.0),
            renorm="text_channel",
            renorm_min=0.0,
            num_timesteps=50,
            shift=3.0,
        ),
    )


def get_config():
    return to_config_dict(experiment())
