"""Trees as plain nested dicts of arrays, the form in which they are stored, and back.

Optax states are NamedTuples inside tuples. On disk a field of a NamedTuple is a key by its name, an
entry of a tuple a key by its number, and what holds no array (EmptyState, MaskedNode, None) is
absent. So a checkpoint needs no class to be read, and a class that moves breaks nothing.
"""

from __future__ import annotations

from typing import Any

import jax

from inset_jax.checkpoint import names


def paths(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any pytree by path "a/0/b"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = {"/".join(_spell(key) for key in path): leaf for path, leaf in leaves}
    assert len(found) == len(leaves), "two leaves share a path"
    return found


def to_plain(tree: Any) -> dict[str, Any]:
    """Returns a pytree as a nested dict whose keys are strings."""
    return names.unflatten(paths(tree))


def from_plain(plain: dict[str, Any], like: Any) -> Any:
    """Returns the leaves of a nested dict in the structure of `like`; the inverse of `to_plain`."""
    leaves = names.flatten(plain)
    wanted = paths(like)
    assert set(leaves) == set(wanted), "compare the shapes before"
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in wanted])


def _spell(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            text = str(getattr(key, attribute))
            assert "/" not in text, f"{text!r} cannot be a key"
            return text
    raise AssertionError(f"a key of an unknown kind: {key!r}")
