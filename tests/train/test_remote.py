"""Weights & Biases gets what the files get; a stand-in module takes it."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.train import metrics, remote


class Service:
    """What of the module is used; keeps all calls."""

    def __init__(self):
        self.calls = []
        self.Image = lambda pixels: ("image", pixels.shape)

    def init(self, **settings):
        self.calls.append(("init", settings))
        log = lambda values, step: self.calls.append(("log", step, values))
        return SimpleNamespace(log=log, finish=lambda: self.calls.append(("finish",)))


def test_service_gets_the_metrics_of_the_run(tmp_path, config, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    asked = edit(config, run__wandb_project="pictures")
    writer = metrics.Writer(tmp_path, 0, remote.WandB(asked, "abcd1234", tmp_path))
    writer.write(3, "train", {"loss": 0.5, "flow": np.float32("nan")})
    writer.picture(3, "preview", np.zeros((8, 9, 3), np.uint8))
    writer.close()
    (first, settings), *rest = service.calls
    assert first == "init"
    assert (settings["project"], settings["id"], settings["resume"]) == (
        "pictures",
        "abcd1234",
        "allow",
    )
    assert settings["config"]["model"]["llm"]["layers"] == config.model.llm.layers
    assert rest == [
        ("log", 3, {"train/loss": 0.5}),
        ("log", 3, {"preview": ("image", (8, 9, 3))}),
        ("finish",),
    ]
    (line,) = (tmp_path / metrics.JSONL).read_text().splitlines()
    assert json.loads(line) == {"step": 3, "phase": "train", "loss": 0.5}


def test_project_without_the_package_is_refused(tmp_path, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"run.wandb_project='p': the package wandb is not inst"):
        remote.WandB(edit(config, run__wandb_project="p"), "x", tmp_path)
