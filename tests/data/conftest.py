"""A small world of records: every kind of example, random pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.tiny import experiment
from inset_jax.core.config import edit
from inset_jax.data.build import build_records
from inset_jax.data.sources.jsonl import Jsonl
from inset_jax.data.text import make_small_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
EXAMPLES = 28  # the last four are the validation split


def make_rows() -> list[dict]:
    rows = []
    for n in range(EXAMPLES):
        row = {"id": f"x{n}", "split": "train" if n < EXAMPLES - 4 else "validation"}
        if n % 5 == 1:
            row |= {"text": f"what is [img:a{n}.png]?", "answer": "a thing"}
        elif n % 5 == 2:
            row |= {"text": "make it red", "edit": f"a{n}.png", "target": f"t{n}.png"}
        elif n % 5 == 3:
            row |= {"text": "a plain caption", "target": f"t{n}.png"}
        else:
            row |= {"text": f"A [img:a{n}.png] by [img:b{n}.png].", "target": f"t{n}.png"}
        rows.append(row)
    return rows


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with pictures, data.jsonl, the records of it and a tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    for n in range(EXAMPLES):
        for name in "abt":
            width, height = random.integers(20, 90, 2)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{n}.png")
    rows = make_rows()
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    built = build_records(Jsonl(str(folder / "data.jsonl")), folder / "records")
    assert built.examples == {"train": EXAMPLES - 4, "validation": 4} and not built.rejects
    model = experiment().model
    texts = [row["text"] for row in rows]
    make_small_tokenizer(texts, model.llm.vocab_size, model.tokens).save(folder)
    return folder


@pytest.fixture(scope="session")
def config(world):
    """The tiny experiment over the small world, two packs a step."""
    return edit(
        experiment(),
        data__train=(str(world / "records"),),
        data__validation=(str(world / "records"),),
        data__tokenizer=str(world),
        data__packs=2,
    )
