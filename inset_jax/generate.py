"""The command that draws and answers: `python -m inset_jax.generate --help`.

Everything heavy is imported after the flags are read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inset_jax.core import processes
from inset_jax.core.bar import Bar
from inset_jax.core.config import MeshConfig, SampleConfig

TASKS = ("image", "edit", "text")
INTERRUPTED = 130  # exit status after Ctrl-C, as shells count it
BATCH = 4  # prompts in one run, or as many as a mesh has packs if these are more
LINE_KEYS = dict(prompt=str, source=str, height=int, width=int, seed=int, out=str)
DESCRIPTION = """\
Draws a picture from a sentence with pictures in it, or answers it.

  python -m inset_jax.generate --checkpoint DIR \\
      --prompt "A [img:cat.png] sits on a [img:bench.png] in [img:park.jpg]" --out out.png

Write \\[img: for the characters themselves. Many prompts: --prompts FILE, one JSON object a line
with "prompt" and, if wanted, "source", "height", "width", "seed", "out"; paths are relative to it.

On several hosts, every host runs the same command (docs/pods.md); the first one writes.
"""


class Job(NamedTuple):
    """One prompt of a command, as typed."""

    name: str  # what messages call it
    prompt: str
    folder: str  # what its paths are relative to
    source: str | None
    height: int | None
    width: int | None
    seed: int
    out: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        with processes.joined(processes.place(vars(args), os.environ)) as group:
            run(args, group is None or group.index == 0)
    except (Exception, KeyboardInterrupt) as error:
        status = _told(error)
        if status is None:
            raise
        return status
    return 0


def _told(error: BaseException) -> int | None:
    """Says what ended the command; returns its exit status, None for what nobody expected."""
    if isinstance(error, KeyboardInterrupt):
        print("\ninterrupted; nothing unfinished was written", file=sys.stderr)
        return INTERRUPTED
    if not isinstance(error, ValueError):
        return None
    print(f"error: {error}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The flags; a setting that is not given is the checkpoint's own."""
    flags = argparse.ArgumentParser(
        prog="python -m inset_jax.generate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a training run or a BAGEL folder")
    which = flags.add_mutually_exclusive_group(required=True)
    which.add_argument("--prompt", help="a sentence; [img:PATH] puts a picture into it")
    which.add_argument("--prompts", metavar="FILE", help="JSONL, one prompt a line")
    add("--task", choices=TASKS, default="image", help="default: image")
    add("--source", metavar="PATH", help="--task edit: the picture to change")
    add("--out", metavar="PATH", help="PNG (text: a text file); with --prompts a folder")
    add("--seed", type=int, default=0, help="of the first picture; the next ones count up")
    add("--pictures", type=int, default=1, metavar="N", help="pictures of each prompt")
    add("--batch", type=int, metavar="N", help="prompts in one run (default 4, or a mesh's packs)")
    add("--height", type=int, metavar="PX", help="default: the source's, or the run's sample.side")
    add("--width", type=int, metavar="PX")

    flow = flags.add_argument_group("sampling (default: the checkpoint's, or the mode's preset)")
    both = lambda name, **how: flow.add_argument(
        *dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name, **how
    )
    both("num_timesteps", type=int, metavar="N", help="points in time; N are N - 1 evaluations")
    both("shift", type=float, help="moves the points towards noise")
    both("guidance", choices=("inset", "bagel", "none"), help="BAGEL folders default to bagel")
    both("alpha", type=float, help="scale of stage 1: inset: text; bagel: the last text")
    both("beta", type=float, help="scale of stage 2: inset: all conditions; bagel: images")
    both("interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide at LOW < t <= HIGH")
    both("renorm", choices=("none", "global", "channel", "text_channel"))
    both("renorm_min", type=float, help="smallest factor of renormalisation")

    words = flags.add_argument_group("words (--task text, --think)")
    words.add_argument("--think", action="store_true", help="write a plan before the result")
    words.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest word")
    words.add_argument("--max_tokens", "--max-tokens", type=int, default=1024)

    model = flags.add_argument_group("model")
    model.add_argument("--weights", choices=("ema", "params"), default="ema")
    model.add_argument("--dtype", choices=("float32", "bfloat16"), help="CPU: float32")
    model.add_argument(
        *("--weights_dtype", "--weights-dtype"),
        choices=("int8",),
        help="int8: half the memory, and what it costs in docs/int8.md (default: that of --dtype)",
    )
    model.add_argument("--tokenizer", default="", metavar="PATH", help="default: the checkpoint's")

    devices = flags.add_argument_group("devices")
    devices.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="devices along dcn, fsdp, context, tensor; -1: the rest (default: fsdp=-1). Weights "
        "are split over fsdp and tensor, prompts over dcn and fsdp, each prompt over the others",
    )
    devices.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; or auto")
    devices.add_argument("--processes", metavar="N", help="how many processes there are")
    devices.add_argument("--process", metavar="N", help="the number of this one, from 0")
    return flags


def run(args: argparse.Namespace, is_first: bool = True) -> None:
    """Does what the flags ask for.

    Args:
      is_first: whether this process is the one of several that writes.

    Raises:
      ValueError: bad input, naming the prompt, file or flag.
    """
    jobs = read_jobs(args)
    prompts = [to_prompt(job) for job in jobs]  # broken pictures are found before weights are read
    outs = [_out_path(args, jobs, number) for number in range(len(jobs))]
    check_sizes(args.checkpoint, prompts)
    given = given_settings(args)
    if is_first:
        make_folders(jobs, outs)
    mesh = read_mesh(args.mesh)

    from inset_jax.sample.api import Generator, Options

    generator = Generator.load(
        args.checkpoint,
        args.weights,
        args.dtype,
        args.tokenizer,
        mesh,
        args.weights_dtype == "int8",
    )
    options = Options(
        settings=_settings(args, generator, given),
        pictures=args.pictures,
        think=args.think,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
    )
    together = args.batch or max(BATCH, generator.packs)
    for start in range(0, len(jobs), together):
        rows = range(start, min(start + together, len(jobs)))
        some = [prompts[row] for row in rows]
        with contextlib.closing(Bar(is_first)) as bar:
            if args.task == "text":
                results: list[Any] = generator.answer_all(some, options, bar)
            else:
                results = generator.draw_all(some, options, bar)
        for row, result in zip(rows, results) if is_first else ():
            if args.task == "text":
                _write_answer(outs[row], result)
            else:
                _write_pictures(outs[row], result, jobs[row], args, generator.info)


def read_jobs(args: argparse.Namespace) -> list[Job]:
    """The prompts of a command line.

    Raises:
      ValueError: flags that contradict each other, or a bad line of the JSONL, by its number.
    """
    for name in ("pictures", "batch", "max_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: at least 1")
    shared = {name: getattr(args, name) for name in ("source", "height", "width", "seed")}
    if args.prompts is None:
        jobs = [Job("--prompt", args.prompt, "", out=None, **shared)]
    else:
        if args.source is not None:  # a flag's path is relative to where the command runs
            shared["source"] = os.path.abspath(args.source)
        jobs = _read_lines(Path(args.prompts), shared)
    for job in jobs:
        if (job.source is not None) != (args.task == "edit"):
            no = "takes no source; --task edit changes one"
            wants = "needs a source picture (--source)" if args.task == "edit" else no
            raise ValueError(f"{job.name}: --task {args.task} {wants}")
    return jobs


def _read_lines(file: Path, shared: dict[str, Any]) -> list[Job]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # sentences may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{file}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: not JSON: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            raise ValueError(f'{name}: expected an object with a text "prompt"')
        if unknown := sorted(set(values) - set(LINE_KEYS)):
            raise ValueError(f"{name}: unknown {', '.join(unknown)}; there are {[*LINE_KEYS]}")
        for key, kind in LINE_KEYS.items():
            if key in values and type(values[key]) is not kind:
                raise ValueError(f"{name}: {key} is {values[key]!r}, expected {kind.__name__}")
        values = {**shared, "out": None, **values}
        jobs.append(Job(name=name, folder=str(file.parent), **values))
    if not jobs:
        raise ValueError(f"{file}: no prompts in it")
    return jobs


def to_prompt(job: Job):
    """Reads the pictures of a job: a `sample.prompt.Prompt`.

    Raises:
      ValueError: a picture is missing or broken, or the sentence cannot be parsed.
    """
    from inset_jax.data import image
    from inset_jax.data.sentence import read_sentence
    from inset_jax.sample.prompt import Prompt

    try:
        pieces = read_sentence(job.prompt, job.folder)
        source = None if job.source is None else image.load(str(Path(job.folder, job.source)))
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error
    return Prompt(pieces, source, job.height, job.width, job.seed, job.name)


def check_sizes(checkpoint: str, prompts: Sequence) -> None:
    """Refuses impossible sizes before any weight is read."""
    from inset_jax.checkpoint.load import read_config
    from inset_jax.sample.prompt import check_side

    model = read_config(checkpoint)
    for prompt in prompts:
        for what in ("height", "width"):
            if getattr(prompt, what) is not None:
                check_side(prompt.name, what, getattr(prompt, what), model)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that the flags name, checked before any weight is read."""
    from inset_jax.sample import guidance

    names = [field.name for field in dataclasses.fields(SampleConfig)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if "interval" in given:
        given["interval"] = tuple(given["interval"])
    for scale in ("alpha", "beta"):
        if scale in given:  # what is asked for holds for sentences without pictures too
            given[f"text_only_{scale}"] = given[scale]
    guidance.check(dataclasses.replace(SampleConfig(), **given))
    return given


def read_mesh(text: str | None) -> MeshConfig | None:
    """Reads --mesh, such as "fsdp=4,tensor=2"; axes that are not named have one device.

    Raises:
      ValueError: no such axis, or no number.
    """
    if text is None:
        return None
    axes = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes = dict.fromkeys(axes, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in axes or not size.removeprefix("-").isdigit():
            raise ValueError(f"--mesh {text}: expected AXIS=N,... with AXIS of {', '.join(axes)}")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def _settings(args: argparse.Namespace, generator, given: dict[str, Any]) -> SampleConfig | None:
    if args.task == "text":
        return None
    return dataclasses.replace(generator.settings(args.guidance or "", args.task), **given)


def _out_path(args: argparse.Namespace, jobs: Sequence[Job], number: int) -> Path | None:
    """Where a job's result goes; None prints an answer."""
    suffix = ".txt" if args.task == "text" else ".png"
    if args.prompts is None:
        default = None if args.task == "text" else "out.png"
        name = args.out or default
        path = None if name is None else Path(name)
    elif args.out is None and args.task == "text":
        path = None
    else:
        path = Path(args.out or "out", jobs[number].out or f"{number:04d}{suffix}")
    if path is not None and path.suffix.lower() != suffix and suffix == ".png":
        raise ValueError(f"{path}: pictures are written as PNG; end the name in .png")
    return path


def make_folders(jobs: Sequence[Job], outs: Sequence[Path | None]) -> None:
    """Makes the folders of all results: what could not be written is refused before it is drawn.

    Raises:
      ValueError: a folder cannot be made, or two prompts would write the same file.
    """
    writers: dict[Path, str] = {}
    for job, path in zip(jobs, outs):
        if path is None:
            continue
        if path in writers:
            raise ValueError(f"{job.name}: its result would replace {writers[path]}'s, {path}")
        writers[path] = job.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{path}: its folder cannot be made: {error.strerror}") from error


def _write_answer(path: Path | None, answer: str) -> None:
    if path is None:
        print(answer)
        return
    _whole(path, lambda partial: partial.write_text(answer + "\n", encoding="utf-8"))


def _write_pictures(path: Path, drawn, job: Job, args: argparse.Namespace, info) -> None:
    """Writes one prompt's pictures as PNG with everything that made them."""
    from PIL.PngImagePlugin import PngInfo

    for number, (picture, seed) in enumerate(zip(drawn.pictures, drawn.seeds)):
        settings = {
            "task": args.task,
            **dataclasses.asdict(drawn.settings),
            "height": picture.height,
            "width": picture.width,
            "weights": info.get("weights"),
            "step": info.get("step"),
            "source": job.source,
        }
        facts = PngInfo()
        for key, value in {
            "prompt": job.prompt,
            "settings": json.dumps(settings),
            "checkpoint": str(info["path"]),
            "seed": str(seed),
            "evaluations": str(drawn.evaluations),
            **({"plan": drawn.plan} if drawn.plan else {}),
        }.items():
            facts.add_text(key, value)
        several = len(drawn.pictures) > 1
        file = path.with_stem(f"{path.stem}-{number}") if several else path
        _whole(file, lambda partial, p=picture, f=facts: p.save(partial, "PNG", pnginfo=f))
        print(f"{file}  seed {seed}, {drawn.evaluations} evaluations", file=sys.stderr)


def _whole(path: Path, write) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
