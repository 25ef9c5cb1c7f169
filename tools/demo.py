"""The demo: builds a small world of real pictures, trains a small model in it, draws, shows.

    python -m tools.demo --out out [--from-scratch]

It starts from the weights that are shipped, which draw first, or from random ones; training is
killed once on the way and goes on from its checkpoint. Everything lands in OUT: the records, the
run with its checkpoints, the drawings, and demo.html, a page to open in a browser.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from tools import outcome

ARTWORK = "assets/demo"
AUTOENCODER = "assets/demo/ae.safetensors"
TOKENIZER = "assets/demo/weights/tokenizer.json"
WEIGHTS = "assets/demo/weights"  # docs/demo.md says how they were trained
CONFIG = "configs/demo.py"
SEED = 0
# what is trained wants small steps
GOING_ON = {"peak_lr": 1e-3, "weight_decay": 0.1, "warmup_steps": 20}
STEPS = 200  # of going on


class Part(NamedTuple):
    """Records of one kind of scenes."""

    folder: str  # inside that of the demo
    scenes: int
    objects: tuple[float, ...]  # weights of scenes with one object, two, ...
    kinds: tuple[float, ...]  # and of engine.world.KINDS
    world: tuple[str, ...] = ()  # changes of engine.stage.WorldConfig, as in tools.draw_world


# Weights that are trained go on in the whole world of one to five objects.
WHOLE = (Part(".", 4000, (0.5, 1.0, 1.0, 0.5, 0.5), (0.94, 0.0, 0.0, 0.03, 0.03)),)
# From scratch an easier one, single objects first: what a picture shows is to be found before which
# of two pictures is meant, each place is said by itself, and an object has the size it always has
# (docs/demo.md).
EASIER = ("phrasings=1", "photographs=0", "turned=0", "reference_turn=0", "light=0", "counts=0")
EASIER += ("sizes=0", "filled=0.85,0.85", "shifted=0", "cut_off=0")
FROM_SCRATCH = (
    Part("one", 12000, (1.0,), (1.0,), EASIER),
    Part("two", 20000, (0.1, 0.9), (1.0,), EASIER),
)
ONE_STEPS, SCRATCH_STEPS = 400, 1400  # updates with single objects, and in all
# One sentence a pack, from scratch: attention costs the square of a pack. A run draws no longer
# sentences than it was trained with, so what goes on from the shipped weights keeps the preset's
# longest, in packs that are shared out as its scenes need them.
SHORT_PACKS = {
    "packs": 32,
    "max_example_tokens": 128,
    **{f"capacity.{name}": size for name, size in (("und", 64), ("gen", 64), ("vit", 32))},
    "capacity.cross_entropy": 32,
    "capacity.examples": 1,
}
WHOLE_PACKS = {"capacity.und": 208, "capacity.gen": 256, "capacity.examples": 6}
# What a killed run leaves in shared memory Python clears up by itself, with warnings that look bad.
QUIET = {"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}
DEVICES = 2  # that CPU cores train as, half of the packs on each


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument(
        "--scenes", type=int, default=0, help="training scenes of a kind; 0: enough"
    )
    parser.add_argument("--held-out", type=int, default=36, help="sentences to draw")
    parser.add_argument("--steps", type=int, default=0, help="updates; 0: some minutes")
    options = parser.parse_args(arguments)
    if options.held_out < 2:
        parser.error(
            "--held-out: at least 2, because one control takes another sentence's pictures"
        )
    return outcome.status(lambda: _show(options), failure=1)


def _show(options: argparse.Namespace) -> None:
    """The six parts, one after the other."""
    from inset_jax.core import overrides, simulated
    from inset_jax.engine import world_records
    from inset_jax.evaluate import table
    from tools import demo_page

    began = time.monotonic()
    folder = options.out / "demo"
    clear(folder)
    say(1, "the small world: scenes, sentences and pictures")
    parts = parts_of(options)
    drawn = [build_world(folder / part.folder, part, options.held_out) for part in parts][-1]
    prompts = world_records.write_prompts(folder / "held_out", drawn)
    say(2, "held-out sentences, as they are drawn before training")
    before = None
    if options.from_scratch:
        print("nothing to draw with: the weights are random")
    else:
        before = demo_page.draw_before(WEIGHTS, prompts, overrides.load(CONFIG).sample)
    say(3, f"training from {'random' if options.from_scratch else 'shipped'} weights, until killed")
    run, devices = folder / "run", devices_here()
    command = train_command(folder, options, devices)
    environment = os.environ | QUIET
    if devices > 1:
        environment |= simulated.several(devices, os.environ.get("XLA_FLAGS", ""))
    killed = run_until_checkpoint(command, run, environment)
    say(4, f"the same command again, after kill -9 at step {killed}")
    if status := subprocess.run(command, env=environment).returncode:
        raise ValueError(f"training ended with status {status}; what it said stands above")
    trained = time.monotonic() - began
    say(5, "the same sentences again, as written and under controls")
    results = demo_page.draw(run, prompts, before)
    figures = demo_page.measure(results, drawn)
    say(6, "the page")
    extras = demo_page.explore(str(run), drawn)
    times = {"training": trained, "everything": time.monotonic() - began}
    page = options.out / "demo.html"
    text = demo_page.render(run, results, figures, times, killed, extras)
    page.write_text(text, encoding="utf-8")
    print(table.text(demo_page.figures_table(figures)))
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {time.monotonic() - began:.0f} s in all")


def clear(folder: pathlib.Path) -> None:
    """Removes what an earlier run of this command left, and nothing else.

    Raises:
      ValueError: the folder holds something that this command did not write.
    """
    if not folder.exists():
        return
    ours = {part.folder for part in (*WHOLE, *FROM_SCRATCH)}
    ours |= {"records", "tokenizer.json", "held_out", "run"}
    if other := sorted({path.name for path in folder.iterdir()} - ours):
        raise ValueError(f"{folder}: holds {other[0]}, which no demo wrote; name another --out")
    print(f"{folder}: an earlier demo's, removed", flush=True)
    shutil.rmtree(folder)


def parts_of(options: argparse.Namespace) -> tuple[Part, ...]:
    parts = FROM_SCRATCH if options.from_scratch else WHOLE
    return tuple(part._replace(scenes=options.scenes or part.scenes) for part in parts)


def say(number: int, what: str) -> None:
    print(f"\n[{number}/6] {what}", flush=True)


def build_world(folder: pathlib.Path, part: Part, held_out: int) -> list:
    """Writes records of some scenes; returns held-out ones of several objects, to be drawn."""
    from inset_jax.core import overrides
    from inset_jax.data import text
    from inset_jax.engine import artwork, world_records

    config = overrides.load(CONFIG).model
    art = artwork.load(ARTWORK)
    world = world_records.config_of(part.objects, part.kinds, part.world)
    drawn = {
        "train": list(world_records.scenes(art, "train", SEED, part.scenes, world)),
        "validation": list(world_records.scenes(art, "validation", SEED, 4 * held_out, world)),
    }
    words = text.load(TOKENIZER, config.tokens, config.llm.vocab_size)
    world_records.write_world(folder, drawn, words, encoder(config))
    print(f"{part.scenes} training scenes, {len(drawn['validation'])} held out, in {folder}")
    whole = [scene for scene in drawn["validation"] if scene.kind == "image-interleaved"]
    return [scene for scene in whole if len(scene.things) > 1][:held_out]


def encoder(config):
    """The shipped autoencoder's first half."""
    from inset_jax.checkpoint import convert
    from inset_jax.train.moments import Encoder

    return Encoder(config.vae, convert.load_autoencoder(AUTOENCODER, config))


def devices_here() -> int:
    """How many devices training is to have: a CPU's cores, DEVICES at most; 1 leaves it to JAX.

    A model this small has operations too short for two threads: two cores as one device are as fast
    as one core, as two devices half as fast again (docs/lab_log.md).
    """
    import jax

    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(DEVICES, len(allowed)) if jax.default_backend() == "cpu" else 1


def train_command(folder: pathlib.Path, options: argparse.Namespace, devices: int = 1) -> list[str]:
    records = tuple(str(folder / part.folder / "records") for part in parts_of(options))
    steps = options.steps or (SCRATCH_STEPS if options.from_scratch else STEPS)
    flags = {
        "workdir": folder / "run",
        "config.data.train": records,
        "config.data.validation": records[-1:],
        "config.data.tokenizer": TOKENIZER,
        "config.run.steps": steps,
        "config.run.save_every": max(steps // 4, 1),
        "config.run.validate_every": max(steps // 2, 1),
    }
    if options.from_scratch:
        first = max(ONE_STEPS * steps // SCRATCH_STEPS, 1)
        flags["config.data.weights"] = (1.0, 0.0)
        flags["config.data.stages"] = ((first, "weights=(0.1, 0.9)"),)
        flags["config.run.autoencoder"] = AUTOENCODER
    else:
        flags["config.run.init_from"] = WEIGHTS
        flags |= {f"config.optimizer.{name}": value for name, value in GOING_ON.items()}
    if devices > 1:
        flags |= {"config.mesh.dcn": devices, "config.mesh.fsdp": 1}
    packs = SHORT_PACKS if options.from_scratch else WHOLE_PACKS
    flags |= {f"config.data.{name}": value for name, value in packs.items()}
    if steps < STEPS:
        flags |= {"config.optimizer.warmup_steps": 1, "config.run.validation_packs": 1}
    command = [sys.executable, "-m", "inset_jax.train", f"--config={CONFIG}"]
    return [*command, *(f"--{name}={value}" for name, value in flags.items())]


def run_until_checkpoint(command: list[str], run: pathlib.Path, environment: dict) -> int:
    """Starts training and kills it (SIGKILL) a little after its first checkpoint.

    Returns:
      the last step whose losses it had written down.
    """
    from inset_jax.train import metrics

    process = subprocess.Popen(command, env=environment)
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
    raise ValueError(
        f"training ended by itself with status {process.returncode}, before it could be killed: "
        "more --steps leave time for that; what it said stands above"
    )


if __name__ == "__main__":
    sys.exit(main())
