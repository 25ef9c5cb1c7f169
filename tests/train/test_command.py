"""The command's front door: help, and what bad arguments get. Nothing here starts JAX."""

import pathlib
import subprocess
import sys
import time

import pytest

from inset_jax.core import overrides
from inset_jax.train import __main__ as command

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    whole = [sys.executable, "-m", "inset_jax.train", *arguments]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_lists_every_field_and_is_quick():
    began = time.monotonic()
    done = run("--help")
    assert time.monotonic() - began < 2
    assert done.returncode == 0
    assert "--config.optimizer.peak_lr=2.5e-05" in done.stdout
    assert "--workdir=" in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from inset_jax.train.__main__ import main; main(['train', '--help']); "
        "print([m for m in ('jax', 'flax', 'numpy', 'orbax', 'grain') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=FILE is missing"),
        ((f"--config={TINY}",), "--workdir=DIR is missing"),
        ((f"--config={TINY}", "--config.run.stepps=3"), "did you mean steps?"),
        ((f"--config={TINY}", "--workdir=gs://b/run"), "--workdir=gs://b/run: expected a folder"),
        (
            (f"--config={TINY}", "--workdir={}", "--coordinator=host:1", "--processes=2"),
            "--process is missing (or JAX_PROCESS_ID): a run of several processes",
        ),
        (
            (f"--config={TINY}", "--workdir={}", "--config.data.vae_size.max_side=512"),
            "needs 32 latent tokens a side, but model.latents.max_side is 16",
        ),
        ((f"--config={TINY}", "--workdir={}"), "data.train is empty"),
        (
            (f"--config={TINY}", "--workdir={}", "--config.data.train=none"),
            "data.tokenizer is empty",
        ),
        (
            (
                f"--config={TINY}",
                "--workdir={}",
                "--config.run.sample_every=1",
                "--preview=no:thing",
            ),
            "--preview=no:thing: No module named 'no'",
        ),
    ],
)
def test_bad_arguments_get_one_line_and_a_status(arguments, message, tmp_path, capsys):
    arguments = [argument.format(tmp_path / "work") for argument in arguments]
    assert command.main(["train", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told


def test_refused_arguments_leave_no_folder(tmp_path):
    work = tmp_path / "work"
    flags = [f"--config={TINY}", f"--workdir={work}", "--config.data.vae_size.max_side=512"]
    assert command.main(["train", *flags]) == 1
    assert not work.exists()


def test_second_start_says_what_changed_and_keeps_nothing_if_refused(tmp_path, capsys):
    work = tmp_path / "run"
    flags = [f"--config={TINY}", f"--workdir={work}"]
    assert command.main(["train", *flags]) == 1  # there is no data
    assert not (work / "config.json").exists()
    overrides.keep(overrides.load(str(TINY)), work / "config.json")
    before = (work / "config.json").read_text()
    for _ in range(2):
        capsys.readouterr()
        assert command.main(["train", *flags, "--config.run.steps=9"]) == 1
        told = capsys.readouterr().out
        assert "since the last start of this run: config.run.steps: 8 -> 9" in told
        assert "  config.run.steps: 8 -> 9" in told
    assert (work / "config.json").read_text() == before
