"""Every command of the README runs, and so does its Python.

A block of either carries a comment on the line above it:

    <!-- ci -->               .ci/run runs these very lines
    <!-- test: A => B | ... -->   this test runs them, A replaced by B (shorter, smaller)

The blocks run in order, in one folder that looks like a clone after `make demo` (shortened), with a
very small BAGEL-7B-MoT in it.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint.bagel import config_from_bagel
from inset_jax.data.text import make_small_tokenizer

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<kind>bash|python)\n(?P<lines>.*?)```", re.S
)
LINKED = ("assets", "configs", "inset_jax", "tests", "tools")


def blocks() -> list[tuple[str, str]]:
    found = []
    for match in BLOCK.finditer((ROOT / "README.md").read_text()):
        lines = match["lines"]
        if match["kind"] == "python":
            lines = f"python - <<'END'\n{lines}END\n"
        found.append((match["mark"] or "", lines))
    assert found
    return found


def shortened(mark: str, lines: str) -> str:
    """Applies the replacements of a `test:` comment; each must apply."""
    for change in filter(str.strip, mark.removeprefix("test:").split(" | ")):
        old, new = (side.strip() for side in change.split(" => "))
        assert old in lines, f"README: {old!r} is not in the block below its comment"
        lines = lines.replace(old, new)
    return lines


def bash(folder: pathlib.Path, lines: str) -> None:
    binaries = pathlib.Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_block_is_marked():
    for mark, lines in blocks():
        assert mark == "ci" or mark.startswith("test:"), f"README: nothing runs\n{lines}"


def test_what_ci_runs_is_what_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for mark, lines in blocks() if mark == "ci" for line in lines.splitlines()]
    assert sorted(commands) == ["make demo", "make test"]
    assert set(commands) <= set(ci)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder like a clone after `make demo`, with somebody's own data in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    bash(folder, "python -m tools.demo --scenes 64 --held-out 2 --steps 8")
    assert "<html" in (folder / "out" / "demo.html").read_text()
    for name, colour in (("cat", "orange"), ("bench", "brown")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    rows = []
    for n in range(8):  # eight pictures that are not alike
        small = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / f"{n}.png")
        row = {"text": "A [img:cat.png] on a [img:bench.png]", "target": f"{n}.png"}
        rows.append(row | {"split": "train" if n < 4 else "validation"})
    (folder / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    weights = folder / "BAGEL-7B-MoT"
    shutil.copytree(ROOT / "tests" / "golden" / "tiny_a" / "ckpt", weights)
    config = config_from_bagel(weights)
    words = make_small_tokenizer([row["text"]], config.llm.vocab_size, config.tokens)
    words.save(weights / "tokenizer.json")
    return folder


@pytest.mark.slow
def test_every_other_block_runs(clone):
    for mark, lines in blocks():
        if mark != "ci":
            bash(clone, shortened(mark, lines))
    with Image.open(clone / "out" / "mine.png") as picture:
        assert picture.size == (64, 64) and "prompt" in picture.info
    assert (clone / "runs" / "mine" / "report" / "report.png").exists()
    assert (clone / "runs" / "mine" / "pack" / "pack.html").exists()
