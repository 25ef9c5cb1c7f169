"""How Orbax writes the items of a checkpoint; its errors are told of at once.

Orbax raises what goes wrong in the background when all processes have come to the end of the save.
Where one cannot write, the others wait for it there until Orbax gives up, ten minutes later, and so
does that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

CHUNK_BYTES = 1 << 26  # largest piece that is written or read at once

Note = Callable[[Exception], None]  # called in a thread of Orbax


def registry(
    items: Sequence[str], meta: str, note: Note
) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Returns who writes which item: trees of arrays, and one of JSON."""
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in items:
        found.add(item, ocp.args.PyTreeSave, watched(pytree(), note))
    found.add(meta, ocp.args.JsonSave, watched(ocp.JsonCheckpointHandler(), note))
    return found


def pytree() -> ocp.PyTreeCheckpointHandler:
    # numbers of a trained network hardly compress, and compressing takes as long as writing
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def save_args(tree: Any) -> ocp.args.PyTreeSave:
    """Cuts large arrays, and stacked ones between their layers: those are also read one by one."""

    def cut(path, _) -> ocp.SaveArgs:
        is_stacked = any(getattr(key, "key", None) == "layers" for key in path)
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if is_stacked else ())

    return ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(cut, tree))


@contextlib.contextmanager
def noting(note: Note) -> Iterator[None]:
    """Tells of an error on its way."""
    try:
        yield
    except Exception as error:
        note(error)
        raise


def watched(handler, note: Note):
    """Returns the handler (of an item that is saved asynchronously); its errors are told of."""
    save, finalize = handler.async_save, handler.finalize

    async def async_save(*given, **named):
        with noting(note):
            futures = await save(*given, **named)
        return [_Future(future, note) for future in futures or ()]

    def finalize_told(*given, **named):
        with noting(note):
            return finalize(*given, **named)

    # not in a class of its own: Orbax finds arguments by the classes of handlers that it knows
    handler.async_save, handler.finalize = async_save, finalize_told
    return handler


class _Future:
    """A part of a save that is written in the background."""

    def __init__(self, inner, note: Note):
        self._inner, self._note = inner, note

    def result(self, timeout: float | None = None):
        with noting(self._note):
            return self._inner.result(timeout=timeout)

    def cancel(self):
        return self._inner.cancel()
