"""What makes written parameters a checkpoint: Orbax's descriptions, our meta and digests, the name.

    <target>/0/...                  the step, as `store` reads it
    <target>/tokenizer.json         as `tokenizer.keep` puts it
    <target>/bagel/files/...        the source's other files, byte by byte
    <target>/bagel/headers/<file>   the headers of its safetensors files, for the way back

Until the end the step has Orbax's name of an unfinished one and the marker of `unfinished` lies
beside it; an object store has no renaming, there the marker and Orbax's commit file decide.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from inset_jax.checkpoint import arrays, digest, errors, place
from inset_jax.checkpoint.place import Place
from inset_jax.checkpoint.progress import size
from inset_jax.checkpoint.streaming import Work

STEP = "0"
TEMPORARY = f"{STEP}.orbax-checkpoint-tmp"  # where Orbax itself expects unfinished work
FILES, HEADERS = "bagel/files", "bagel/headers"
COMMITTED = "commit_success.txt"
HANDLER = "orbax.checkpoint._src.handlers"


def complete(
    target: Place, work: Work, meta: Mapping[str, Any], side: Iterable[tuple[str, bytes]]
) -> None:
    """Writes what surrounds the parameters, then makes the checkpoint complete.

    Args:
      meta: what the step's meta holds beside what every step's does: provenance, ...
      side: key in `target` and content of each file beside the step.
    """
    work.journal.flush()
    for key, content in side:
        target.write(key, content)
    table = _describe_items(work, meta)
    work.step.write(digest.FILE, json.dumps(table, indent=0).encode())
    now = time.time_ns()
    handlers = {
        "meta": f"{HANDLER}.json_checkpoint_handler.JsonCheckpointHandler",
        "params": f"{HANDLER}.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    }
    values = {
        "item_handlers": handlers,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }
    work.step.write("_CHECKPOINT_METADATA", json.dumps(values).encode())
    work.step.write(COMMITTED, f"Checkpoint commit was successful to {target.name}".encode())
    if target.local is not None:
        os.rename(target.local / TEMPORARY, target.local / STEP)
        place.sync_folder(target.local)
    work.journal.close()


def _describe_items(work: Work, meta: Mapping[str, Any]) -> dict[str, list]:
    """Writes the two items' descriptions; returns the table of digests of all their files."""
    from inset_jax.checkpoint import store

    plan, table = work.plan, {}
    for feed in plan.feeds:
        for key, count, crc in work.journal.done[feed.link.source]:
            table[f"params/{key}"] = [count, crc]
    meta = {
        **meta,
        "config": dataclasses.asdict(plan.config),
        "format": store.FORMAT,
        "step": int(STEP),
        "items": ["params"],
        "tools": store.versions(),
    }
    described = {
        f"params/{arrays.folder(path)}/zarr.json": arrays.zarr_json(cut)
        for path, cut in plan.cuts.items()
    }
    described["params/_METADATA"] = arrays.orbax_metadata(list(plan.cuts))
    described["meta/metadata"] = json.dumps(meta).encode()
    for key, content in described.items():
        work.step.write(key, content)
        table[key] = [len(content), zlib.crc32(content)]
    return table


def step_place(target: Place) -> Place:
    """Returns where the step of an unfinished target is written."""
    return target.inside(TEMPORARY if target.local is not None else STEP)


def is_complete(target: Place) -> bool:
    """Whether all is written, though the marker may still be there."""
    return target.inside(STEP).read(COMMITTED) is not None


def check_room(target: Place, needed: int) -> None:
    """Refuses before a byte is written what a local disk cannot hold.

    Raises:
      Unwritable: says how much is free.
    """
    if target.local is None:
        return
    folder = target.local
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise errors.Unwritable(
            f"{target.name}: {size(needed)} are needed, {size(free)} are free there"
        )
