"""Starts a compile in a process of its own and reads what it leaves; ends it early if asked to.

libtpu writes the scheduled program and the plan of the main memory before its slow back end begins:
`fast` stops there. A program that does not fit is refused at the same point, with a report of what
would have lain in memory; that is a result like any other.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

from inset_jax.core import overrides
from inset_jax.core.config import Config
from inset_jax.preflight.chips import GIB, Slice

HEAP = re.compile(r"(?:Primary|Fallback) algorithm finished with size: (\d+)")
REQUIRED = re.compile(r"^Program hbm requirement ([\d.]+)([KMG]):", re.M)
REFUSED = re.compile(
    r"Ran out of memory in memory space hbm\. Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])"
)
ROW = re.compile(r"^\s+[\d.]+[KMG]iB\(\s*\d+%\);\s+([\d.]+)([KMG])iB;\s+\d+;\s+\d+; (.*)$")
REMATERIALISED = "nvoluntary full rematerialization"
SAID = re.compile(r"^((?:[\w.]*Error|LLVM ERROR): .*)$", re.M)  # why a compile ended
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# libtpu on flags that it does not trust on a chip
DISTRUST = re.compile(r"\] (.*(?:not supported|incorrect results|SDC).*)$", re.M)
LARGEST = 12  # rows of the compiler's report that are kept


class Found(NamedTuple):
    """What a compile left behind."""

    known: dict  # of child.py: mesh, bytes by part (those `beside` are no arguments), kernels
    memory: dict[str, int]  # of the finished compile; {} else
    heap: int | None  # bytes that the compiler planned for temporaries in the main memory
    required: int | None  # of the finished program: temporaries, code, scratch; not the arguments
    refused: dict | None  # {"used", "limit": bytes, "largest": [[bytes, what]]} if it does not fit
    hlo: str  # the scheduled program; "" if it was refused
    finished: bool
    rematerialised: int  # warnings that a whole array is gathered because two shardings do not meet
    warnings: list[str]  # of flags that libtpu does not trust on this chip
    seconds: dict[str, float]


def run(
    config: Config,
    slice_: Slice,
    folder: pathlib.Path,
    fast: bool = False,
    limit: float = 3600,
    program: tuple[str, ...] = ("step",),
) -> Found:
    """Compiles a program of `config` for `slice_`, with scratch files in an empty `folder`.

    Args:
      program: "step" of training, or one of `sampling.PROGRAMS`, with "int8" after it for such
        weights.

    Raises:
      ValueError: the step cannot be built or compiled, for another reason than memory; or it took
        more than `limit` seconds.
    """
    config = overrides.to_dict(config)
    request = {"config": config, "slice": slice_.name, "program": program}
    (folder / "request.json").write_text(json.dumps(request))
    dump = folder / "dump"
    dump.mkdir()
    began = time.perf_counter()
    with open(folder / "log", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "inset_jax.preflight.child", str(folder)],
            stdout=log,
            stderr=log,
            env=environment(slice_, dump if fast else None),
        )
        try:
            early = _wait(child, dump if fast else None, limit)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
    seconds = time.perf_counter() - began
    return _read(folder, early, child.returncode, seconds)


def environment(slice_: Slice, dump: pathlib.Path | None) -> dict[str, str]:
    """What libtpu reads when it is loaded: to compile without a TPU, and as the run would."""
    flags = list(slice_.chip.flags)
    if dump is not None:
        flags += [f"--xla_jf_dump_to={dump}", "--xla_jf_dump_hlo_text=true"]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program has no log
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "0",
        "TPU_STDERR_LOG_LEVEL": "0",
        "LIBTPU_INIT_ARGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join(filter(None, [_root(), os.environ.get("PYTHONPATH")])),
    }


def _root() -> str:
    return str(pathlib.Path(__file__).parents[2])


def _wait(child: subprocess.Popen, dump: pathlib.Path | None, limit: float) -> str:
    """Waits for the end, or for the scheduled program in `dump`; returns its text, or ""."""
    size, until = -1, time.perf_counter() + limit
    while child.poll() is None:
        if time.perf_counter() > until:
            raise ValueError(f"the compile was ended after --limit={limit:g} seconds: raise it")
        time.sleep(0.2)
        if dump is None:
            continue
        for path in dump.glob("*-TLP-hlo.txt"):
            # written at once, but not atomically
            now = path.stat().st_size
            if now and now == size:
                return path.read_text()
            size = now
    return ""


def _read(folder: pathlib.Path, early: str, status: int, seconds: float) -> Found:
    log = (folder / "log").read_text(errors="replace")
    known = _json(folder / "program.json")
    result = _json(folder / "result.json")
    refused, sizes = _refusal(log), HEAP.findall(log)
    required = REQUIRED.findall(log) if result else []
    if not (early or result or refused):
        words = SAID.findall(log)
        said = words[-1] if words else log[-2000:]
        if sizes:
            said += f" (temporaries of {int(sizes[-1]) / GIB:.2f} GiB a device had been planned)"
        raise ValueError(f"it does not compile (status {status}): {said}")
    times = {"all": seconds}
    if known:
        times["trace"] = known["trace_seconds"]
    if result:
        times["compile"] = result["compile_seconds"]
    hlo = early or ((folder / "program.hlo").read_text() if result else "")
    return Found(
        known=known or {},
        memory=result["memory"] if result else {},
        heap=int(sizes[-1]) if sizes else None,
        required=_size(*required[-1]) if required else None,
        refused=refused,
        hlo=hlo,
        finished=bool(result),
        rematerialised=log.count(REMATERIALISED),
        warnings=sorted(set(DISTRUST.findall(log))),
        seconds=times,
    )


def _refusal(log: str) -> dict | None:
    """Reads the compiler's report of a program that does not fit."""
    found = REFUSED.search(log)
    if not found:
        return None
    rows = []
    for line in log[found.end() :].splitlines():
        row = ROW.match(line)
        if row:
            rows.append([_size(row[1], row[2]), row[3][:200]])
        elif rows:
            break
    used, limit = _size(found[1], found[2]), _size(found[3], found[4])
    return {"used": used, "limit": limit, "largest": rows[:LARGEST]}


def _size(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _json(path: pathlib.Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None
