"""The whole model against the golden arrays with the TPU kernels, interpreted."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from inset_jax.kernels import flow_kernel
from inset_jax.kernels import interval_form as forms
from inset_jax.parity import networks, report, sampling, training

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = [path for path in report.files(GOLDEN) if path.stem in ("vit", "train_forward", "grads")]
SAMPLED = ("both_global", "stock_text_channel")  # two contexts, all three branches, both renorms


@pytest.fixture
def made(monkeypatch):
    """Sets the kernels for all replays; returns a list that gets the form of every attention."""
    compute = dataclasses.replace(networks.COMPUTE, attention="pallas", flow_loss="fused")
    for module in (networks, sampling, training):
        monkeypatch.setattr(module, "COMPUTE", compute)
    monkeypatch.setattr(forms, "DEFAULT", forms.Block(32, 128))
    monkeypatch.setattr(flow_kernel, "TOKENS", 32)
    found, make = [], forms.make
    monkeypatch.setattr(
        forms, "make", lambda *args, **kw: found.append(make(*args, **kw)) or found[-1]
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_arrays_are_met_with_the_kernels(path, made):
    golden, ours = report.replay(report.load(path))
    results = list(report.check(golden, ours))
    assert results and [report.line(r) for r in results if not r.passed] == []
    assert made


def only(golden: report.Golden, cases: tuple[str, ...]) -> report.Golden:
    """The golden arrays of sampling with some of its guidance cases."""
    stored = json.loads(golden.arrays["cases_json"].tobytes())
    kept = json.dumps({case: stored[case] for case in cases})
    others = tuple(f"{case}/" for case in stored if case not in cases)
    arrays = {n: golden.arrays[n] for n in golden.arrays if not n.startswith(others)}
    arrays["cases_json"] = np.frombuffer(kept.encode(), np.uint8)
    return golden._replace(arrays=arrays)


@pytest.mark.slow
def test_sampling_with_guidance_is_met_with_the_kernels(made):
    golden = only(report.load(GOLDEN / "tiny_a" / "generate.npz"), SAMPLED)
    golden, ours = report.replay(golden)
    results = list(report.check(golden, ours))
    assert {f"{case}/final_latent" for case in SAMPLED} <= {r.array for r in results}
    assert [report.line(r) for r in results if not r.passed] == []
    # contexts of several branches in a pack, and noisy queries over the keys that are kept
    assert len({(form.packs, form.rows, form.columns) for form in made}) > 1
