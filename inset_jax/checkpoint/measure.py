"""Memory and rate of conversions, measured on made-up weights of any size.

The rate is set beside what nobody can do without: copying the files, waiting until they are on the
disk, and computing the same hashes, one after the other, in the same run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from inset_jax.checkpoint import bagel, convert, names, to_bagel
from inset_jax.core.config import (
    LatentConfig,
    LlmConfig,
    ModelConfig,
    TokenConfig,
    VaeConfig,
    VitConfig,
)

MEMORY_BAR = 3 * 1024**3  # bytes; of a conversion of any size
RATE_BAR = 0.5  # of copying, syncing and hashing
GROWTH_BAR = 1.1  # peak memory at the largest size over that at the smallest
WAYS = ("to-orbax", "to-bagel")
BLOCK = 1 << 24
SAMPLE_SECONDS = 0.05
SMALL = LlmConfig(
    vocab_size=4096, model_dim=256, query_heads=4, kv_heads=2, head_dim=64, mlp_dim=512
)


class Run(NamedTuple):
    """One command that was watched."""

    seconds: float
    peak: int  # bytes of resident memory, as the kernel counted it
    curve: list[tuple[float, float]]  # seconds, resident memory in MB


def model(layers: int, is_small: bool = False) -> ModelConfig:
    """Returns a model with BAGEL's largest parameter and this many of its layers (0.93 GB each)."""
    llm = SMALL if is_small else LlmConfig()
    return ModelConfig(
        llm=dataclasses.replace(llm, layers=layers),
        vit=VitConfig(layers=2) if not is_small else VitConfig(96, 2, 4, 128, 14, 8),
        vae=VaeConfig(channels=32, multipliers=(1, 2), res_blocks=1),
        latents=LatentConfig() if not is_small else LatentConfig(max_side=8),
        connector_side=70 if not is_small else 8,
        tokens=TokenConfig() if not is_small else TokenConfig(0, 1, 2, 3),
    )


def synthetic(folder: pathlib.Path, config: ModelConfig, seed: int = 0) -> int:
    """Writes a BAGEL folder of random bfloat16 numbers; returns its bytes."""
    import ml_dtypes

    folder.mkdir(parents=True)
    for name, values in bagel.to_files(config).items():
        (folder / name).write_text(json.dumps(values))
    wanted = convert.shapes(config)
    links, _ = names.links(wanted)
    random = np.random.Generator(np.random.SFC64(seed))
    total = 0
    for part, file in (("model/", "ema.safetensors"), ("vae/", "ae.safetensors")):
        dtype = np.dtype(ml_dtypes.bfloat16)
        inside = {
            name: (names.source_shape(link, wanted[link.path]), dtype)
            for name, link in links.items()
            if link.path.startswith(part)
        }
        header = to_bagel.new_header(inside)
        size = sum(int(np.prod(shape)) * 2 for shape, _ in inside.values())
        with open(folder / file, "wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, size, BLOCK):
                bits = random.integers(0, 1 << 16, min(BLOCK, size - start) // 2, np.uint16)
                stream.write((bits & 0x83FF | 0x3C00).tobytes())  # +-[0.008, 0.03)
            stream.flush()
            os.fsync(stream.fileno())
        total += size
    return total


def watch(command: list[str]) -> Run:
    """Runs a command and samples its resident memory (Linux).

    Raises:
      ValueError: it fails.
    """
    began, curve = time.perf_counter(), []
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1 << 20
    )
    peak = 0
    while child.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        lines = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Vm"))
        if "VmRSS" in lines:
            peak = max(peak, int(lines["VmHWM"].split()[0]) * 1024)
            curve.append((time.perf_counter() - began, int(lines["VmRSS"].split()[0]) * 1024 / 1e6))
        time.sleep(SAMPLE_SECONDS)
    text = child.communicate()[0]
    if child.returncode:
        raise ValueError(f"{' '.join(command)} failed ({child.returncode}): {text[-500:]}")
    return Run(time.perf_counter() - began, peak, curve)


def plain_copy(source: pathlib.Path, target: pathlib.Path, hashers: Iterable[str]) -> float:
    """Copies a folder, waits for the disk, hashes source ("sha256") and copy ("crc32"), or the
    other way round; returns the seconds of all, one after the other."""
    forget(source)
    began = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    for folder, name in zip((source, target), hashers, strict=True):
        for path in files(folder):
            _hash(path, name)
    return time.perf_counter() - began


def _hash(path: pathlib.Path, name: str) -> None:
    digest, crc = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            if name == "sha256":
                digest.update(block)
            else:
                crc = zlib.crc32(block, crc)


def forget(folder: pathlib.Path) -> None:
    """Asks the system to drop a folder's files from its cache, so that every run reads the disk."""
    for path in files(folder):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def both_ways(
    scratch: pathlib.Path, layers: int, jobs: int = 4, is_small: bool = False
) -> dict[str, Any]:
    """Converts made-up weights there and back, beside plain copies; removes them again.

    Returns:
      figures of both directions, as JSON can hold them.
    """
    root = scratch / f"layers_{layers}"
    source, orbax, back, copy = (root / name for name in ("source", "orbax", "back", "copy"))
    command = [sys.executable, "-m", "inset_jax.convert"]
    more = ["--jobs", str(jobs), "--quiet"]
    try:
        size = synthetic(source, model(layers, is_small))
        hashes = {path.name: _sha(path) for path in source.glob("*.safetensors")}
        plain_in = plain_copy(source, copy, ("sha256", "crc32"))
        shutil.rmtree(copy)
        forget(source)
        inward = watch([*command, "to-orbax", str(source), str(orbax), *more])
        shutil.rmtree(source)  # room: never more than two copies at once, and one half written
        plain_out = plain_copy(orbax, copy, ("crc32", "sha256"))
        shutil.rmtree(copy)
        forget(orbax)
        outward = watch([*command, "to-bagel", str(orbax), str(back), *more])
        same = hashes == {path.name: _sha(path) for path in back.glob("*.safetensors")}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {
        "bytes": size,
        "same_bytes": same,
        "to-orbax": _figures(size, inward, plain_in),
        "to-bagel": _figures(size, outward, plain_out),
    }


def _figures(size: int, run: Run, plain: float) -> dict[str, Any]:
    return {
        "seconds": round(run.seconds, 1),
        "megabytes_per_second": round(size / run.seconds / 1e6, 1),
        "plain_seconds": round(plain, 1),
        "rate_over_plain": round(plain / run.seconds, 3),
        "peak_memory": run.peak,
        "curve": [(round(x, 2), round(y, 1)) for x, y in run.curve],
    }


def _sha(path: pathlib.Path) -> str:
    from inset_jax.checkpoint import hashes

    return hashes.sha256(path)


def line(result: dict[str, Any], way: str) -> str:
    """Returns one direction's figures in words."""
    found = result[way]
    return (
        f"{result['bytes'] / 1e9:.2f} GB in {found['seconds']} s, "
        f"{found['megabytes_per_second']} MB/s; copy, sync and hashes {found['plain_seconds']} s: "
        f"ratio {found['rate_over_plain']}; peak memory {found['peak_memory'] / 1024**2:.0f} MiB"
    )


def series(results: list[dict[str, Any]], way: str, make) -> list:
    """Returns the memory curves of one direction: make(name, points, is_noisy) for each size."""
    return [
        make(f"{result['bytes'] / 1e9:.1f} GB", result[way]["curve"], False) for result in results
    ]


def failures(results: list[dict[str, Any]]) -> list[str]:
    """Returns one phrase for each bar that results of several sizes do not reach."""
    found = []
    for result in results:
        size = f"{result['bytes'] / 1e9:.1f} GB"
        if not result["same_bytes"]:
            found.append(f"{size}: other bytes came back")
        for way in WAYS:
            if result[way]["peak_memory"] >= MEMORY_BAR:
                found.append(f"{size}, {way}: {result[way]['peak_memory'] / 1e9:.2f} GB of memory")
            if result[way]["rate_over_plain"] < RATE_BAR:
                found.append(f"{size}, {way}: {result[way]['rate_over_plain']} of a plain copy")
    for way in WAYS:
        first, last = results[0][way]["peak_memory"], results[-1][way]["peak_memory"]
        if last > GROWTH_BAR * first:
            found.append(f"{way}: memory grows from {first / 1e9:.2f} to {last / 1e9:.2f} GB")
    return found
