"""The way from a command line to the frozen config, and what is refused on it."""

import json
import pathlib
import subprocess
import sys

import pytest

from inset_jax.core import overrides
from inset_jax.core.config import Config, DataConfig, edit

FILE = """
from inset_jax.core.config import Config
from inset_jax.core.overrides import to_config_dict

def get_config():
    return to_config_dict(Config())
"""


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    return str(path)


def parse(file: str, *arguments: str) -> overrides.Command:
    return overrides.parse(["train", f"--config={file}", *arguments], {"workdir": "a folder"})


def refusal(file: str, *arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse(file, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_config_survives_config_dict_and_json():
    config = edit(Config(), data__train=("a", "b"), sample__interval=(0.25, 1.0))
    assert overrides.from_config_dict(overrides.to_config_dict(config)) == config
    assert overrides.from_dict(json.loads(json.dumps(overrides.to_dict(config)))) == config


def test_an_edit_inside_a_group_that_is_replaced_starts_from_the_new_group():
    config = edit(Config(), data=DataConfig(packs=3), data__workers=2)
    assert (config.data.packs, config.data.workers) == (3, 2)


def test_field_absent_from_an_older_file_takes_its_default():
    values = overrides.to_dict(Config())
    del values["run"]["keep"]
    assert overrides.from_dict(values) == Config()


def test_locked_config_dict_refuses_a_typo():
    with pytest.raises(AttributeError):
        overrides.to_config_dict(Config()).optimizer.peek_lr = 1.0


def test_overrides_reach_the_config_and_the_difference_is_printable(file):
    command = parse(
        file,
        "--config.optimizer.peak_lr=1",
        "--config.run.steps",
        "12",
        "--config.data.train=('a','b')",
        "--config.model.null_token",
        "--workdir=w",
    )
    assert overrides.diff(command.config, command.preset) == [
        "config.model.null_token: False -> True",
        "config.data.train: () -> ('a', 'b')",
        "config.optimizer.peak_lr: 2.5e-05 -> 1.0",
        "config.run.steps: 15000 -> 12",
    ]
    assert command.options == {"workdir": "w"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.optimizer.peek_lr=3",
            "config.optimizer.peek_lr: no such field; did you mean peak_lr?",
        ),
        ("--config.steps=3", "config.steps: no such field; did you mean config.run.steps?"),
        ("--config.zzz=3", "config.zzz: no such field"),
        ("--config.optimizer.peak_lr=fast", "found 'fast', expected float"),
        ("--config.run.steps=1.5", "config.run.steps: found '1.5', expected int"),
        ("--config.model.null_token=3", "config.model.null_token: found '3', expected bool"),
        ("--config.model.vae.multipliers=(1,2.5)", "multipliers[1]: found 2.5, expected int"),
        ("--config.sample.interval=(0,1,2)", "found (0, 1, 2), expected tuple[float, float]"),
        ("--config.run=3", "config.run is a group of fields (steps, seed, "),
        ("--wokdir=3", "--wokdir: no such flag; did you mean --workdir?"),
        ("extra", "'extra': not expected"),
    ],
)
def test_bad_flag_is_refused_in_one_line(file, argument, message):
    assert message in refusal(file, argument)


def test_missing_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--config=FILE is missing"):
        overrides.parse(["train"], {})
    assert "there is no such file" in refusal(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no get_config"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(:", "line 1: SyntaxError"),
    ],
)
def test_broken_config_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert message in refusal(str(path))


def test_variant_imports_its_parent_from_any_working_directory(tmp_path):
    root = pathlib.Path(overrides.__file__).parents[2]
    code = "import sys; from inset_jax.core.overrides import load; print(load(sys.argv[1]).name)"
    command = [sys.executable, "-c", code, str(root / "configs" / "inset_7b.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    # PYTHONPATH holds the package as an installation would; configs/ is found beside the file
    assert done.stdout.strip() == "inset_7b", done.stderr


def test_ctrl_c_before_the_work_listens_is_a_status_without_a_trace(capsys):
    def work(argv):
        raise KeyboardInterrupt

    assert overrides.status(["train"], str, work) == 130
    assert capsys.readouterr().err == "interrupted\n"
