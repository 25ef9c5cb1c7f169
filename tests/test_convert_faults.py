"""Faults and what the command prints: the table in docs/conversion.md, row by row.

Each fault is made, the command is run, and its first line on standard error, with SRC and DST for
the two folders, has to stand in the table beside its exit status.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil

import numpy as np
import pytest

from inset_jax import convert, generate
from inset_jax.checkpoint import streaming, to_bagel
from tests.checkpoint.folders import FOLDER, change, inward, write_tokenizer

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "conversion.md"
GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    target = tmp_path_factory.mktemp("faults") / "orbax"
    inward(FOLDER, target)
    return target


@pytest.fixture
def there(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "SRC")
    return tmp_path / "SRC", tmp_path / "DST"


def rows():
    """Returns the table: fault -> (printed line, exit status)."""
    found = {}
    for line in DOCS.read_text().splitlines():
        if row := re.fullmatch(r"\| (.*?) \| `(.*)` \| (\d+) \|", line):
            found[row[1]] = row[2].replace("\\|", "|"), int(row[3])
    return found


def told(fault, source, target, status, capsys):
    """Compares what was printed with the table."""
    line = capsys.readouterr().err.splitlines()[0]
    line = line.replace(str(source), "SRC").replace(str(target), "DST").removeprefix("error: ")
    expected, expected_status = rows().get(fault, ("", None))
    # the description holds the time of conversion, whose text is not always of one length
    both = [re.sub(r"(meta/metadata) has \d+ bytes of \d+", r"\1", x) for x in (line, expected)]
    assert both[0] == both[1], f"| {fault} | `{line}` | {status} |"
    assert status == expected_status, f"| {fault} | `{line}` | {status} |"


def cut_short(source, _):
    file = source / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def too_long(source, _):
    file = source / "ema.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")


def header_length(by):
    def spoil(source, _):
        file = source / "ema.safetensors"
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little") + by
        file.write_bytes(length.to_bytes(8, "little") + content[8:])

    return spoil


def flipped(source, _):
    file = source / "ema.safetensors"
    content = bytearray(file.read_bytes())
    (source / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")
    content[-1000] ^= 1
    file.write_bytes(content)


def whole_numbers(source, _):
    change(source, lambda found: found.update({"vae2llm.bias": np.zeros(64, np.int32)}))


def unlike(source, _):
    def spoil(found):
        found[GATE.replace("proj.", "projj.")] = found.pop(GATE)
        found["llm2vae.bias"] = np.zeros(63, np.float32)

    change(source, spoil)


def stale(source, _):
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, "max_latent_size": 64}))


def infinite(source, _):
    change(source, lambda found: found["vae2llm.bias"].__setitem__(slice(2), np.nan))


def other_tokenizer(source, _):
    write_tokenizer(source, (500, 7, 502, 503))


def without_autoencoder(source, _):
    (source / "ae.safetensors").unlink()


def taken(_, target):
    target.mkdir()
    (target / "notes.txt").touch()


def a_file(_, target):
    target.touch()


IN = {
    "file cut short by a byte": (cut_short, convert.DAMAGED),
    "file too long by a byte": (too_long, convert.DAMAGED),
    "header length too large by 8": (header_length(8), convert.DAMAGED),
    "header length of 2^40": (header_length(1 << 40), convert.DAMAGED),
    "a bit flipped, SHA-256 known": (flipped, convert.DAMAGED),
    "a tensor of whole numbers": (whole_numbers, convert.REFUSED),
    "tensors missing, unexpected, misshapen (all listed below)": (unlike, convert.REFUSED),
    "config of another size": (stale, convert.REFUSED),
    "numbers that are not finite (all listed below)": (infinite, convert.REFUSED),
    "tokenizer of another model": (other_tokenizer, convert.REFUSED),
    "no autoencoder": (without_autoencoder, convert.REFUSED),
    "destination not empty": (taken, convert.UNWRITABLE),
    "destination is a file": (a_file, convert.UNWRITABLE),
}


def test_a_destination_inside_the_source(there, whole, capsys):
    source, target = there
    before = sorted(source.rglob("*"))
    inside = str(source / "orbax")
    for words in (["to-orbax", str(source)], ["to-bagel", str(whole), "--side-files", str(source)]):
        status = convert.main([*words, inside, "--quiet"])
        assert status == convert.UNWRITABLE
        told("destination inside the source", source, target, status, capsys)
    assert sorted(source.rglob("*")) == before


@pytest.mark.parametrize("fault", IN)
def test_a_faulty_source_or_destination(fault, there, capsys):
    spoil, status = IN[fault]
    spoil(*there)
    assert convert.main(["to-orbax", *map(str, there), "--quiet"]) == status
    told(fault, *there, status, capsys)
    assert not (there[1] / "0").exists()


@pytest.fixture(params=[("to-orbax", "SRC"), ("to-bagel", "CHECKPOINT")], ids=lambda p: p[0])
def way(request, there, whole):
    """A direction: the command, and its source and target."""
    return request.param[0], there[0] if request.param[0] == "to-orbax" else whole, there[1]


def test_a_disk_with_too_little_room(way, monkeypatch, capsys):
    command, source, target = way
    real = os.statvfs(target.parent)
    few = os.statvfs_result([real[0], 4096, *real[2:4], 10, *real[5:]])  # ten free blocks
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    status = convert.main([command, str(source), str(target), "--quiet"])
    told(f"too little room, {command}", source, target, status, capsys)
    assert not list(target.glob("0*")) and not list(target.glob("*.safetensors"))


def test_a_disk_that_fills_up(way, capsys):
    """As a limit of file sizes makes it; a small file system does the same (test_faults)."""
    command, source, target = way
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        status = convert.main([command, str(source), str(target), "--quiet", "--jobs", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told(f"disk full or limit reached at work, {command}", source, target, status, capsys)
    assert convert.main(["inspect", str(target)]) == convert.REFUSED
    assert convert.main([command, str(source), str(target), "--quiet"]) == convert.DONE


def test_another_process_at_work(way, capsys):
    command, source, target = way
    interrupted(command, source, target)
    capsys.readouterr()
    with open(target / "unfinished" / "lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = convert.main([command, str(source), str(target), "--quiet"])
    told("another process writes there", source, target, status, capsys)


def interrupted(command, source, target):
    """Leaves an unfinished folder; returns the exit status."""

    def stop(*_):
        raise KeyboardInterrupt

    owner, name = (streaming, "_write") if command == "to-orbax" else (to_bagel, "_write_all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stop)
        return convert.main([command, str(source), str(target), "--quiet"])


def test_an_interrupted_command(way, capsys):
    command, source, target = way
    told("Ctrl-C", source, target, interrupted(command, source, target), capsys)
    other = ["--dtype", "bfloat16"]
    status = convert.main([command, str(source), str(target), "--quiet", *other])
    told("other options than the interrupted command had", source, target, status, capsys)


def test_every_reader_refuses_what_is_unfinished(way, whole, tmp_path, capsys):
    """In the words of the table, whichever command left it and whichever reads it."""
    command, source, target = way
    interrupted(command, source, target)
    capsys.readouterr()
    assert convert.main(["inspect", str(target)]) == convert.REFUSED
    assert "unfinished, 0 tensors are written and verified" in capsys.readouterr().out
    no = str(tmp_path / "no")
    for reader in (
        lambda: convert.main(["to-bagel", str(target), no]),
        lambda: convert.main(["verify", str(target), str(whole)]),
        lambda: convert.main(["verify", str(whole), str(target), "--activations"]),
        lambda: convert.main(["to-orbax", str(target), no]),
    ):
        status = reader()
        told("source is unfinished", target, tmp_path / "DST", status, capsys)
    shared = ["--checkpoint", str(target), "--prompt", "A cat", "--out", str(tmp_path / "x.png")]
    assert generate.main(shared) == 1
    assert rows()["source is unfinished"][0].replace("SRC", str(target)) in capsys.readouterr().err


def spoiled(how, name):
    def spoil(checkpoint):
        file = checkpoint / "0" / name
        content = file.read_bytes()
        file.write_bytes(how(content)) if how else file.unlink()

    return spoil


HEAD = "params/model.llm.head.kernel/c/0/0"
OUT = {
    "checkpoint with a flipped bit": spoiled(lambda c: c[:9] + bytes([c[9] ^ 1]) + c[10:], HEAD),
    "checkpoint with a file cut short": spoiled(lambda c: c[:-1], HEAD),
    "checkpoint with a file missing": spoiled(None, HEAD),
    "checkpoint with a damaged description": spoiled(lambda c: c[:-9], "meta/metadata"),
}


@pytest.mark.parametrize("fault", OUT)
def test_a_faulty_checkpoint(fault, whole, tmp_path, capsys):
    source = tmp_path / "SRC"
    shutil.copytree(whole, source)
    OUT[fault](source)
    status = convert.main(["to-bagel", str(source), str(tmp_path / "DST"), "--quiet"])
    told(fault, source, tmp_path / "DST", status, capsys)
    assert not list(tmp_path.glob("DST/*.safetensors"))


@pytest.mark.parametrize(
    "fault, flags",
    [
        ("weights that are not there", ["--params", "model"]),
        ("numbers that the dtype cannot hold (all listed below)", ["--dtype", "float16"]),
    ],
)
def test_a_checkpoint_that_cannot_be_what_is_asked(fault, flags, there, capsys):
    change(there[0], lambda found: found["vae2llm.bias"].__setitem__(0, 1e6))
    orbax = there[0].parent / "orbax"
    inward(there[0], orbax)
    status = convert.main(["to-bagel", str(orbax), str(there[1]), "--quiet", *flags])
    told(fault, orbax, there[1], status, capsys)


def test_a_table_without_rows_that_nobody_makes():
    here = pathlib.Path(__file__).read_text()
    for fault in rows():
        assert fault.removesuffix(", to-orbax").removesuffix(", to-bagel") in here, fault
