"""What drawing takes: counts of its work, and the report of compiles that are made up."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import inset_7b, tiny
from inset_jax.core.config import edit
from inset_jax.model import vae
from inset_jax.preflight import compiler, sampling
from inset_jax.preflight.__main__ import main

HERE = pathlib.Path(__file__).parent
CONFIG = str(HERE.parents[1] / "configs" / "inset_7b.py")
GIB = 1 << 30


def test_an_evaluation_runs_every_branch_through_the_gen_expert():
    config = inset_7b.experiment()
    llm = config.model.llm
    laid, found = sampling.layout(config), sampling.work(config, "evaluation", 1.0)
    layer = llm.model_dim * (2 * 3584 + 2 * 512 + 3 * llm.mlp_dim)
    assert laid.guided.source.shape == (1, 3 * 4096)
    assert found["gen expert"].model == 2 * 3 * 4096 * 28 * layer
    half = sampling.work(config, "evaluation", 0.5)
    assert half["attention"].model == found["attention"].model / 2
    # full: 4 texts of 14 tokens, 3 references of 1369 patches; visual: the references; null
    references = 3 * (1369 + 2)
    context = 4 * 14 + references, references, 0
    pairs = sum(4098 * (length + 4098) for length in context)
    assert found["attention"].model == 4 * pairs * 3584 * 28


def test_the_decoder_is_counted_as_xla_counts_it():
    config = inset_7b.experiment().model.vae
    definition, shapes = vae.abstract(config)
    decode = lambda params, latents: vae.bind(definition, params).decode(latents)
    lowered = jax.jit(decode).lower(shapes, jax.ShapeDtypeStruct((1, 16, 24, 16), jnp.float32))
    counted = 2 * sum(sampling.decoding(config, 16, 24).values())
    # which counts norms too, and of a convolution no products with padding
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.04)


def made_up(temporaries):
    known = {
        "mesh": {"dcn": 1, "fsdp": 4, "context": 1, "tensor": 2},
        "parts": {"weights": 4 * GIB, "autoencoder": GIB // 4, "keys and values": GIB},
        "beside": ["autoencoder"],
        "parameters": 1000,
        "kernels": {"interval_forward": 1},
    }
    text = (HERE / "program.hlo").read_text()
    seconds = {"all": 1.0}
    return compiler.Found(known, {}, temporaries, None, None, text, False, 0, [], seconds)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function: (GiB of temporaries by program, flags) -> (status, JSON)."""

    def run(temporaries, *flags):
        def compile_(config, slice_, folder, fast, limit, program):
            assert program[1:] == (("int8",) if "--weights_dtype=int8" in flags else ())
            return made_up(temporaries[program[0]])

        monkeypatch.setattr(compiler, "run", compile_)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        argv = ["x", f"--config={CONFIG}", "--slice=v6e-8", "--task=sample", f"--out={tmp_path}"]
        status = main([*argv, *flags])
        return status, json.loads((tmp_path / "sampling.json").read_text())

    return run


def test_a_slice_that_can_draw_says_how_long_a_picture_takes(command, capsys, tmp_path):
    room = {"prefill": GIB, "evaluation": 2 * GIB, "decoding": 3 * GIB}
    status, figures = command(room, "--fast")
    assert status == 0
    assert (figures["pictures"], figures["side"], figures["branches"]) == (4, 1024, 3)
    assert figures["runs"] == {"prefill": 1, "evaluation": 49, "decoding": 1}
    one = lambda name: figures["programs"][name]["seconds"]["fast"]
    whole = one("prefill") + 49 * one("evaluation") + one("decoding")
    assert figures["seconds"]["fast"] == pytest.approx(whole)
    assert one("evaluation") >= figures["programs"]["evaluation"]["read"] / 1640e9
    told = capsys.readouterr().out
    assert "fits: 8.25 GiB a device of 31.25" in told and "s a picture (estimate" in told
    assert "4 pictures of 1024 px at a time, 3 branches, 49 evaluations" in told
    assert "fits: 8.25 GiB" in (tmp_path / "sampling.html").read_text()


def test_int8_weights_are_read_in_half_the_time(command):
    room = {"prefill": GIB, "evaluation": GIB, "decoding": GIB}
    read = lambda figures: figures["programs"]["evaluation"]["read"]
    whole, half = (read(command(room, *flags)[1]) for flags in ((), ("--weights_dtype=int8",)))
    assert 0.5 < half / whole < 0.501  # and scales, norms and biases


@pytest.mark.parametrize(
    ("decoding", "words"), [(30 * GIB, "does not fit: 35.25"), (None, "not known whether it fits")]
)
def test_all_three_programs_must_be_known_to_fit(command, capsys, decoding, words):
    status, _ = command({"prefill": GIB, "evaluation": GIB, "decoding": decoding})
    assert status == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task=draw"], "--task=draw: expected train or sample"),
        (["--task=sample", "--search"], "--task=sample has no --search"),
        (["--weights_dtype=int8"], "--weights_dtype=int8 with --task=train: expected int8, with"),
        (["--table", "--fast"], "--table compiles nothing: leave out --fast"),
    ],
)
def test_other_tasks_are_refused(flags, words, capsys):
    assert main(["x", f"--config={CONFIG}", "--slice=v6e-8", *flags]) == 1
    assert words in capsys.readouterr().err


def test_the_assumed_references_fit_a_small_model():
    config = edit(tiny.experiment(), sample__guidance="bagel")
    laid = sampling.layout(config)
    side = sampling.picture_side(config) // config.model.latent_stride
    assert math.prod(laid.state.shape[1:]) == side * side * config.model.latent_dim
