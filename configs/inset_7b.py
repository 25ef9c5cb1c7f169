"""INSET: BAGEL-7B-MoT fine-tuned on sentences with images in them, references as ViT features only.

Sources: [inset] INSET's paper, training details; [bagel] blank there, so BAGEL's fine-tuning value
(configs/bagel_7b.py names the origin of each); [ours] a choice of this project where neither says.

Expected figure: InterleaveBench image | text consistency .93 | .75 [inset]; not measured here.
Hardware, wall time: not measured.

    python -m inset_jax.train --config=configs/inset_7b.py --workdir=DIR \
        --config.run.init_from=BAGEL-7B-MoT --config.data.train="('RECORDS',)"

The paper mixes image-interleaved .2, video-interleaved .2, editing .1, text-to-image .5; give one
weight a folder in `data.weights`.
"""

from configs import bagel_7b
from inset_jax.core.config import CapacityConfig, Config, DropoutConfig, SampleConfig, edit
from inset_jax.core.overrides import to_config_dict


def experiment() -> Config:
    return edit(
        bagel_7b.experiment(),  # [bagel] whatever is not named here
        name="inset_7b",
        # [inset] about 30K tokens a rank and step; [ours] how the streams share them
        data__capacity=CapacityConfig(und=14336, gen=16384, vit=12288, cross_entropy=4096),
        # [ours] the paper does not say what is dropped. Whole modalities are, so that both branches
        # of the guidance are trained; few single references are, as their ViT features are all that
        # carries their identity here, where BAGEL has clean latents beside them.
        data__dropout=DropoutConfig(
            example_text=0.1,
            example_images=0.05,
            example_both=0.1,
            segment_text=0.05,
            segment_vit=0.1,
            segment_vae=0.1,
        ),
        data__vae_size__max_side=1024,  # [inset] up to 1024
        optimizer__peak_lr=2.5e-5,  # [inset]
        optimizer__beta1=0.9,  # [inset]
        optimizer__beta2=0.95,  # [inset]
        optimizer__frozen=(),  # [inset] all trains but the VAE, the ViT included
        loss__timestep_shift=3.0,  # [inset]
        run__steps=50000,  # [inset]
        sample=SampleConfig(
            guidance="inset",
            alpha=4.0,  # [inset]
            beta=1.5,  # [inset]
            text_only_alpha=4.0,  # [ours] as BAGEL's text-to-image
            text_only_beta=1.0,  # [ours]
            num_timesteps=50,  # [bagel]
            shift=3.0,  # [bagel]
        ),
    )


def get_config():
    return to_config_dict(experiment())
