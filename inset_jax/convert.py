"""The command that brings weights in and out: `python -m tools.convert_weights --help`.

Everything heavy is imported after the flags are read.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

DONE, DIFFERENT, USAGE, REFUSED, DAMAGED, UNWRITABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
LISTED = 20  # tensors that verify names in words
DTYPES = ("keep", "float32", "bfloat16", "float16")
DESCRIPTION = """\
Converts weights between BAGEL's PyTorch folders and checkpoints of this project, exactly.

  to-orbax  SRC DST   a BAGEL folder into a checkpoint (DST: a folder, or a URL as gs://bucket/name)
  to-bagel  SRC DST   a checkpoint into a BAGEL folder
  init --llm QWEN2.5 --vit SIGLIP --vae AE DST     a new model from BAGEL's ancestors
  inspect   PATH      what a folder or checkpoint is, and where it comes from
  verify    A B       two of them, tensor by tensor
  verify    A [B] --activations [GOLDEN]           what they compute, too

An interrupted conversion leaves a folder that every reader refuses; the same command finishes it.
"""
EPILOG = """\
exit status: 0 done; 1 verify found a difference; 2 wrong usage; 3 the source cannot be converted
(names, shapes, numbers that are not finite, no model there or an unfinished one); 4 the source is
damaged; 5 the destination cannot be written; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes are computed, and no accelerator needed
    from inset_jax.checkpoint import errors
    from inset_jax.core.host import keep_freed_memory

    keep_freed_memory()  # blocks come and go in few sizes: half of the system's time is theirs
    try:
        return COMMANDS[args.command](args)
    except errors.Damaged as error:
        return _fail(args, error, DAMAGED)
    except errors.Unwritable as error:
        return _fail(args, error, UNWRITABLE)
    except (ValueError, OSError) as error:
        return _fail(args, error, REFUSED)
    except KeyboardInterrupt:
        return _fail(args, "interrupted; the same command goes on from here", INTERRUPTED)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="inset-convert",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.add_argument("--json", action="store_true", help="one JSON object on standard output")
        return made

    inward = command("to-orbax", "a BAGEL folder into a checkpoint")
    inward.add_argument("source", metavar="SRC", help="folder with ema.safetensors, ae.safetensors")
    _add_writing(inward)
    _add_params(inward)
    _add_cut(inward)
    _add_names(inward)

    outward = command("to-bagel", "a checkpoint into a BAGEL folder")
    outward.add_argument("source", metavar="SRC", help="a run's folder, a checkpoint or a step")
    _add_writing(outward)
    _add_params(outward)
    outward.add_argument(
        "--side-files", metavar="FOLDER", help="BAGEL folder whose configs and tokenizer to copy"
    )

    start = command("init", "a new model from Qwen2.5, SigLIP and an autoencoder")
    _add_parts(start)
    _add_writing(start)
    _add_cut(start)

    look = command("inspect", "what a folder or checkpoint is, and where it comes from")
    look.add_argument("path", metavar="PATH")

    check = command("verify", "two models tensor by tensor, in either form")
    check.add_argument("a", metavar="A", help="a BAGEL folder or a checkpoint")
    check.add_argument("b", metavar="B", nargs="?", help="the other")
    check.add_argument("--jobs", type=int, default=4, metavar="N", help="workers (default 4)")
    check.add_argument(
        "--activations",
        metavar="GOLDEN",
        nargs="?",
        const="",
        help="run a fixed input, too: A against the arrays of a golden folder, or, without one, A "
        "against B (loads each model as a whole)",
    )
    _add_params(check)
    return flags


def _add_names(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--rename",
        dest="renames",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="call a tensor otherwise; a * stands for the same text in both; may be repeated",
    )
    flags.add_argument(
        "--allow-missing",
        metavar="PATTERN",
        action="append",
        default=[],
        help="BAGEL names (with *) that may be missing and are filled as at BAGEL's start of "
        "training; may be repeated",
    )
    flags.add_argument("--seed", type=int, default=0, help="of what --allow-missing fills in")


def _add_parts(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--llm", required=True, type=pathlib.Path, metavar="QWEN2.5_FOLDER")
    flags.add_argument("--vit", required=True, type=pathlib.Path, metavar="SIGLIP_FOLDER")
    flags.add_argument("--vae", required=True, type=pathlib.Path, metavar="AE_FILE")
    side = lambda name, size, words: flags.add_argument(
        f"--{name}-side", type=int, default=size, metavar="N", help=f"{words} (default {size})"
    )
    side("vit", 70, "rows of the ViT's position table, interpolated where it has others")
    side("connector", 70, "rows of the table after the connector")
    side("latent", 64, "rows of the table of latent tokens")
    flags.add_argument("--seed", type=int, default=0, help="of the layers that are new")


def _add_writing(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument
    add("target", metavar="DST", help="must be empty, or left by the same command")
    add("--dtype", choices=DTYPES, default="keep", help="of the model; the VAE's stays (keep)")
    add("--jobs", type=int, default=4, metavar="N", help="workers of about 0.2 GB (default 4)")
    add("--dry-run", action="store_true", help="check names and shapes, write nothing")
    add("--quiet", action="store_true", help="no progress")


def _add_params(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--params",
        choices=("ema", "model"),
        help="which weights (default: ema where there are any)",
    )


def _add_cut(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        default="fsdp=64,tensor=4",
        help="largest mesh whose devices are to read no byte in vain (default fsdp=64,tensor=4)",
    )


def _to_orbax(args: argparse.Namespace) -> int:
    from inset_jax.checkpoint import to_orbax
    from inset_jax.checkpoint.plan import Options

    options = Options(
        dtype=args.dtype,
        weights=args.params,
        renames=tuple(args.renames),
        allow_missing=tuple(args.allow_missing),
        seed=args.seed,
        mesh=_mesh(args.mesh),
    )
    return _tell(args, to_orbax.convert(args.source, args.target, options, _manner(args)))


def _to_bagel(args: argparse.Namespace) -> int:
    from inset_jax.checkpoint import to_bagel

    options = to_bagel.Options(args.dtype, args.params, args.side_files)
    return _tell(args, to_bagel.export(args.source, args.target, options, _manner(args)))


def _init(args: argparse.Namespace) -> int:
    from inset_jax.checkpoint.ancestors import Ancestors, init
    from inset_jax.checkpoint.plan import Options

    sides = args.vit_side, args.connector_side, args.latent_side
    if min(sides) < 1:
        raise ValueError(f"sides {sides}: each is at least 1")
    ancestors = Ancestors(args.llm, args.vit, args.vae, *sides)
    options = Options(dtype=args.dtype, seed=args.seed, mesh=_mesh(args.mesh))
    return _tell(args, init(ancestors, args.target, options, _manner(args)))


def _inspect(args: argparse.Namespace) -> int:
    from inset_jax.checkpoint import describe

    found = describe.describe(args.path)
    print(json.dumps(found, indent=1) if args.json else describe.text(found))
    return REFUSED if found["kind"] == "unfinished" else DONE


def _verify(args: argparse.Namespace) -> int:
    if args.b is None and not args.activations:
        raise ValueError("verify: name a second model, or a golden folder after --activations")
    report: dict[str, Any] = {"command": "verify", "a": args.a, "b": args.b}
    if args.b is not None:
        report |= _compare(args)
    if args.activations is not None:
        from inset_jax.parity import activations

        if args.activations:
            rows = activations.against_golden(args.a, args.activations, args.params)
        else:
            rows = activations.of_two(args.a, args.b, args.params)
        report["activations"] = activations.told(rows, as_json=args.json)
    failed = report.get("different") or report.get("activations", {}).get("failed")
    if args.json:
        print(json.dumps(report, indent=1))
    return DIFFERENT if failed else DONE


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from inset_jax.checkpoint import verify
    from inset_jax.checkpoint.progress import Progress

    a, b = (verify.open_model(path, args.params) for path in (args.a, args.b))
    progress = Progress("comparing", sum(a[name].bytes for name in a), args.json)
    summary = verify.summary(list(verify.compare(a, b, progress, max(args.jobs, 1))))
    progress.close()
    if not args.json:
        different = summary["different"]
        for result in different[:LISTED]:
            apart = result["largest"]
            largest = "" if apart is None else f", largest difference {apart:.3g}"
            print(f"{result['name']}: {result['found']}{largest}")
        if len(different) > LISTED:
            print(f"and {len(different) - LISTED} more (--json lists all)")
        print(
            f"{summary['equal']} of {summary['tensors']} tensors are equal in shape, dtype and "
            f"bytes; largest difference {summary['largest_difference']:.3g}"
        )
    return summary


def _manner(args: argparse.Namespace):
    from inset_jax.checkpoint.progress import Progress
    from inset_jax.checkpoint.to_orbax import Manner

    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1")
    progress = lambda what, total: Progress(what, total, args.json, args.quiet)
    return Manner(args.jobs, args.dry_run, progress)


def _mesh(text: str) -> tuple[tuple[str, int], ...]:
    from inset_jax.core.mesh import AXES

    found = {}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if axis not in AXES or not equals or not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh {text}: expected sizes of {', '.join(AXES)}, as fsdp=64")
        found[axis] = int(size)
    return tuple(sorted(found.items()))


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> int:
    """Prints what a conversion has done."""
    from inset_jax.checkpoint import describe
    from inset_jax.checkpoint.progress import clock, size

    if args.json:
        print(json.dumps(report, indent=1))
        return DONE
    verb = "would write" if args.dry_run else "wrote"
    print(f"{verb} {report['tensors']} tensors, {size(report['bytes'])}, to {report['target']}")
    for line in describe.notes(report):
        print(f"  {line}")
    for file in report.get("not_converted", []):
        print(f"  not converted: {file}")
    if report.get("resumed"):
        print(f"  {report['resumed']} parts were there already")
    for file, digest in report.get("sha256", {}).items():
        print(f"  sha256 {digest}  {file}")
    if "seconds" in report:
        rate = report["bytes_per_second"]
        print(f"  {clock(report['seconds'])} at {size(rate)}/s, read back and compared")
    return DONE


def _fail(args: argparse.Namespace, error: Exception | str, status: int) -> int:
    if args.json:
        tensors = getattr(error, "tensors", {})  # of errors.Unlike: all names
        print(json.dumps({"error": str(error), "status": status, **tensors}))
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


COMMANDS = {
    "to-orbax": _to_orbax,
    "to-bagel": _to_bagel,
    "init": _init,
    "inspect": _inspect,
    "verify": _verify,
}

if __name__ == "__main__":
    sys.exit(main())
