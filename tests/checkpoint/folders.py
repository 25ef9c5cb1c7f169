"""Small model folders that tests may spoil."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

from inset_jax.checkpoint import to_bagel, to_orbax, tokenizer
from inset_jax.checkpoint.plan import Options
from inset_jax.checkpoint.to_orbax import Manner

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "tiny_a" / "ckpt"


def inward(folder, target, jobs=2, dry_run=False, **options):
    return to_orbax.convert(folder, target, Options(**options), Manner(jobs, dry_run))


def outward(path, target, jobs=2, **options):
    return to_bagel.export(path, target, to_bagel.Options(**options), Manner(jobs))


def change(folder, edit, file="ema.safetensors"):
    """Applies a function to the dict of tensors of a file."""
    found = load_file(folder / file)
    edit(found)
    save_file(found, folder / file, metadata={"format": "pt"})


def cast(folder, dtype, file="ema.safetensors"):
    change(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}), file)


def shard(folder, count=3, stem="model"):
    """Splits the model's file into shards with an index; returns their names."""
    found = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    files = [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    place = {name: files[i % count] for i, name in enumerate(found)}
    for file in files:
        save_file({n: t for n, t in found.items() if place[n] == file}, folder / file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return files


def write_tokenizer(folder, ids=(500, 501, 502, 503), name="tokenizer.json"):
    """Writes a tokenizer's file that states the ids of the special tokens and nothing else."""
    pairs = list(zip(ids, (word for _, word in tokenizer.KEYS.values())))
    decoder = {str(number): {"content": word} for number, word in pairs}
    values = {
        "tokenizer.json": {"added_tokens": [{"id": n, "content": word} for n, word in pairs]},
        "tokenizer_config.json": {"added_tokens_decoder": decoder},
        "added_tokens.json": {word: number for number, word in pairs},
    }[name]
    (folder / name).write_text(json.dumps(values))


def side_files(folder):
    """Adds files as a published folder has them."""
    write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text('{"a":  1}\n')
    (folder / "merges.txt").write_bytes(b"\xc4\xa0 t\r\n")
    (folder / "assets").mkdir()
    (folder / "assets" / "teaser.bin.md").write_text("# x")


def contents(folder):
    """Returns the bytes of every file of a folder by relative path."""
    folder = pathlib.Path(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same(a, b):
    """Whether two flat dicts of arrays have the same bytes."""
    return a.keys() == b.keys() and all(
        np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a
    )
