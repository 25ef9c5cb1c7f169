"""The tokenizer in a model's folder: its file, and the ids of the tokens around texts and images.

Every file that states an id has to agree with the model, or the folder is refused: a tokenizer of
another model encodes every text without an error, to other ids.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from inset_jax.checkpoint import json_files
from inset_jax.core.config import TokenConfig

FILE = "tokenizer.json"
OLDER_FILES = ("vocab.json", "merges.txt")  # of Qwen2.5's first tokenizer, in BAGEL's folder too
STATED = "special_tokens.json"  # ids of a model that does not have Qwen2.5's
KEYS = {  # our field -> key in STATED, text of the token
    "text_start": ("bos_token_id", "<|im_start|>"),
    "text_end": ("eos_token_id", "<|im_end|>"),
    "image_start": ("start_of_image", "<|vision_start|>"),
    "image_end": ("end_of_image", "<|vision_end|>"),
}


def special_ids(folder: str | pathlib.Path, vocab_size: int) -> TokenConfig:
    """Returns the ids of the four special tokens of a model.

    They are what special_tokens.json says; without it, Qwen2.5's, which BAGEL has; in a vocabulary
    too small for these, what the tokenizer says.

    Raises:
      ValueError: a file of the tokenizer says otherwise, together they lack a token, or an id is
        outside the vocabulary.
    """
    folder = pathlib.Path(folder)
    there = list(_ids(folder))
    known = {text: number for _, ids in reversed(there) for text, number in ids.items()}
    texts = {field: text for field, (_, text) in KEYS.items()}
    if there and (missing := [text for text in texts.values() if text not in known]):
        raise ValueError(f"{there[0][0]}: the tokenizer has no {', '.join(missing)}")
    tokens, source = TokenConfig(), "Qwen2.5 has"
    path = folder / STATED
    if path.is_file():
        values, source = json_files.read(path), f"{path} says"
        ids = {field: json_files.number(values, key, path) for field, (key, _) in KEYS.items()}
        tokens = TokenConfig(**ids)
    elif there and max(vars(tokens).values()) >= vocab_size:
        tokens = TokenConfig(**{field: known[text] for field, text in texts.items()})
        source = f"{there[0][0]} says"
    for field, text in texts.items():
        expected = getattr(tokens, field)
        for file, ids in there:
            if ids.get(text, expected) != expected:
                raise ValueError(
                    f"{file}: {text} is {ids[text]}, but {source} {expected}: the tokenizer is not "
                    f"this model's, or {STATED} beside it has to state its ids"
                )
        if not 0 <= expected < vocab_size:
            raise ValueError(
                f"{folder}: {source} {expected} for {text}, but llm_config.json says vocab_size "
                f"{vocab_size}"
            )
    return tokens


def find(folder: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the folder's tokenizer.json, or None."""
    path = pathlib.Path(folder) / FILE
    return path if path.is_file() else None


def content(folder: str | pathlib.Path) -> bytes | None:
    """Returns the folder's tokenizer.json; made by transformers where only the older files are.

    None where there are neither.

    Raises:
      ValueError: the older files cannot be read.
    """
    if (path := find(folder)) is not None:
        return path.read_bytes()
    folder = pathlib.Path(folder)
    if not all((folder / name).is_file() for name in OLDER_FILES):
        return None
    from transformers import Qwen2Tokenizer

    try:
        made = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # whatever its readers meet
        raise ValueError(f"{folder}: {', '.join(OLDER_FILES)}: no tokenizer: {error}") from error
    for _, text in KEYS.values():
        if made.token_to_id(text) is None:
            raise ValueError(f"{folder}: {', '.join(OLDER_FILES)}: the tokenizer has no {text}")
    return made.to_str().encode()


def keep(directory: str | os.PathLike, source: str | os.PathLike) -> None:
    """Copies a tokenizer (file, or folder with tokenizer.json) beside a run's checkpoints.

    Raises:
      ValueError: there is none, or the folder holds another one already.
    """
    from etils import epath

    source, target = epath.Path(source), epath.Path(directory) / FILE
    source = source / FILE if source.is_dir() else source
    if not source.exists():
        raise ValueError(f"{source}: there is no such file")
    content = source.read_bytes()
    if target.exists():
        if target.read_bytes() != content:
            raise ValueError(f"{target}: is another tokenizer than {source}; use a new folder")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(FILE + ".unfinished")
    partial.write_bytes(content)
    partial.rename(target)


def _ids(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, dict[str, int]]]:
    """Yields each tokenizer file of the folder with the ids it states, best first."""
    path = folder / FILE
    if path.is_file():
        values = json_files.read(path)
        added = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
        yield path, {**(values.get("model", {}).get("vocab") or {}), **added}
    path = folder / "tokenizer_config.json"
    if path.is_file() and (decoder := json_files.read(path).get("added_tokens_decoder")):
        yield path, {token["content"]: int(number) for number, token in decoder.items()}
    path = folder / "added_tokens.json"
    if path.is_file() and (added := json_files.read(path)):
        yield path, added
