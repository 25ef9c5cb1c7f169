"""The demo: builds a small world of real pictures, trains a small model on it, draws, shows.

    python -m tools.demo --out out

Training is killed once on the way and goes on from its checkpoint. Everything lands in OUT: the
records, the run with its checkpoints, the drawings, and demo.html, a page to open in a browser.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

ARTWORK = "assets/demo"
AUTOENCODER = "assets/demo/ae.safetensors"
CONFIG = "configs/demo.py"
SEED = 0
OBJECTS = (1.0, 3.0)  # weights of scenes with one object and with two


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--scenes", type=int, default=4000, help="training scenes")
    parser.add_argument("--held-out", type=int, default=48, help="sentences to draw")
    parser.add_argument("--steps", type=int, default=0, help="updates; 0: the config's")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    folder = options.out / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    say(1, "the small world: scenes, sentences and pictures")
    drawn = build_world(folder, options.scenes, options.held_out)
    say(2, "training from random weights, until it is killed")
    run, command = folder / "run", train_command(folder, options.steps)
    killed = run_until_checkpoint(command, run)
    say(3, f"the same command again, after kill -9 at step {killed}")
    subprocess.run(command, check=True)
    trained = time.monotonic() - began
    say(4, "held-out sentences, as written and under controls")
    from inset_jax.evaluate import table
    from tools import demo_page

    results = demo_page.draw(run, folder / "held_out" / "prompts.jsonl")
    figures = demo_page.measure(results, drawn)
    say(5, "the page")
    times = {"training": trained, "everything": time.monotonic() - began}
    page = options.out / "demo.html"
    page.write_text(demo_page.render(run, results, figures, times, killed), encoding="utf-8")
    print(table.text(demo_page.figures_table(figures)))
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {time.monotonic() - began:.0f} s in all")
    return 0


def say(number: int, what: str) -> None:
    print(f"\n[{number}/5] {what}", flush=True)


def build_world(folder: pathlib.Path, scenes: int, held_out: int) -> list:
    """Writes records, tokenizer and prompts; returns the scenes behind the prompts."""
    from inset_jax.core import overrides
    from inset_jax.engine import artwork, world_records

    config = overrides.load(CONFIG).model
    art = artwork.load(ARTWORK)
    world = world_records.config_of(OBJECTS, None)
    drawn = {
        "train": list(world_records.scenes(art, "train", SEED, scenes, world)),
        "validation": list(world_records.scenes(art, "validation", SEED, 4 * held_out, world)),
    }
    words = world_records.tokenizer_of(drawn["train"], config.llm.vocab_size, config.tokens)
    world_records.write_world(folder, drawn, words, encoder(config))
    chosen = [s for s in drawn["validation"] if s.kind == "image-interleaved" and len(s.things) > 1]
    world_records.write_prompts(folder / "held_out", chosen[:held_out])
    print(f"{scenes} training scenes, {len(drawn['validation'])} held out, in {folder}")
    return chosen[:held_out]


def encoder(config):
    """The shipped autoencoder's first half."""
    from inset_jax.checkpoint import convert
    from inset_jax.train.moments import Encoder

    return Encoder(config.vae, convert.load_autoencoder(AUTOENCODER, config))


def train_command(folder: pathlib.Path, steps: int) -> list[str]:
    records = f"('{folder / 'records'}',)"
    flags = {
        "workdir": folder / "run",
        "config.data.train": records,
        "config.data.validation": records,
        "config.data.tokenizer": folder / "tokenizer.json",
        "config.run.autoencoder": AUTOENCODER,
    }
    if steps:
        short = {"steps": steps, "save_every": max(steps // 4, 1), "validate_every": steps // 2}
        flags |= {f"config.run.{name}": value for name, value in short.items()}
        flags |= {"config.optimizer.warmup_steps": 1, "config.run.validation_packs": 1}
    command = [sys.executable, "-m", "inset_jax.train", f"--config={CONFIG}"]
    return [*command, *(f"--{name}={value}" for name, value in flags.items())]


def run_until_checkpoint(command: list[str], run: pathlib.Path) -> int:
    """Starts training and kills it (SIGKILL) a little after its first checkpoint.

    Returns:
      the last step whose losses it had written down.
    """
    from inset_jax.train import metrics

    process = subprocess.Popen(command, env=os.environ)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            saved = [int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()]
            last = max((row["step"] for row in metrics.read(run)), default=0)
            if saved and last > saved[0]:
                process.kill()
                process.wait()
                return last
    finally:
        process.kill()
    raise SystemExit(f"training ended by itself with status {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
