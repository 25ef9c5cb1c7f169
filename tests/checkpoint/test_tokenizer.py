"""The tokenizer of a model's folder: small made-up ones, and the real one where it is at hand."""

import json
import os
import pathlib

import pytest

from inset_jax import convert
from inset_jax.checkpoint import bagel, tokenizer
from inset_jax.core.config import TokenConfig
from inset_jax.data import text
from tests.checkpoint.folders import FOLDER, contents, inward, outward, write_tokenizer

QWEN = TokenConfig(151644, 151645, 151652, 151653)
OURS = TokenConfig(500, 501, 502, 503)  # of the golden model
REAL = os.environ.get("INSET_TOKENIZER") or pathlib.Path(__file__).parents[3] / "shared/tokenizer"
needs_the_real_one = pytest.mark.skipif(
    not (pathlib.Path(REAL) / "tokenizer.json").is_file(),
    reason="no Qwen2.5 tokenizer: set INSET_TOKENIZER to the folder of its tokenizer.json",
)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, name, capsys):
    write_tokenizer(folder, [500, 501, 502, 503], name)
    assert bagel.config_from_bagel(folder).tokens == OURS
    write_tokenizer(folder, [500, 7, 502, 503], name)
    assert convert.main(["to-orbax", str(folder), str(tmp_path / "orbax")]) == convert.REFUSED
    said = capsys.readouterr().err
    assert f"{name}: <|im_end|> is 7, but {folder / 'special_tokens.json'} says 501" in said
    assert not (tmp_path / "orbax").exists()


def test_a_folder_that_states_no_ids_has_qwens(tmp_path):
    assert tokenizer.special_ids(tmp_path, 152064) == QWEN
    write_tokenizer(tmp_path, vars(QWEN).values())
    assert tokenizer.special_ids(tmp_path, 152064) == QWEN
    write_tokenizer(
        tmp_path, [151644, 151645, 151646, 151647]
    )  # of Qwen2, which has no vision tokens
    with pytest.raises(ValueError, match=r"start\|> is 151646, but Qwen2.5 has 151652: the token"):
        tokenizer.special_ids(tmp_path, 152064)


def test_a_small_vocabulary_has_its_tokenizers_ids(tmp_path):
    with pytest.raises(ValueError, match=r"151644 for <\|im_start\|>, but .* vocab_size 512"):
        tokenizer.special_ids(tmp_path, 512)
    write_tokenizer(tmp_path, [10, 11, 12, 13])
    assert tokenizer.special_ids(tmp_path, 512) == TokenConfig(10, 11, 12, 13)
    write_tokenizer(tmp_path, [10, 11, 14, 13], "added_tokens.json")
    with pytest.raises(ValueError, match=r"added_tokens.json: <\|vision_start\|> is 14, but .* 12"):
        tokenizer.special_ids(tmp_path, 512)


def test_a_token_that_is_missing_is_named(tmp_path):
    write_tokenizer(tmp_path, [10, 11, 12])
    with pytest.raises(ValueError, match=r"tokenizer.json: the tokenizer has no <\|vision_end\|>"):
        tokenizer.special_ids(tmp_path, 512)
    write_tokenizer(tmp_path, [10, 11, 12, 13], "added_tokens.json")  # which has it
    assert tokenizer.special_ids(tmp_path, 512).image_end == 13


def test_a_small_tokenizer_goes_the_same_way_as_a_real_one(folder, tmp_path):
    """What the demo makes is saved, converted, checked and loaded as Qwen2.5's is."""
    text.make_small_tokenizer(["a cat on a bench"], 512, OURS).save(folder)
    inward(folder, tmp_path / "orbax")
    outward(tmp_path / "orbax", tmp_path / "back")
    for where in (folder, tmp_path / "orbax", tmp_path / "back"):
        found = text.load(tokenizer.find(where), OURS, 512)
        assert found.decode(found.encode("a cat")) == "a cat"
    text.make_small_tokenizer(["a cat"], 512, TokenConfig(1, 2, 3, 4)).save(folder)
    with pytest.raises(
        ValueError, match=r"<\|im_start\|> is 1, but .*special_tokens.json says 500"
    ):
        inward(folder, tmp_path / "no")


@needs_the_real_one
def test_ids_from_the_real_tokenizers_files_are_those_of_transformers():
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(REAL, local_files_only=True)
    found = tokenizer.special_ids(REAL, 152064)
    assert found == QWEN == text.load(REAL, QWEN, 152064).special_ids()
    for field, (_, word) in tokenizer.KEYS.items():
        assert theirs.convert_tokens_to_ids(word) == getattr(found, field)
    line = "A [img] robot, 12,345 steps.\n\tD\u00e9j\u00e0 vu \u4f60\u597d"
    assert text.load(REAL).encode(line) == theirs(line, add_special_tokens=False).input_ids


@needs_the_real_one
def test_the_real_tokenizer_is_made_from_its_older_files(tmp_path):
    """A folder with vocab.json and merges.txt alone, as older ones are, gets a tokenizer.json."""
    values = json.loads((pathlib.Path(REAL) / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(values["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in values["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    with pytest.raises(ValueError, match=r"merges.txt: the tokenizer has no <\|im_start\|>"):
        tokenizer.content(tmp_path)
    config = pathlib.Path(REAL) / "tokenizer_config.json"
    (tmp_path / config.name).write_bytes(config.read_bytes())
    assert tokenizer.special_ids(tmp_path, 152064) == QWEN
    (tmp_path / "made.json").write_bytes(tokenizer.content(tmp_path))
    line = "A [img] robot, 12,345 steps.\n\tD\u00e9j\u00e0 vu \u4f60\u597d <|im_end|>"
    assert text.load(tmp_path / "made.json", QWEN).encode(line) == text.load(REAL).encode(line)


def test_without_a_tokenizer_there_is_none():
    assert tokenizer.content(FOLDER) is None and "tokenizer.json" not in contents(FOLDER)


def test_the_tokenizer_is_copied_once_and_never_replaced(tmp_path):
    source, directory = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.json: there is no such file"):
        tokenizer.keep(directory, source)
    (source / "tokenizer.json").write_text("{}")
    tokenizer.keep(directory, source)
    tokenizer.keep(directory, source / "tokenizer.json")
    assert (directory / "tokenizer.json").read_text() == "{}"
    (source / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is another tokenizer than"):
        tokenizer.keep(directory, source)
