"""Records that a run could not use: their ids in a log, their number in the metrics.

And where a run that goes on finds its data: by the same plan, at the very next pack.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from inset_jax.data.loader import Fault, Loader
from inset_jax.train import metrics


class FaultLog:
    """Appends to `bad_records.jsonl`; a run that goes on from step N drops what came after N."""

    def __init__(self, folder: pathlib.Path, step: int, process: int = 0):
        """process: this host's number; each has a file of its own."""
        name = f"bad_records.{process}.jsonl" if process else "bad_records.jsonl"
        self._path = folder / name
        metrics.drop_after(self._path, step)
        self._count = 0

    def add(self, step: int, faults: Sequence[Fault]) -> None:
        if not faults:
            return
        self._count += len(faults)
        lines = [
            json.dumps(
                {"step": step, "id": f.example, "replaced_by": f.replacement, "reason": f.reason}
            )
            for f in faults
        ]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def take(self) -> int:
        """Returns the number of bad records since the last call."""
        count, self._count = self._count, 0
        return count


def check_plan(saved: dict, loader: Loader, on_bad_record: str) -> str:
    """Compares the plan that a checkpoint was trained by with the one at hand.

    Args:
      saved: the "data" of the checkpoint's meta; one from before plans had names has none.

    Returns:
      what to tell, "" for nothing.

    Raises:
      ValueError: the records or the tokenizer are others than they were, and data.on_bad_record is
        "stop".
    """
    if saved.get("plan", loader.hash) == loader.hash:
        return ""
    if saved.get("records") == loader.records_hash:
        return "the mix, sizes or capacities have changed: packs are planned anew from here"
    changed = "the records or the tokenizer have changed since the checkpoint"
    if on_bad_record == "stop":
        raise ValueError(
            f"{changed}: another plan would repeat some examples and leave out others; restore "
            "them, or go on with data.on_bad_record=replace"
        )
    return f"{changed}: packs are planned anew from here"


def go_on(saved: dict, loader: Loader) -> str:
    """Takes a loader of the same plan to the pack at which the checkpoint left off.

    That is where the steps of the run lead, unless some of them took more packs or fewer.

    Args:
      saved: the "data" of the checkpoint's meta; an early one has no pack.

    Returns:
      what to tell, "" for nothing.
    """
    counted, pack = loader.pack, saved.get("pack", loader.pack)
    if pack == counted:
        return ""
    loader.pack = pack
    return (
        "data.packs or optimizer.accumulation has changed in this run: its data goes on with pack "
        f"{pack} of the plan, where the checkpoint left off, and not with pack {counted}"
    )
