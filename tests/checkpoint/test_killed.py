"""kill -9 at many moments of a conversion, in both directions, and the same work once more.

A process of its own (this file as a script) imports everything once and forks for each moment: the
child ends itself by SIGKILL at the n-th call of the system that changes a file, a write half done.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.checkpoint.folders import FOLDER

CALLS = ("write", "pwrite", "replace", "rename", "fsync", "fdatasync", "posix_fallocate", "rmdir")
LEFT = re.compile("unfinished|partial|writing")
TENSORS, FILES = 287, 2  # of the golden model
IGNORED = (
    "meta/metadata",
    "digests.json",
    "_CHECKPOINT_METADATA",
    "inset_provenance.json",
)  # times


def count_calls(kill_at: int, written: list[str]) -> list[int]:
    """Counts the calls of the system, ends the process at one of them, notes written files."""
    calls = [0]

    def watched(name, real):
        def call(*args):
            calls[0] += 1
            if "write" in name:
                written.append(f"{name} {os.readlink(f'/proc/self/fd/{args[0]}')}")
            if calls[0] == kill_at:
                if "write" in name:
                    half = memoryview(args[1]).cast("B")
                    real(args[0], half[: len(half) // 2], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    return calls


def forked(work, kill_at=0):
    """Runs work in a child; returns its exit status and what it printed as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        written: list[str] = []
        really_write = os.write
        calls = count_calls(kill_at, written)
        report = work()
        text = json.dumps({"calls": calls[0], "written": written, **report})
        really_write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    return os.waitpid(child, 0)[1], json.loads(text or "{}")


def hashes(folder):
    """Returns the SHA-256 of every file that holds no time of day."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.as_posix().endswith(IGNORED)
    }


def journal(target):
    found = {}
    for path in sorted((target / "unfinished").glob("*.json")):
        found |= json.loads(path.read_text())
    return {part: entry for part, entry in found.items() if not part.startswith("file ")}


def redone(way, done, written):
    """How many parts of a journal were written once more."""
    if way == "in":
        ends = tuple(f"/params/{key}.writing" for files in done.values() for key, *_ in files)
        return sum(entry.endswith(ends) for entry in written) if ends else 0
    parts = sum(entry.startswith("pwrite") for entry in written)  # and a header a file
    return max(parts - FILES - (TENSORS - len(done)), 0)


def kill_often(way, source, root, count):
    """Kills `count` times, each time from the start; yields one report a time."""
    from inset_jax.checkpoint import bagel, convert, unfinished
    from tests.checkpoint.folders import inward, outward

    unfinished.FLUSH_SECONDS = 0.0  # every part enters the journal at once: many more moments
    convert.shapes(bagel.config_from_bagel(FOLDER))  # traced once, before the forks
    convert.logical_axes(bagel.config_from_bagel(FOLDER))
    move = {"in": inward, "out": outward}[way]
    target = root / "target"
    status, whole = forked(lambda: move(source, target))
    assert status == 0
    expected = hashes(target)
    last = whole["calls"]
    inner = [1 + round(i * (last - 1) / (count - 5)) for i in range(count - 4)]
    for moment in sorted({*inner, last - 1, last - 2, last - 4, last - 7}):
        shutil.rmtree(target)
        status, _ = forked(lambda: move(source, target), kill_at=moment)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
        marked = (target / unfinished.MARKER).exists()
        refused = False
        try:
            unfinished.refuse(target)
        except ValueError as error:
            refused = "is unfinished" in str(error)
        looks_whole = bool([*target.glob("ema.safetensors"), *target.glob("0/_CHECK*")])
        done = journal(target)
        status, again = forked(lambda: move(source, target))
        assert status == 0, moment
        yield {
            "moment": moment,
            "of": last,
            "marked": marked,
            "refused": refused,
            "looks_whole": looks_whole,
            "done": len(done),
            "resumed": again["resumed"],
            "redone": redone(way, done, again["written"]),
            "same": hashes(target) == expected,
            "left": [path.name for path in target.iterdir() if LEFT.search(path.name)],
        }


@pytest.mark.parametrize("way", ["in", "out"])
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_is_refused_and_goes_on(way, count, converted, tmp_path):
    source = FOLDER if way == "in" else converted
    own = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, way, str(source), str(tmp_path), str(count)]
    root = pathlib.Path(__file__).parents[2]
    ran = subprocess.run(
        command, cwd=root, env=own | {"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    reports = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(reports) >= count - 2
    for report in reports:
        assert report["same"] and not report["left"], report
        assert report["refused"] == report["marked"], report
        assert report["marked"] or not report["looks_whole"], report
        assert report["resumed"] >= report["done"] and report["redone"] == 0, report
    assert max(report["done"] for report in reports) == TENSORS


if __name__ == "__main__":
    for found in kill_often(sys.argv[1], *map(pathlib.Path, sys.argv[2:4]), int(sys.argv[4])):
        print(json.dumps(found), flush=True)
