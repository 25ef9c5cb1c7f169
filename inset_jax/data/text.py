"""Text to ids and back, over the `tokenizers` library (transformers takes seconds to import).

A tokenizer is a `tokenizer.json`; a user's checkpoint brings its own. The layout puts the four
special tokens around texts and images itself, by the ids of `TokenConfig`; here they only have to
agree. Special tokens that are typed into a text are text: a caption cannot open an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from inset_jax.core.config import TokenConfig

SPECIAL = {
    "text_start": "<|im_start|>",
    "text_end": "<|im_end|>",
    "image_start": "<|vision_start|>",
    "image_end": "<|vision_end|>",
}
SMALLEST_VOCABULARY = 256 + len(SPECIAL)  # every byte and the special tokens


class Tokenizer:
    """Encodes texts to ids and decodes ids to texts."""

    def __init__(self, inner):
        """Wraps a `tokenizers.Tokenizer`."""
        self.inner = inner
        inner.encode_special_tokens = True  # typed-in special tokens are text
        inner.no_truncation()  # a file may ask for either: ids would be lost or made up
        inner.no_padding()

    def __reduce__(self):  # the inner one forgets, when it is pickled, that special tokens are text
        return Tokenizer, (self.inner,)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def special_ids(self) -> TokenConfig:
        """Returns the ids of the four special tokens.

        Raises:
          ValueError: the vocabulary lacks one.
        """
        ids = {name: self.inner.token_to_id(token) for name, token in SPECIAL.items()}
        missing = [SPECIAL[name] for name, number in ids.items() if number is None]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}")
        return TokenConfig(**ids)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, nothing added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        return self.inner.decode([int(number) for number in ids], skip_special_tokens=True)

    def save(self, path) -> None:
        """Writes a `tokenizer.json`; a folder gets one of that name."""
        path = Path(path)
        path = path / "tokenizer.json" if path.suffix != ".json" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.inner.save(str(path))


def load(path, tokens: TokenConfig | None = None, vocab_size: int | None = None) -> Tokenizer:
    """Reads a tokenizer from a `tokenizer.json` or the folder that holds one.

    Args:
      tokens: the special ids that the model expects; None does not check.
      vocab_size: rows of the model's embedding table; None does not check.

    Raises:
      ValueError: no such file, not a tokenizer, or one of another model.
    """
    from tokenizers import Tokenizer as Inner

    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no tokenizer there; expected a tokenizer.json or its folder")
    try:
        tokenizer = Tokenizer(Inner.from_file(str(file)))
        found = tokenizer.special_ids()
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: cannot be used as a tokenizer: {error}") from error
    if tokens is not None and found != tokens:
        differ = [
            f"{SPECIAL[name]} is {getattr(found, name)}, the model expects {getattr(tokens, name)}"
            for name in SPECIAL
            if getattr(found, name) != getattr(tokens, name)
        ]
        raise ValueError(
            f"{file}: this tokenizer belongs to another model: {'; '.join(differ)}; change "
            "data.tokenizer, or model.tokens for a model that is not trained yet"
        )
    if vocab_size is not None and tokenizer.size > vocab_size:
        raise ValueError(
            f"{file}: ids go up to {tokenizer.size - 1}, but model.llm.vocab_size is {vocab_size}"
        )
    return tokenizer


def make_small_tokenizer(
    texts: Iterable[str], vocab_size: int, tokens: TokenConfig | None = None
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer on a few texts; it encodes any text.

    Args:
      vocab_size: ids in all; texts without enough repetition give fewer.
      tokens: ids the special tokens shall have; default the first four.

    Raises:
      ValueError: fewer ids than bytes and special tokens, or special ids outside the vocabulary.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"a vocabulary of {vocab_size}: at least {SMALLEST_VOCABULARY} (256 bytes and the "
            "special tokens) are needed"
        )
    tokens = tokens or TokenConfig(0, 1, 2, 3)
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return Tokenizer(_with_special(inner, tokens, decoders.ByteLevel(), vocab_size))


def _with_special(inner, tokens: TokenConfig, decoder, vocab_size: int):
    """Renumbers the vocabulary around the special ids and adds them."""
    import json

    from tokenizers import Tokenizer as Inner

    special = {getattr(tokens, name): token for name, token in SPECIAL.items()}
    if len(special) < len(SPECIAL) or not all(0 <= n < vocab_size for n in special):
        raise ValueError(f"special ids {vars(tokens)}: they must differ and lie below {vocab_size}")
    state = json.loads(inner.to_str())
    free = (number for number in range(vocab_size) if number not in special)
    ordinary = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    vocabulary = {token: next(free) for token in ordinary}
    vocabulary |= {token: number for number, token in special.items()}
    state["model"]["vocab"] = vocabulary
    state["added_tokens"] = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in sorted(special.items())
    ]
    made = Inner.from_str(json.dumps(state))
    made.decoder = decoder
    return made
