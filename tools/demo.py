"""The demo: builds a small world of real pictures, trains a small model in it, draws, shows.

    python -m tools.demo --out out [--from-scratch]

It starts from the weights that are shipped, or from random ones, and training is killed once on the
way and goes on from its checkpoint. Everything lands in OUT: the records, the run with its
checkpoints, the drawings, and demo.html, a page to open in a browser.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

from tools import outcome

ARTWORK = "assets/demo"
AUTOENCODER = "assets/demo/ae.safetensors"
TOKENIZER = "assets/demo/weights/tokenizer.json"
WEIGHTS = "assets/demo/weights"  # docs/demo.md says how they were trained
CONFIG = "configs/demo.py"
SEED = 0
OBJECTS = (1.0, 1.0)  # weights of scenes with one object and with two
KINDS = (0.94, 0.0, 0.0, 0.03, 0.03)  # and of engine.world.KINDS
GOING_ON = {"peak_lr": 2e-3, "warmup_steps": 20}  # weights that are trained want small steps
STEPS = 200  # of going on; from scratch the config says how many
# From scratch, one sentence a pack: attention costs the square of a pack.
SHORT_PACKS = {
    "packs": 32,
    "max_example_tokens": 128,
    **{f"capacity.{name}": size for name, size in (("und", 64), ("gen", 64), ("vit", 32))},
    "capacity.cross_entropy": 32,
    "capacity.examples": 1,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument("--scenes", type=int, default=0, help="training scenes; 0: enough")
    parser.add_argument("--held-out", type=int, default=48, help="sentences to draw")
    parser.add_argument("--steps", type=int, default=0, help="updates; 0: some minutes")
    options = parser.parse_args(arguments)
    return outcome.status(lambda: _show(options), failure=1)


def _show(options: argparse.Namespace) -> None:
    """The five parts, one after the other."""
    began = time.monotonic()
    folder = options.out / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    say(1, "the small world: scenes, sentences and pictures")
    scenes = options.scenes or (24000 if options.from_scratch else 4000)
    drawn = build_world(folder, scenes, options.held_out)
    say(2, f"training from {'random' if options.from_scratch else 'shipped'} weights, until killed")
    run, command = folder / "run", train_command(folder, options)
    killed = run_until_checkpoint(command, run)
    say(3, f"the same command again, after kill -9 at step {killed}")
    subprocess.run(command, check=True)
    trained = time.monotonic() - began
    say(4, "held-out sentences, as written and under controls")
    from tools import demo_page

    results = demo_page.draw(run, folder / "held_out" / "prompts.jsonl")
    figures = demo_page.measure(results, drawn)
    say(5, "the page")
    extras = demo_page.explore(str(run), drawn)
    times = {"training": trained, "everything": time.monotonic() - began}
    page = options.out / "demo.html"
    text = demo_page.render(run, results, figures, times, killed, extras)
    page.write_text(text, encoding="utf-8")
    for row in demo_page.figures_table(figures):
        print("".join(f"{cell:>24}" for cell in row))
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {time.monotonic() - began:.0f} s in all")


def say(number: int, what: str) -> None:
    print(f"\n[{number}/5] {what}", flush=True)


def build_world(folder: pathlib.Path, scenes: int, held_out: int) -> list:
    """Writes records and prompts; returns the scenes behind the prompts."""
    from inset_jax.core import overrides
    from inset_jax.data import text
    from inset_jax.engine import artwork, world_records

    config = overrides.load(CONFIG).model
    art = artwork.load(ARTWORK)
    world = world_records.config_of(OBJECTS, KINDS)
    drawn = {
        "train": list(world_records.scenes(art, "train", SEED, scenes, world)),
        "validation": list(world_records.scenes(art, "validation", SEED, 4 * held_out, world)),
    }
    words = text.load(TOKENIZER, config.tokens, config.llm.vocab_size)
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


def train_command(folder: pathlib.Path, options: argparse.Namespace) -> list[str]:
    records = f"('{folder / 'records'}',)"
    flags = {
        "workdir": folder / "run",
        "config.data.train": records,
        "config.data.validation": records,
        "config.data.tokenizer": TOKENIZER,
    }
    steps = options.steps
    if options.from_scratch:
        flags["config.run.autoencoder"] = AUTOENCODER
        flags |= {f"config.data.{name}": value for name, value in SHORT_PACKS.items()}
    else:
        steps = steps or STEPS
        flags["config.run.init_from"] = WEIGHTS
        flags |= {f"config.optimizer.{name}": value for name, value in GOING_ON.items()}
    if steps:
        short = {"steps": steps, "save_every": max(steps // 4, 1), "validate_every": steps // 2}
        flags |= {f"config.run.{name}": value for name, value in short.items()}
    if steps and steps < STEPS:
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
