"""The command of the table with a very small random model."""

import json

import jax
import pytest

from configs import tiny
from inset_jax.core.config import SampleConfig, edit
from inset_jax.data.text import make_small_tokenizer
from inset_jax.model import inset
from inset_jax.sample.api import Generator
from tests.sample.small import CONFIG, make_sampler
from tools import judge, judging

FEW = SampleConfig(num_timesteps=2, alpha=1.0, beta=2.0)


@pytest.fixture(scope="module")
def generator():
    config = edit(tiny.experiment(), model=CONFIG, sample=FEW, data__max_example_tokens=400)
    words = make_small_tokenizer(["a cat on a bench"], CONFIG.llm.vocab_size, CONFIG.tokens)
    return Generator(config, make_sampler(CONFIG).params, words)


def test_a_random_model_is_judged_too(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "load", lambda *_: generator)
    out = tmp_path / "table.json"
    command = ["--checkpoint", "x", "--out", str(out), "--seeds", "1", "--sentences", "2"]
    assert judge.main([*command, "--rows", "2 references", "--controls", ""]) == 0
    [row] = json.loads(out.read_text())["rows"]
    assert row["columns"]["identity"]["values"] == 2 * 2  # sentences, places


def test_untrained_weights_are_others_with_the_same_autoencoder(generator, monkeypatch):
    fresh = jax.tree.map(lambda leaf: leaf + 1, generator.sampler.params["model"])
    monkeypatch.setattr(inset, "create", lambda config, seed: (None, fresh))  # compiles for long
    own = judging.weights_hash(generator.sampler.params)
    other = judging.untrained(generator)
    assert own == judging.weights_hash(generator.sampler.params)
    assert own != judging.weights_hash(other.sampler.params)
    assert other.sampler.params["vae"] is generator.sampler.params["vae"]
