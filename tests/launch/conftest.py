"""Stand-ins for gcloud, kubectl and python, and launch scripts that run against them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SETTINGS = {
    "PROJECT": "some-project",
    "ZONE": "some-zone",
    "IMAGE": "registry.example/inset:1",
    "BUCKET": "some-bucket",
    "CHIP": "v5p",
    "TOPOLOGY": "2x2x2",  # 8 chips, 2 hosts
    "PAUSE": "0",
    "RESUBMIT": "2",
}


@pytest.fixture
def stood_in(tmp_path):
    """Returns a function: (script, answers, **settings) -> arguments of subprocess.run."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("gcloud", "kubectl", "python"):
        (binaries / name).write_text(
            (ROOT / "tests" / "launch" / "stand_in.py")
            .read_text()
            .replace("#!/usr/bin/env python3", f"#!{sys.executable}")
        )
        (binaries / name).chmod(0o755)

    def arguments(script, answers, *flags, **settings):
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        (tmp_path / "calls.jsonl").write_text("")
        own = {"STAND_IN": str(tmp_path), "LOGS": str(tmp_path / "logs")}
        path = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        return {
            "args": ["bash", str(LAUNCH / script), *flags],
            "env": os.environ | SETTINGS | own | path | settings,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    return arguments


@pytest.fixture
def cloud(stood_in, tmp_path):
    """Returns a function: (script, answers, **settings) -> (status, stdout, stderr, calls)."""

    def launch(script, answers, *flags, keep_preflight=False, **settings):
        calls = tmp_path / "calls.jsonl"
        done = subprocess.run(**stood_in(script, answers, *flags, **settings), timeout=60)
        told = [json.loads(line) for line in calls.read_text().splitlines()]
        if not keep_preflight:
            told = [call for call in told if "tools.preflight" not in call["words"]]
        return done.returncode, done.stdout, done.stderr, told

    return launch
