"""Between the frozen `Config`, the locked `ConfigDict` that flags edit, and plain JSON.

Every error is a ValueError of one line that names the field, what was found and what was expected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import re
import runpy
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from inset_jax.core import host
from inset_jax.core.config import Config

FILE = "config.json"  # in a run's folder: what it was last started with
ROOT = "config"  # how a field is spelled on the command line: --config.optimizer.peak_lr


class Command(NamedTuple):
    """What a command line asked for."""

    config: Any  # resolved: the preset with its overrides
    preset: Any  # as the config file gives it
    source: str  # path of the config file
    options: dict[str, str | None]  # the command's own flags


def to_dict(config) -> dict[str, Any]:
    """Returns a nested dict of plain values; `from_dict` is its inverse, also through JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any], kind: type = Config, path: str = ROOT):
    """Builds a config dataclass from nested values, with every type checked.

    A field that is absent takes its default, so that a config saved before the field existed still
    reads. An int is accepted for a float, a list for a tuple.

    Raises:
      ValueError: an unknown name (with the nearest valid one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ValueError(_unknown(f"{path}.{name}", _names(kind, path)))
    built = {}
    for name, value in values.items():
        expected, where = hints[name], f"{path}.{name}"
        if not dataclasses.is_dataclass(expected):
            built[name] = _typed(value, expected, where)
        elif isinstance(value, Mapping):
            built[name] = from_dict(value, expected, where)
        else:
            raise ValueError(f"{where}: found {value!r}, expected a group of fields")
    return kind(**built)


def to_config_dict(config):
    """Returns the config as a locked `ml_collections.ConfigDict`, tuples kept as tuples."""
    from ml_collections import ConfigDict

    locked = ConfigDict(to_dict(config), type_safe=True, convert_dict=True)
    return locked.lock()


def from_config_dict(values, kind: type = Config):
    """Returns the frozen form of a ConfigDict; see `from_dict` for what is refused."""
    return from_dict(values.to_dict(), kind)


def diff(config, preset, path: str = ROOT) -> list[str]:
    """Returns one printable line a field in which two configs of one kind differ."""
    lines = []
    for field in dataclasses.fields(config):
        new, old = getattr(config, field.name), getattr(preset, field.name)
        where = f"{path}.{field.name}"
        if dataclasses.is_dataclass(new):
            lines += diff(new, old, where)
        elif new != old:
            lines.append(f"{where}: {old!r} -> {new!r}")
    return lines


def since(path: pathlib.Path, config) -> list[str]:
    """Returns what is other in a config than in the one that `keep` left, [] if it never did.

    Raises:
      ValueError: the file there is no config of this kind.
    """
    if not path.exists():
        return []
    try:
        before = from_dict(json.loads(path.read_text("utf-8")), type(config))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return diff(config, before)


def keep(config, path: pathlib.Path) -> None:
    """Saves the resolved config as JSON: for a run that has begun, not for one that is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(to_dict(config), indent=1) + "\n", "utf-8")
    os.replace(beside, path)


def describe(config: Config = Config()) -> list[str]:  # noqa: B008 (frozen)
    """Returns one line a field, as a flag with its value: what `--help` prints."""
    return [f"--{name}={value!r}" for name, value in _flat(config, ROOT)]


def load(path: str, kind: type = Config):
    """Runs a config file and returns what its `get_config()` gives, checked, as a `kind`.

    Raises:
      ValueError: the file is missing, fails, or has no `get_config`; or `from_dict` refuses.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--{ROOT}={path}: there is no such file")
    with _importable(path), _one_line(path):
        module = runpy.run_path(path)
        if "get_config" not in module:
            raise ValueError("it defines no get_config()")
        values = module["get_config"]()
    return from_config_dict(values, kind)


def parse(argv: Sequence[str], options: Mapping[str, str], kind: type = Config) -> Command:
    """Reads `--config=FILE`, `--config.field=value` and the command's own flags.

    Args:
      argv: the command line, program name first.
      options: name and help of the command's own string flags.
      kind: the config that the command takes, a dataclass of dataclasses.

    Raises:
      ValueError: an unknown flag or field (with the nearest valid one), a value of the wrong type,
        or no config file.
    """
    from absl import flags
    from ml_collections import config_flags

    source, argv = _config_file(argv)
    preset = load(source, kind)
    known = _names(kind, ROOT)
    for argument in argv:
        match = re.match(rf"--?(no)?({ROOT}\.[^=]*)", argument)
        if match and match[2] not in known:
            raise ValueError(_unknown(match[2], known))
    values = flags.FlagValues()
    for name, text in options.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    try:
        config_flags.DEFINE_config_dict(
            ROOT, to_config_dict(preset), flag_values=values, sys_argv=argv
        )
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, [ROOT, *options], 1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"--{error.flagname}: no such flag{hint}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise ValueError(_flag_error(str(error), kind)) from None
    if len(rest) > 1:
        raise ValueError(f"{rest[1]!r}: not expected; flags are written --name=value")
    config = from_config_dict(values[ROOT].value, kind)
    return Command(config, preset, source, {name: values[name].value for name in options})


def status(
    argv: Sequence[str] | None, help_text: Callable[[], str], work: Callable[[Sequence[str]], int]
) -> int:
    """Runs a command that takes a config: its help, or its work; errors are said, a line each.

    Args:
      argv: the command line, program name first; None: this process's.

    Returns:
      the exit status: what `work` returns, 1 after an error of the user's or of a disk, 130 after a
      Ctrl-C that the work has not taken for itself.
    """
    argv = sys.argv if argv is None else list(argv)
    if any(argument.lstrip("-") in ("help", "h") for argument in argv[1:]):
        print(help_text())
        return 0
    try:
        return work(argv)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return host.status(error)


def _config_file(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the value of the config flag, and the command line without it."""
    argv = list(argv)
    for position, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == ROOT:
            words = 1 if equals else 2
            found = value if equals else "".join(argv[position + 1 : position + 2])
            if found:
                return found, argv[:position] + argv[position + words :]
    raise ValueError(f"--{ROOT}=FILE is missing, for example --{ROOT}=configs/demo.py")


def _flag_error(message: str, kind: type) -> str:
    """Rewords absl's refusal of a value in the terms of the config's fields."""
    message = " ".join(message.split())
    match = re.match(rf"flag --({ROOT}\.[\w.]+)=(.*?): ", message)
    if not match:
        return message
    expected = dict(_typed_names(kind, ROOT))[match[1]]
    return f"{match[1]}: found {match[2]!r}, expected {_spell(expected)}"


def _typed(value: Any, expected: Any, where: str) -> Any:
    """Returns the value as the expected type, or refuses it."""
    if typing.get_origin(expected) is tuple:
        kinds = typing.get_args(expected)
        if isinstance(value, (tuple, list)):
            if kinds[-1] is Ellipsis:
                kinds = kinds[:1] * len(value)
            if len(kinds) == len(value):
                entries = zip(value, kinds, strict=True)
                return tuple(_typed(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(entries))
    elif expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is expected:
        return value
    raise ValueError(f"{where}: found {value!r}, expected {_spell(expected)}")


def _spell(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _typed_names(kind: type, path: str) -> Iterator[tuple[str, Any]]:
    for name, expected in typing.get_type_hints(kind).items():
        where = f"{path}.{name}"
        if dataclasses.is_dataclass(expected):
            yield from _typed_names(expected, where)
        else:
            yield where, expected


def _names(kind: type, path: str) -> list[str]:
    return [name for name, _ in _typed_names(kind, path)]


def _flat(config, path: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _flat(value, where)
        else:
            yield where, value


def _unknown(path: str, known: Sequence[str]) -> str:
    """Words the refusal of a path, with the nearest valid one: in the same group if it is there."""
    inside = [name for name in known if name.startswith(path + ".")]
    if inside:
        names = list(dict.fromkeys(name[len(path) + 1 :].partition(".")[0] for name in inside))
        return f"{path} is a group of fields ({', '.join(names)}): set them one by one"
    group, _, last = path.rpartition(".")
    siblings = {n.rpartition(".")[2]: n for n in known if n.rpartition(".")[0] == group}
    near = difflib.get_close_matches(last, siblings, 1)
    if near:
        return f"{path}: no such field; did you mean {near[0]}?"
    anywhere = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(last, anywhere, 1, cutoff=0.75)
    hint = f"; did you mean {anywhere[near[0]]}?" if near else ""
    return f"{path}: no such field{hint}"


@contextlib.contextmanager
def _importable(path: str) -> Iterator[None]:
    """Lets a config file import its siblings as `configs.<name>` from any working directory."""
    root = pathlib.Path(path).resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


@contextlib.contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Turns whatever a config file raises into one line that names the file and the line."""
    try:
        yield
    except Exception as error:
        lines = []
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == path:
                lines.append(trace.tb_lineno)
            trace = trace.tb_next
        place = f"{path}, line {lines[-1]}" if lines else path
        if isinstance(error, SyntaxError):
            place = f"{error.filename}, line {error.lineno}"
        text = " ".join(str(error).split())
        raise ValueError(f"{place}: {type(error).__name__}: {text}") from error
