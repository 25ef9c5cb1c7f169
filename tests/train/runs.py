"""Whole runs of the training command as real processes, on a tiny model."""

import io
import json
import os
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Mapping

import jax
import numpy as np
from PIL import Image

from inset_jax.checkpoint import store
from inset_jax.core import overrides
from inset_jax.core.config import Config, RunConfig, SizeLimits, edit
from inset_jax.data import record, text
from inset_jax.data.record import Example, Segment
from inset_jax.model import inset, vae
from inset_jax.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40
# beginnings of the names of metrics that the clock decides
TIMED = ("steps_per", "tokens_per", "seconds_left", "time/", "tflops", "mfu", "goodput", "hosts/")

PREVIEW = """
from PIL import Image

def draw(config, params, step, folder):
    assert set(params) == {"model", "vae"}
    assert "connector_position" in params["model"]
    path = folder / f"{step}.png"
    Image.new("RGB", (8, 8), (step, 0, 0)).save(path)
    return [path]
"""


def picture(random) -> bytes:
    buffer = io.BytesIO()
    pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, split: str) -> Example:
    """Every third one answers a question about a picture, the others draw one."""
    random = np.random.default_rng(number)
    image = lambda kind: Segment(kind, image=picture(random), width=8, height=8)
    if number % 3 == 0:
        segments = (image("vit"), Segment("text", "what"), Segment("text", "it is", loss=True))
        kind = "understanding"
    else:
        segments = (Segment("text", "a"), image("vit"), Segment("text", "b"), image("target"))
        kind = "drawing"
    return Example(f"{split}-{number}", segments, kind)


def prepare(folder: pathlib.Path, config: Config) -> pathlib.Path:
    """Fills a folder with records, tokenizer, config file and preview."""
    splits = {
        "train": [example(n, "train") for n in range(12)],
        "validation": [example(n, "held-out") for n in range(3, 9)],
    }
    record.write_records(folder / "records", splits)
    tokens = config.model.tokens.__class__(260, 261, 262, 263)
    text.make_small_tokenizer(["a b it is what"], 264, tokens).save(folder / "tokenizer.json")
    side = dict(max_side=8, min_side=8)
    whole = edit(
        config,
        model__tokens=tokens,
        model__llm__vocab_size=264,
        data__train=(str(folder / "records"),),
        data__validation=(str(folder / "records"),),
        data__tokenizer=str(folder / "tokenizer.json"),
        data__vit_size=SizeLimits(stride=2, **side),
        data__vae_size=SizeLimits(stride=4, **side),
        data__max_example_tokens=64,
        run=RunConfig(
            steps=STEPS, log_every=1, save_every=5, validate_every=10, sample_every=STEPS, keep=2
        ),
    )
    values = json.dumps(overrides.to_dict(whole))
    (folder / "experiment.py").write_text(
        "import json\n"
        "from inset_jax.core.overrides import from_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_dict(json.loads({values!r})))\n"
    )
    (folder / "drawing.py").write_text(PREVIEW)
    return folder


def fill_weights(folder: pathlib.Path) -> pathlib.Path:
    """Makes a checkpoint to start from: compiling the initialisers takes longer than all steps."""
    whole = overrides.load(str(folder / "experiment.py"))
    random = np.random.default_rng(0)
    fill = lambda leaf: (0.1 * random.standard_normal(leaf.shape)).astype(leaf.dtype)
    shapes = {
        "model": inset.abstract(whole.model)[1],
        "vae": vae.abstract(whole.model.vae)[1],
    }
    with store.Store(folder / "weights") as saver:
        meta = {"config": overrides.to_dict(whole)}
        saver.save(0, {"params": jax.tree.map(fill, shapes)}, meta)
    return folder / "weights"


def start(
    place: pathlib.Path,
    name: str,
    *flags: str,
    before: tuple[str, ...] = (),
    environment: Mapping[str, str] = types.MappingProxyType({}),
):
    command = [
        *before,
        sys.executable,
        "-m",
        "inset_jax.train",
        f"--config={place / 'experiment.py'}",
        f"--workdir={place / name}",
        "--preview=drawing:draw",
        *flags,
    ]
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{place}",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **settings, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def interrupt(place: pathlib.Path, name: str, at: int, number: int) -> tuple[int, str, str]:
    """Starts a run and sends it a signal once it has reached a step."""
    process = start(place, name)
    reached = 0
    while reached < at and process.poll() is None:
        time.sleep(0.01)
        try:
            reached = max((r["step"] for r in metrics.read(place / name)), default=0)
        except (OSError, json.JSONDecodeError):
            continue  # being rewritten this very moment
    process.send_signal(number)
    return finish(process)
