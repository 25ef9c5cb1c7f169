"""Curricula: data settings that change at given steps.

`data.stages` holds (step, settings) in rising order; the settings of a stage add to those before:

    data.stages = ((10000, "vit_size.max_side=980, capacity.und=17408"), (15000, "weights=(1, 3)"))

The number of the update is the only state: which stage it belongs to follows from it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from inset_jax.core import checks, overrides
from inset_jax.core.config import Config, DataConfig, edit

# what may change on the way: the mix, resolutions, capacities and dropout
CHANGING = ("weights", "capacity", "vit_size", "vae_size", "dropout", "max_example_tokens")


class Stage(NamedTuple):
    """Updates from `step` on, until the next stage begins."""

    step: int
    config: Config  # with the settings of this stage


def stages(config: Config) -> list[Stage]:
    """Returns the stages of a run; the first begins at step 0 with the config as it is.

    Raises:
      ValueError: a stage is out of order, does not parse, or names what cannot change.
    """
    result = [Stage(0, config)]
    for step, text in config.data.stages:
        if step <= result[-1].step:
            raise ValueError(
                f"data.stages: step {step} comes after step {result[-1].step}: stages begin after "
                "step 0, in rising order"
            )
        data = result[-1].config.data
        for path, value in _settings(text, step):
            data = _set(data, path, value, step)
        result.append(Stage(step, edit(config, data=data)))
    return result


def check(config: Config) -> None:
    """Refuses a config that cannot work, as it is or in one of its stages.

    Raises:
      ValueError: what `checks.check` finds, and in which stage.
    """
    checks.check(config)
    for stage in stages(config)[1:]:
        try:
            checks.check(stage.config)
        except ValueError as error:
            raise ValueError(f"data.stages: step {stage.step}: {error}") from error


def at(found: list[Stage], step: int) -> int:
    """Returns the number of the stage that a step belongs to."""
    return max(number for number, stage in enumerate(found) if stage.step <= step)


def _settings(text: str, step: int) -> Iterator[tuple[str, object]]:
    """Yields the `name=value` pairs of a text: the arguments of a call, in Python's terms."""
    names_joined = re.sub(r"([A-Za-z_]\w*)\.(?=[A-Za-z_])", r"\1__", text)  # a.b=1 is no keyword
    try:
        call = ast.parse(f"f({names_joined})", mode="eval").body
        if call.args or not call.keywords or None in [k.arg for k in call.keywords]:
            raise ValueError("no name=value")
        pairs = [(k.arg.replace("__", "."), ast.literal_eval(k.value)) for k in call.keywords]
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"data.stages: step {step}: {text!r} ({error}); expected settings like "
            "'vit_size.max_side=980, capacity.und=17408'"
        ) from error
    yield from pairs


def _set(data: DataConfig, path: str, value: object, step: int) -> DataConfig:
    """Returns the settings with one of them changed, its type checked."""
    head = path.partition(".")[0]
    if head not in CHANGING:
        raise ValueError(
            f"data.stages: step {step}: {path} cannot change during a run; these can: "
            f"{', '.join(CHANGING)}"
        )
    nested: object = value
    for name in reversed(path.split(".")):
        nested = {name: nested}
    merged = _merged(dataclasses.asdict(data), nested)
    return overrides.from_dict(merged, DataConfig, f"data.stages: step {step}: data")


def _merged(old: dict, new: dict) -> dict:
    result = dict(old)
    for name, value in new.items():
        inside = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = _merged(old[name], value) if inside else value
    return result
