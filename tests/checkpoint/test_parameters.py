import json
import math
import pathlib

import pytest

from inset_jax.checkpoint import convert, parameters
from inset_jax.core.config import ModelConfig, edit
from tools import parameters as command


@pytest.fixture(scope="module")
def expected(golden):
    """Numbers in the manifests of the real weights, sorted into parts by BAGEL's names alone."""
    manifest = json.loads((golden / "manifest_7b.json").read_text())
    vae = json.loads((golden / "manifest_ae.json").read_text())
    rules = {
        "token embedding": lambda n: "embed_tokens" in n,
        "language head": lambda n: "lm_head" in n,
        "gen expert": lambda n: "moe_gen" in n,
        "und expert": lambda n: n.startswith("language_model.model."),
        "ViT": lambda n: n.startswith("vit_model."),
        "connector": lambda n: n.startswith("connector."),
        "time embedding": lambda n: n.startswith("time_embedder."),
        "latents in": lambda n: n.startswith("vae2llm."),
        "latents out": lambda n: n.startswith("llm2vae."),
        "frozen position tables": lambda n: n.endswith(".pos_embed"),
        "VAE encoder": lambda n: n.startswith("encoder."),
        "VAE decoder": lambda n: n.startswith("decoder."),
    }
    totals = dict.fromkeys(rules, 0)
    for name, entry in {**manifest, **vae}.items():
        part = next(part for part, rule in rules.items() if rule(name))
        totals[part] += math.prod(entry["shape"])
    return totals


def test_the_7b_model_counts_as_its_weights_do_in_every_part(expected):
    parts = parameters.count(convert.shapes(ModelConfig()))
    assert {part.name: part.parameters for part in parts} == expected
    assert sum(n for name, n in expected.items() if "VAE" not in name) == 14_607_260_128


def test_every_parameter_is_in_one_part():
    shapes = convert.shapes(edit(ModelConfig(), llm__layers=1, null_token=True))
    assert sum(part.arrays for part in parameters.count(shapes)) == len(shapes)
    assert parameters.part_of("model/null/table") == "null token"


def test_the_command_prints_the_table_of_a_folder(folder, capsys):
    assert command.main(["parameters", f"--checkpoint={folder}"]) == 0
    printed = capsys.readouterr().out
    assert "gen expert                    15            62,080" in printed
    assert printed.splitlines()[-1].split()[:3] == ["all", "243", "1,383,763"]


def test_the_command_prints_the_table_of_a_config(capsys):
    preset = pathlib.Path(__file__).parents[2] / "configs" / "bagel_7b.py"
    argv = ["parameters", f"--config={preset}", "--config.model.llm.layers=1"]
    assert command.main(argv) == 0
    assert "544,997,376" in capsys.readouterr().out


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert command.main(["parameters", f"--checkpoint={tmp_path}"]) == 1
    assert "holds neither a complete checkpoint nor a BAGEL model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["parameters"])
    assert "give either --config=FILE or --checkpoint=DIR" in capsys.readouterr().err
