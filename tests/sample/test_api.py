import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from inset_jax.checkpoint import store
from inset_jax.core import overrides
from inset_jax.core.config import SampleConfig, TokenConfig, edit
from inset_jax.data.text import make_small_tokenizer
from inset_jax.sample.api import Generator, Options
from inset_jax.sample.prompt import Prompt
from inset_jax.sample.sampler import Drawing
from tests.sample.small import CONFIG

BAGEL = pathlib.Path(__file__).parents[1] / "golden" / "tiny_a" / "ckpt"
CAT = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
FEW = SampleConfig(num_timesteps=3, alpha=2.0, text_only_alpha=3.0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_small_tokenizer(["a cat on a bench"] * 3, 512, TokenConfig(500, 501, 502, 503))


@pytest.fixture(scope="module")
def generator(sampler, tokenizer):
    config = edit(tiny.experiment(), model=CONFIG, sample=FEW, data__max_example_tokens=300)
    return Generator(config, sampler.params, tokenizer)


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_a_sentence_becomes_a_picture_of_its_seed(generator):
    drawn = generator.draw(["A ", CAT, " sits"], seed=5, options=Options(pictures=2))
    assert [picture.size for picture in drawn.pictures] == [(64, 64)] * 2
    assert drawn.seeds == [5, 6] and drawn.evaluations == 2
    second = generator.draw(["A ", CAT, " sits"], seed=6).pictures[0]
    assert np.abs(pixels(second) - pixels(drawn.pictures[1])).max() <= 1
    assert np.abs(pixels(second) - pixels(drawn.pictures[0])).max() > 20


def test_prompts_of_a_batch_have_their_own_scales_and_sizes(generator):
    prompts = [Prompt(["a ", CAT]), Prompt(["a"], height=32, seed=9)]
    together = generator.draw_all(prompts, Options())
    assert [(one.settings.alpha, one.settings.beta) for one in together] == [(2.0, 1.5), (3.0, 1.0)]
    assert together[1].pictures[0].size == (64, 32)
    for prompt, one in zip(prompts, together):
        alone = generator.draw_all([prompt], Options())[0]
        assert np.abs(pixels(alone.pictures[0]) - pixels(one.pictures[0])).max() <= 1


def test_an_edit_has_the_size_of_its_source_and_thinks_before(generator):
    seen = []
    drawn = generator.draw_all(
        [Prompt(["put ", CAT, " on it"], source=CAT)],
        Options(think=True, max_tokens=3),
        lambda *step: seen.append(step),
    )[0]
    assert drawn.pictures[0].size == (64, 32)
    assert drawn.plan and drawn.settings.alpha == 2.0
    assert seen[:3] == [("planning", step, 3) for step in (1, 2, 3)]
    assert seen[3:] == [("drawing", 1, 2), ("drawing", 2, 2)]


def test_answers_come_as_text(generator):
    question = ["what is ", CAT, "?"]
    options = Options(max_tokens=4)
    answer = generator.answer(question, options=options)
    prompts = [Prompt(["hello"]), Prompt(question)]
    assert generator.answer_all(prompts, options)[1] == answer
    assert isinstance(answer, str)


def test_settings_are_the_runs_or_the_modes(generator, monkeypatch):
    assert generator.settings() == FEW
    assert generator.settings("bagel", "edit").renorm == "text_channel"
    monkeypatch.setattr(generator, "info", {"kind": "bagel", "path": "x"})
    assert generator.settings().guidance == "bagel"
    assert generator.settings("inset") == SampleConfig()
    with pytest.raises(ValueError, match="'cfg'"):
        generator.settings("cfg")
    converted = {"kind": "checkpoint", "path": "x", "meta": {"weights": "ema"}}
    monkeypatch.setattr(generator, "info", converted)
    assert generator.settings().guidance == "bagel"


def test_a_drawing_that_is_not_finite_is_an_error(generator, monkeypatch):
    broken = Drawing([np.full((16, CONFIG.latent_dim), np.nan, np.float32)], 2, 1)
    monkeypatch.setattr(generator.sampler, "draw", lambda *args: broken)
    with pytest.raises(ValueError, match="not finite"):
        generator.draw(["a"])


def test_bad_requests_are_refused(generator):
    with pytest.raises(ValueError, match="0 pictures"):
        generator.draw(["a"], options=Options(pictures=0))
    with pytest.raises(ValueError, match="width 65 px"):
        generator.draw(["a"], size=(64, 65))
    with pytest.raises(ValueError, match=r"at most 300 fit"):
        generator.draw(["a" * 100], size=(256, 256))


def test_a_runs_checkpoint_brings_its_settings_and_its_tokenizer(sampler, tokenizer, tmp_path):
    config = edit(tiny.experiment(), model=CONFIG, sample=FEW, data__max_example_tokens=77)
    with store.Store(tmp_path / "checkpoints") as saver:
        saver.save(3, {"params": sampler.params}, {"config": overrides.to_dict(config)})
    with pytest.raises(ValueError, match=r"no tokenizer\.json beside this model"):
        Generator.load(str(tmp_path))
    tokenizer.save(tmp_path / "checkpoints")
    loaded = Generator.load(str(tmp_path))
    assert loaded.settings() == FEW and loaded.info["step"] == 3
    assert loaded.config.data == config.data and loaded.config.model == CONFIG
    assert loaded.config.compute.dtype == "float32"
    with pytest.raises(ValueError, match="dtype 'float8'"):
        Generator.load(str(tmp_path), dtype="float8")


def test_a_bagel_folder_is_held_in_the_dtype_of_the_computation(tokenizer, tmp_path):
    """Its files are in float32 here; the autoencoder stays so."""
    tokenizer.save(tmp_path)
    loaded = Generator.load(str(BAGEL), dtype="bfloat16", tokenizer=str(tmp_path))
    params = loaded.sampler.params
    kinds = {part: {leaf.dtype.name for leaf in jax.tree.leaves(params[part])} for part in params}
    assert kinds == {"model": {"bfloat16"}, "vae": {"float32"}}
