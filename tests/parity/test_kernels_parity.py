"""The whole model against the golden arrays with the TPU kernels, interpreted."""

import dataclasses
from pathlib import Path

import pytest

from inset_jax.kernels import flow_kernel
from inset_jax.kernels import interval_form as forms
from inset_jax.parity import networks, report, training

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = [path for path in report.files(GOLDEN) if path.stem in ("vit", "train_forward", "grads")]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_arrays_are_met_with_the_kernels(path, monkeypatch):
    compute = dataclasses.replace(networks.COMPUTE, attention="pallas", flow_loss="fused")
    for module in (networks, training):
        monkeypatch.setattr(module, "COMPUTE", compute)
    monkeypatch.setattr(forms, "DEFAULT", forms.Block(32, 128))
    monkeypatch.setattr(flow_kernel, "TOKENS", 32)
    golden, ours = report.replay(report.load(path))
    results = list(report.check(golden, ours))
    assert results and [report.line(r) for r in results if not r.passed] == []
