"""Checkpoints of a training run, on Orbax: written in the background, whole or not at all.

    <directory>/<step>/{params,ema,opt_state}   one item a tree, readable by itself
    <directory>/<step>/meta                     JSON: config, data position, provenance
    <directory>/<step>/digests.json             sizes and check sums of the files
    <directory>/tokenizer.json                  what `generate` needs besides

A step is written under a temporary name and renamed when every byte is on disk, so an interrupted
or failed save is never taken for a checkpoint, and the older ones go only after that. Whatever is
wrong is one ValueError that names the folder, the step and the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

import inset_jax
from inset_jax.checkpoint import differences, digest, errors, handlers, kept, plain, unfinished
from inset_jax.core import overrides, processes
from inset_jax.core.config import ModelConfig

FORMAT = 1  # of this layout, stored in meta
ITEMS = ("params", "ema", "opt_state")
META = "meta"
HELD_OUT = "held_out"  # of meta: the loss on held-out data, where it was measured at this step
LOOK_SECONDS, LOOK_FOR = 0.02, 600.0  # at a save of several processes; then Orbax waits, and ends

Tree = Any


class Store:
    """The writer of one run's checkpoints. A context manager; every process of the run has one."""

    def __init__(
        self,
        directory: str | os.PathLike,
        keep: int = 3,
        keep_best: bool = False,
        keep_every: int = 0,
    ):
        """Opens or creates the folder and removes what interrupted saves have left.

        Args:
          directory: a local path or anything TensorStore writes to.
          keep: newest checkpoints that stay.
          keep_best: whether the one of the lowest held-out loss (HELD_OUT in its meta) stays too.
          keep_every: steps of whose multiples all stay; 0: of none.
        """
        self.directory = epath.Path(directory)
        self._saving: tuple[int, tuple[str, ...]] | None = None  # step, its items
        self._broken: Exception | None = None  # of this process's part of the save in progress
        self._given_up = False  # a save of several processes has failed: none of them goes on
        self._kept = kept.Kept(keep, keep_every)
        self._keep_best = keep_best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{directory}: cannot hold checkpoints: it is a file")
        unfinished.refuse(directory)
        registry = handlers.registry(ITEMS, META, self._note)
        try:
            self._manager = ocp.CheckpointManager(
                self.directory.resolve(), options=options, handler_registry=registry
            )
        except OSError as error:
            raise ValueError(f"{directory}: cannot hold checkpoints: {error}") from error
        self._find_best()
        # a process that cannot read its share of a file must not save where the others do not
        best = processes.gather(self._kept.best)[0]
        self._kept.best = best and tuple(best)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def save(self, step: int, state: Mapping[str, Tree], meta: Mapping[str, Any]) -> bool:
        """Starts to save one step and returns once the arrays may change again.

        Args:
          step: number of updates done.
          state: trees of arrays by item, some of ITEMS, of any pytree classes. An entry "step" must
            equal `step`.
          meta: what JSON can hold; `config` (of the model) is what `load_any` needs. HELD_OUT, the
            held-out loss of this step, may be there.

        Returns:
          False when this very step is already saved.

        Raises:
          ValueError: the previous save failed (see `wait`), or a later step exists.
        """
        self.wait()
        state = dict(state)
        assert int(state.pop("step", step)) == step, "state['step'] is not the step"
        assert set(state) <= set(ITEMS), f"{set(state)} are not all in {ITEMS}"
        done = steps(self.directory)
        if step in done:
            return False
        if done and step < done[-1]:
            raise ValueError(
                f"{self.directory}: has step {done[-1]} already, so step {step} cannot be saved "
                "after it: remove the later steps or use a new folder"
            )
        trees = {item: plain.to_plain(tree) for item, tree in state.items()}
        items = tuple(item for item, tree in trees.items() if tree)  # an empty tree has no files
        meta = {**meta, "format": FORMAT, "step": step, "items": items, "tools": versions()}
        self._saving, self._broken = (step, (*items, META)), None
        if HELD_OUT in meta and self.is_best(meta[HELD_OUT]):
            self._kept.best = step, meta[HELD_OUT]
        self._given_up = jax.process_count() > 1  # unless it starts: else `close` would wait for it
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{item: handlers.save_args(trees[item]) for item in items},
                    **{META: ocp.args.JsonSave(json.loads(json.dumps(meta)))},
                ),
                force=True,
            )
        except (OSError, ValueError) as error:
            self._fail(error)
        self._given_up = False
        return True

    def is_best(self, held_out: float) -> bool:
        """Whether this held-out loss is lower than those of all checkpoints, and they are kept."""
        lowest = self._kept.best[1] if self._kept.best else math.inf
        return self._keep_best and held_out < lowest  # never one that is not a number

    def wait(self) -> None:
        """Waits until the save in progress is committed.

        Raises:
          ValueError: it failed, for example on a full disk; the older checkpoints are untouched.
        """
        if self._given_up:
            return
        until = time.monotonic() + LOOK_FOR * (jax.process_count() > 1)
        while time.monotonic() < until and self._manager.is_saving_in_progress():
            if self._broken is not None:  # the others wait for this one
                self._fail(self._broken)
            time.sleep(LOOK_SECONDS)
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its threads met
            self._fail(error)
        self._saving = None

    def look(self) -> None:
        """Raises what `wait` would raise as soon as it is known; waits for nothing else."""
        if self._broken is not None:
            self.wait()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        try:
            self.wait()
        finally:
            if not self._given_up:  # Orbax would wait for the others
                self._manager.close()

    def _note(self, error: Exception) -> None:
        self._broken = self._broken or error

    def _seal(self) -> None:
        """Called by Orbax in its own thread, when all is written but not yet committed."""
        step, items = self._saving
        with handlers.noting(self._note):
            for folder in self.directory.glob(f"{step}*"):
                if folder.name.partition(".")[0] == str(step):
                    digest.write(folder, items)

    def _find_best(self) -> None:
        """Reads which checkpoint has the lowest held-out loss; a damaged meta has none."""
        self._kept.best = None
        for step in steps(self.directory) if self._keep_best else ():
            try:
                held_out = read_meta(self.directory, step).get(HELD_OUT)
            except ValueError:
                continue
            if held_out is not None and self.is_best(held_out):
                self._kept.best = step, held_out

    def _fail(self, error: Exception) -> None:
        step, _ = self._saving
        self._saving, self._given_up = None, jax.process_count() > 1
        for folder in self.directory.glob(f"{step}.*tmp*") if jax.process_index() == 0 else ():
            with contextlib.suppress(OSError):  # others may be writing there still
                folder.rmtree(missing_ok=True)  # gives the room back
        if not self._given_up:
            self._manager.reload()
            self._find_best()
        rest = steps(self.directory)
        intact = f"step {rest[-1]} is intact" if rest else "there is no earlier checkpoint"
        reason = errors.reason(error)
        # what the system says of a file is no doing of another process
        kind = processes.Shared if self._given_up and reason not in errors.TELLING else ValueError
        said = f"{self.directory}: step {step} could not be saved ({reason}); {intact}"
        raise kind(said) from error


def steps(directory: str | os.PathLike) -> list[int]:
    """Returns the complete checkpoints of a folder, oldest first; [] if there is no such folder.

    Raises:
      ValueError: a conversion into the folder has not come to its end.
    """
    unfinished.refuse(directory)
    return sorted(ocp.utils.checkpoint_steps(epath.Path(directory).resolve()))


def latest(directory: str | os.PathLike, step: int | None = None) -> int:
    """Returns the newest complete step, or `step` itself if it is there.

    Raises:
      ValueError: there is none, or not this one.
    """
    found = steps(directory)
    if not found:
        raise ValueError(f"{directory}: no complete checkpoint there")
    if step is not None and step not in found:
        raise ValueError(f"{directory}: no step {step}; there are {', '.join(map(str, found))}")
    return found[-1] if step is None else step


def read_meta(directory: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """Returns a step's JSON (`save`'s meta with "step", "items", "format", "tools"), arrays unread.

    Raises:
      ValueError: no such step, or its meta is damaged.
    """
    step = latest(directory, step)
    verify(directory, step, META)
    path = epath.Path(directory) / str(step) / META / "metadata"
    try:
        meta = json.loads(path.read_text())
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{path}: format {meta['format']}, but this version reads {FORMAT} only"
            )
        return meta
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged or missing ({errors.reason(error)})") from error


def model_config(meta: Mapping[str, Any]) -> ModelConfig:
    """Returns the model of a step from its meta; `config` may be a whole experiment's or a model's.

    Raises:
      ValueError: meta has no config, or one with unknown fields.
    """
    config = meta.get("config")
    if not isinstance(config, Mapping):
        raise ValueError("the checkpoint's meta has no config")
    return overrides.from_dict(config.get("model", config), ModelConfig, "checkpoint.config.model")


def stored(directory: str | os.PathLike, step: int, item: str) -> dict[str, Any]:
    """Returns the shapes of one item's arrays by path, as jax.ShapeDtypeStruct; reads no array.

    Raises:
      ValueError: the step has no such item or its index is damaged.
    """
    path = epath.Path(directory).resolve() / str(step) / item
    items = read_meta(directory, step)["items"]
    if item not in items:
        raise ValueError(f"{directory}: step {step} has no {item}; it has {', '.join(items)}")
    try:
        tree = handlers.pytree().metadata(path).tree
    except Exception as error:
        verify(directory, step, item)
        raise _damaged(directory, step, item, errors.reason(error)) from error
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in plain.paths(tree).items()
    }


def restore(
    directory: str | os.PathLike,
    wanted: Mapping[str, Tree],
    step: int | None = None,
    config: ModelConfig | None = None,
    partial: bool = False,
) -> dict[str, Tree]:
    """Reads some items of a checkpoint.

    Args:
      wanted: item -> tree of jax.ShapeDtypeStruct (or arrays) in the structure that is returned.
        A leaf's sharding says where it goes (default: the first device), its dtype is cast to.
        Only these items are read.
      step: None means the newest.
      config: of the model; only to say which sizes differ.
      partial: whether an item may hold more arrays than are wanted.

    Returns:
      item -> tree like the wanted one, of JAX arrays.

    Raises:
      ValueError: no such step or item; another model, in words; or a damaged file, by name.
    """
    step = latest(directory, step)
    if config is not None:
        unlike = differences.models(model_config(read_meta(directory, step)), config)
        if unlike:
            raise ValueError(f"{directory}: step {step} is another model: {'; '.join(unlike)}")
    result = {}
    for item, tree in wanted.items():
        leaves = plain.paths(tree)
        if not leaves:
            result[item] = tree
            continue
        verify(directory, step, item)
        _check_shapes(directory, step, item, leaves, partial)
        result[item] = plain.from_plain(_read(directory, step, item, tree), tree)
    return result


def verify(directory: str | os.PathLike, step: int, item: str) -> None:
    """Compares an item's files with their digests; several processes share the files.

    Raises:
      ValueError: a file is missing or damaged.
    """
    share = jax.process_index(), jax.process_count()
    found = digest.verify(epath.Path(directory) / str(step), item, share)
    if found:
        raise _damaged(directory, step, item, "; ".join(found[:3]))


def _check_shapes(
    directory: str | os.PathLike, step: int, item: str, leaves: Mapping[str, Any], partial: bool
) -> None:
    found = {path: tuple(leaf.shape) for path, leaf in stored(directory, step, item).items()}
    expected = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if partial:
        found = {path: shape for path, shape in found.items() if path in expected}
    lines = differences.shapes(found, expected)
    if lines:
        first = f"{directory}: {item} of step {step} is not what is expected here:"
        raise ValueError("\n".join([first, *lines]))


def _read(directory: str | os.PathLike, step: int, item: str, tree: Tree) -> dict[str, Any]:
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda leaf: ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=getattr(leaf, "sharding", None) or default,
        global_shape=leaf.shape,
        dtype=leaf.dtype,
    )
    wanted = plain.to_plain(tree)
    args = ocp.args.PyTreeRestore(
        item=wanted, restore_args=jax.tree.map(place, wanted), partial_restore=True
    )
    path = epath.Path(directory).resolve() / str(step) / item
    try:
        with ocp.Checkpointer(handlers.pytree()) as reader:
            return reader.restore(path, args=args)
    except Exception as error:
        raise _damaged(directory, step, item, errors.reason(error)) from error


def _damaged(directory: str | os.PathLike, step: int, item: str, reason: str) -> errors.Damaged:
    older = [other for other in steps(directory) if other < step]
    hint = "; there is no earlier step"
    if older:
        hint = f"; remove {epath.Path(directory) / str(step)} to go back to step {older[-1]}"
    return errors.Damaged(f"{directory}: {item} of step {step} is damaged ({reason}){hint}")


def versions() -> dict[str, str]:
    """Returns the versions of what writes checkpoints."""
    return {
        "inset-jax": inset_jax.__version__,
        "jax": jax.__version__,
        "orbax-checkpoint": ocp.__version__,
    }
