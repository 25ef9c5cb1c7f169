import os
import pickle

import pytest

from inset_jax.core.config import TokenConfig
from inset_jax.data.text import SPECIAL, load, make_small_tokenizer

OWN = TokenConfig(296, 297, 298, 299)
REAL = os.environ.get("INSET_TOKENIZER", "")
needs_real = pytest.mark.skipif(
    not REAL,
    reason="no Qwen2.5 tokenizer: set INSET_TOKENIZER to the folder of its tokenizer.json",
)


@pytest.fixture(scope="module")
def small():
    return make_small_tokenizer(["A cat sits on a bench", "a red cube by a cat"] * 5, 300, OWN)


def test_any_text_comes_back(small):
    for text in ["A cat", " é漢字🙂\n\t x ", "", " ", "\x00\x7f", "".join(SPECIAL.values())]:
        ids = small.encode(text)
        assert small.decode(ids) == text
        assert all(0 <= number < 300 for number in ids)


def test_a_frequent_word_is_one_token(small):
    assert len(small.encode(" cat")) == 1


def test_special_tokens_have_the_ids_asked_for_and_are_never_typed(small):
    assert small.special_ids() == OWN
    assert not set(small.encode("<|im_start|>")) & set(vars(OWN).values())
    assert small.decode([OWN.text_start, *small.encode("A"), OWN.text_end]) == "A"


def test_a_saved_tokenizer_is_the_same(small, tmp_path):
    small.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load(path, OWN, 300)
        assert again.encode("A <|im_end|> cat") == small.encode("A <|im_end|> cat")


def test_a_worker_process_has_the_same_tokenizer(small):
    text = "A <|im_end|> cat"
    assert pickle.loads(pickle.dumps(small)).encode(text) == small.encode(text)


def test_a_file_that_truncates_and_pads_changes_nothing(small, tmp_path):
    altered = pickle.loads(pickle.dumps(small))
    altered.inner.enable_truncation(4)
    altered.inner.enable_padding(length=6)
    altered.save(tmp_path)
    for text in ("A", "A cat sits on a bench by a red cube"):
        assert load(tmp_path).encode(text) == small.encode(text)


def test_a_tokenizer_of_another_model_is_refused(small, tmp_path):
    small.save(tmp_path)
    with pytest.raises(ValueError, match=r"another model: <\|im_start\|> is 296, .* 151644"):
        load(tmp_path, TokenConfig())
    with pytest.raises(ValueError, match=r"ids go up to 299, but model\.llm\.vocab_size is 200"):
        load(tmp_path, OWN, 200)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no tokenizer there"):
        load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be used as a tokenizer"):
        load(tmp_path)


def test_a_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 260"):
        make_small_tokenizer(["a"], 200)
    with pytest.raises(ValueError, match="lie below 300"):
        make_small_tokenizer(["a"], 300, TokenConfig())


@needs_real
def test_the_real_tokenizer_has_the_default_ids():
    tokenizer = load(REAL, TokenConfig(), 152064)
    assert tokenizer.encode("Hello world") == [9707, 1879]
    text = "A <|vision_start|> is text"
    assert tokenizer.decode(tokenizer.encode(text)) == text
