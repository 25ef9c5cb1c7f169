"""Which tensor of which file fills which part of which parameter: decided before a number is read.

A plan lists one feed for each BAGEL tensor. It is complete and unambiguous, or there is one error
that lists everything that is wrong.
"""

from __future__ import annotations

import collections
import fnmatch
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from inset_jax.checkpoint import arrays, convert, fresh, names, tensors
from inset_jax.core.config import ModelConfig


class Options(NamedTuple):
    """What a user may ask of a conversion; equal options give equal bytes."""

    dtype: str = convert.KEEP  # of the model's tensors; the autoencoder's stay as they are
    weights: str | None = None  # "ema" or "model"; None: the averaged ones if there are any
    renames: tuple[str, ...] = ()  # "OLD=NEW", each with at most one *
    allow_missing: tuple[str, ...] = ()  # patterns of BAGEL names (fnmatch)
    seed: int = 0  # of what is random
    mesh: tuple[tuple[str, int], ...] = tuple(arrays.MESH.items())


class Feed(NamedTuple):
    """Where one BAGEL tensor comes from."""

    link: names.Link
    source: str | None  # tensor of the files; None: made here, by make(first row, last row + 1)
    make: Callable[..., np.ndarray] | None = None  # otherwise: of the file's whole tensor
    how: str = ""  # in words, where it is no plain copy


class Plan(NamedTuple):
    """One conversion into a checkpoint."""

    config: ModelConfig
    feeds: tuple[Feed, ...]
    cuts: dict[str, arrays.Cut]  # by parameter path
    notes: dict[str, Any]  # what the options changed, for the provenance

    def dtype(self, feed: Feed) -> np.dtype:
        return self.cuts[feed.link.path].dtype

    @property
    def bytes(self) -> int:
        return sum(math.prod(c.shape) * c.dtype.itemsize for c in self.cuts.values())


def of_bagel(
    folder: str | pathlib.Path, source: tensors.Tensors, config: ModelConfig, options: Options
) -> Plan:
    """Plans a conversion of a BAGEL folder.

    Raises:
      ValueError: by name, every tensor that is missing, unexpected or misshapen; or a rename or a
        dtype that does not fit.
    """
    wanted = convert.shapes(config)
    links, foreign = names.links(wanted)
    if foreign:
        raise ValueError(f"{folder}: BAGEL's format has no {', '.join(foreign)}")
    there = rename(source, options.renames)
    missing = [name for name in links if name not in there]
    filled = [n for n in missing if any(fnmatch.fnmatchcase(n, p) for p in options.allow_missing)]
    needed = {name: link for name, link in links.items() if name not in filled}
    convert.check(folder, {new: source[old] for new, old in there.items()}, needed, config, wanted)
    feeds = []
    for name, link in links.items():
        if name in filled:
            feeds.append(_filled(link, there, wanted, options.seed))
        elif name == names.PATCH_WEIGHT and len(source[there[name]].shape) == 4:
            how = "patch convolution as a linear layer"
            feeds.append(Feed(link, there[name], names.patch_as_linear, how))
        else:
            feeds.append(Feed(link, there[name]))
    notes: dict[str, Any] = {}
    if options.renames:
        notes["renamed"] = {
            "rules": list(options.renames),
            "tensors": sum(new != old for new, old in there.items()),
        }
    if options.allow_missing:
        notes["allowed_missing"] = {
            "patterns": list(options.allow_missing),
            "filled": {f.link.source: f.how for f in feeds if f.link.source in filled},
        }
    return complete(config, feeds, source, options, notes)


def complete(
    config: ModelConfig,
    feeds: Iterable[Feed],
    source: tensors.Tensors,
    options: Options,
    notes: dict[str, Any],
) -> Plan:
    """Returns the plan of some feeds, once it is sure that they fill every parameter once.

    Raises:
      ValueError: layers of one parameter have several dtypes and none was chosen.
    """
    wanted, feeds = convert.shapes(config), tuple(feeds)
    by_path: dict[str, list[Feed]] = collections.defaultdict(list)
    for feed in feeds:
        by_path[feed.link.path].append(feed)
    logical, cuts = convert.logical_axes(config), {}
    for path, shape in wanted.items():
        layers = sorted(-1 if f.link.layer is None else f.link.layer for f in by_path[path])
        whole = names.from_path(path, shape)
        assert layers == [-1 if w.layer is None else w.layer for w in whole], path
        dtype = _dtype(by_path[path], source, options.dtype)
        long = {"linear": len(shape) - 1, "conv": None}.get(
            whole[0].transform, 0 if whole[0].layer is None else 1
        )
        cuts[path] = arrays.cut(shape, dtype, logical[path], dict(options.mesh), long)
    return Plan(config, feeds, cuts, notes)


def rename(found: Iterable[str], rules: Iterable[str]) -> dict[str, str]:
    """Applies the rules "OLD=NEW" to names; a * stands for the same text on both sides.

    Returns:
      new name -> old name; a name that no rule fits stays.

    Raises:
      ValueError: a rule is not of that form or fits no name, or two names become one.
    """
    parsed, used, result = [], set(), {}
    for rule in rules:
        old, equals, new = rule.partition("=")
        if not (old and equals and new) or old.count("*") > 1 or new.count("*") > old.count("*"):
            raise ValueError(
                f"--rename {rule}: expected OLD=NEW, with at most one * in OLD and it in NEW"
            )
        parsed.append((rule, old, new))
    for name in found:
        becomes = name
        for rule, old, new in parsed:
            head, star, tail = old.partition("*")
            long_enough = len(name) >= len(head) + len(tail)
            if name == old or (
                star and long_enough and name.startswith(head) and name.endswith(tail)
            ):
                becomes = new.replace("*", name[len(head) : len(name) - len(tail)])
                used.add(rule)
                break
        if becomes in result:
            raise ValueError(f"--rename: {result[becomes]} and {name} both become {becomes}")
        result[becomes] = name
    if unused := [rule for rule, *_ in parsed if rule not in used]:
        raise ValueError(f"--rename {unused[0]}: no tensor is called {unused[0].partition('=')[0]}")
    return result


def made(link: names.Link, wanted: Mapping[str, tuple[int, ...]], seed: int) -> Feed:
    """Returns the feed of a tensor that no file has."""
    shape = names.source_shape(link, wanted[link.path])
    kernel = wanted.get(link.path.rpartition("/")[0] + "/kernel", shape)
    inputs = math.prod(kernel[-2:-1]) or 1  # of a linear layer; a convolution's are its channels
    make = fresh.Tensor(link.source, shape, inputs, seed).rows
    return Feed(link, None, make, fresh.words(link.source, seed))


def _filled(
    link: names.Link,
    there: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    seed: int,
) -> Feed:
    """A missing tensor that may be: the generation expert is copied, as BAGEL's training begins."""
    twin = link.source.replace("_moe_gen", "")
    if twin != link.source and twin in there:
        return Feed(link, there[twin], None, f"copied from {twin}")
    return made(link, wanted, seed)


def _dtype(feeds: list[Feed], source: tensors.Tensors, dtype: str) -> np.dtype:
    if dtype != convert.KEEP and feeds[0].link.path.startswith("model/"):
        return tensors.numpy_dtype(dtype)
    kinds = {source[feed.source].dtype for feed in feeds if feed.source is not None}
    return convert.only_dtype(feeds[0].link.source, kinds) if kinds else np.dtype(np.float32)
