"""Every preset is valid, and a change of any of its values shows up in a diff of JSON.

After a change on purpose: `INSET_REWRITE=1 python -m pytest tests/core/test_presets.py`.
"""

import json
import os
import pathlib

import pytest

from inset_jax.core import overrides
from inset_jax.core.checks import check, check_autoencoder
from inset_jax.core.config import AutoencoderConfig, Config

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden_configs"
PRESETS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_equals_its_golden_json(name):
    is_autoencoder = name.endswith("_vae")
    kind = AutoencoderConfig if is_autoencoder else Config
    config = overrides.load(str(ROOT / "configs" / f"{name}.py"), kind)
    (check_autoencoder if is_autoencoder else check)(config)
    assert config.name == name
    text = json.dumps(overrides.to_dict(config), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("INSET_REWRITE"):
        path.write_text(text)
    assert path.exists(), f"no golden JSON of configs/{name}.py; see the head of this file"
    assert json.loads(text) == json.loads(path.read_text())


@pytest.mark.parametrize("name", PRESETS)
def test_preset_states_its_source_and_command(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    docstring = text.split('"""')[1]
    assert "python -m inset_jax." in docstring
    assert "Expected figure" in docstring
