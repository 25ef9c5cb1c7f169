"""Contradictions between fields are found before anything runs, and say what to do."""

import pytest

from inset_jax.core.checks import CHOICES, check, check_autoencoder
from inset_jax.core.config import AutoencoderConfig, Config, MeshConfig, edit


def refusal(**changes) -> str:
    with pytest.raises(ValueError) as caught:
        check(edit(Config(), **changes))
    return str(caught.value)


def test_defaults_pass():
    check(Config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__vae_size__max_side": 2048},
            "data.vae_size.max_side=2048 needs 128 latent tokens a side, but "
            "model.latents.max_side is 64: lower the first to 1024 or raise the second",
        ),
        (
            {"data__vit_size__max_side": 1400},
            "data.vit_size.max_side=1400 needs 100 ViT patches a side, but model.vit.side is 70: "
            "lower the first to 980 or raise the second",
        ),
        ({"data__vae_size__stride": 8}, "data.vae_size.stride=8 must be a multiple of 16 pixels"),
        ({"data__vit_size__min_side": 1000}, "data.vit_size.min_side=1000 is above"),
        ({"model__connector_side": 64}, "make them equal"),
        ({"model__llm__kv_heads": 3}, "cannot share model.llm.kv_heads=3"),
        ({"model__vit__heads": 7}, "model.vit.width=1152 does not divide"),
        ({"model__tokens__text_end": 151644}, "the four ids must differ"),
        ({"model__tokens__text_end": 152064}, "outside model.llm.vocab_size=152064"),
        (
            {"run__init_from": "BAGEL-7B-MoT", "run__autoencoder": "ae.safetensors"},
            "run.autoencoder='ae.safetensors' is for a start from random weights",
        ),
        ({"model__prediction": "noise"}, "found 'noise', expected one of velocity, clean"),
        ({"compute__dtype": "float16"}, "config.compute.dtype: found 'float16'"),
        ({"compute__remat": "half"}, "config.compute.remat"),
        ({"optimizer__schedule": "linear"}, "config.optimizer.schedule"),
        ({"optimizer__name": "sgd"}, "config.optimizer.name"),
        ({"optimizer__ema_decay": 1.5}, "config.optimizer.ema_decay: found 1.5"),
        ({"optimizer__peak_lr": float("nan")}, "config.optimizer.peak_lr: found nan"),
        ({"run__save_every": 0}, "config.run.save_every: found 0, expected at least 1"),
        (
            {"run__keep_every": 1500},
            "run.save_every=1000, and only what is saved can stay: make it 2000",
        ),
        ({"data__moments": "mine"}, "data.moments='mine': expected own, none, or the digest"),
        ({"data__max_side": 768}, "data.max_side=768: records would be smaller than data.vae_size"),
        ({"data__max_example_tokens": 99999}, "is more than a pack holds"),
        ({"data__capacity__gen": 512}, "data.capacity.gen is 512: raise the second"),
        ({"data__weights": (1.0,)}, "data.weights has 1 numbers for 0 folders"),
        (
            {"data__dropout__example_text": 0.6, "data__dropout__example_both": 0.6},
            "= 1.2: they exclude each other",
        ),
        (
            {"loss__cross_entropy_weight": 0.0, "loss__flow_weight": 0.0},
            "nothing would be learned",
        ),
        (
            {"optimizer__schedule": "cosine", "run__steps": 10},
            "leaves nothing of run.steps=10 for the cosine",
        ),
        ({"data__capacity__attention_tiles": 9}, "name their sizes in compute.attention_block"),
        ({"compute__attention_block": (256,)}, "give two multiples of 128"),
        ({"compute__attention_block": (256, 200)}, "or () for the sizes measured on the chip"),
        ({"mesh": MeshConfig(fsdp=-1, tensor=-1)}, "one may be -1"),
        ({"mesh": MeshConfig(tensor=3)}, "the nearest that does is 2"),
        ({"mesh": MeshConfig(fsdp=4)}, "make it a multiple of 4"),
        (
            {"mesh": MeshConfig(tensor=4), "model__llm__query_heads": 32, "model__vit__heads": 18},
            "does not divide model.vit.heads=18: the nearest that does is 3",
        ),
        ({"model__llm__rope_theta": 0.0}, "config.model.llm.rope_theta: found 0.0"),
        ({"model__vae__scale": 0.0}, "config.model.vae.scale: found 0.0"),
        ({"sample__interval": (0.9, 0.1)}, "the first number is the lower end"),
        ({"sample__interval": (0.5, 0.5)}, "the first number is the lower end"),
    ],
)
def test_contradiction_says_what_to_do(changes, message):
    assert message in refusal(**changes)


def test_all_contradictions_are_reported():
    message = refusal(data__vae_size__max_side=2048, mesh=MeshConfig(fsdp=4))
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__side": 100}, "data.side=100 is not a multiple of 8"),
        ({"optimizer__accumulation": 2}, "leave it at 1 and set data.batch"),
        ({"loss__reconstruction": "ssim"}, "found 'ssim', expected one of l1, l2"),
        ({"run__file_dtype": "int8"}, "config.run.file_dtype: found 'int8'"),
        ({"data__shrink": 0.5}, "config.data.shrink: found 0.5, expected at least 1"),
        ({"optimizer__schedule": "cosine", "run__steps": 10}, "leaves nothing of run.steps=10"),
    ],
)
def test_contradiction_of_an_autoencoder_says_what_to_do(changes, message):
    check_autoencoder(AutoencoderConfig())
    with pytest.raises(ValueError) as caught:
        check_autoencoder(edit(AutoencoderConfig(), **changes))
    assert message in str(caught.value)


def test_choices_are_what_the_program_has():
    from inset_jax.kernels.attend import IMPLEMENTATIONS
    from inset_jax.model.decoder import REMAT
    from inset_jax.sample.guidance import MODES

    assert set(CHOICES["compute.attention"]) == {"auto", *IMPLEMENTATIONS}
    assert set(CHOICES["compute.remat"]) == set(REMAT)
    assert set(CHOICES["sample.guidance"]) == set(MODES)
