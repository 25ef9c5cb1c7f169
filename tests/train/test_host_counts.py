"""A checkpoint of four processes in one, two and eight: every number and the very next batch.

The processes are real ones: this file as a script. What they save is known without them.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import zlib

import numpy as np
import pytest

from inset_jax.core.simulated import several

STEP, PACKS = 6, 8
ROOT = pathlib.Path(__file__).parents[2]


def truth(path, leaf) -> np.ndarray:
    """What an array of the state holds: another thing for every path."""
    import jax

    random = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    return (100 * random.standard_normal(leaf.shape)).astype(leaf.dtype)


def member(folder: str, task: str, index: str, count: str, port: str) -> None:
    """One process: saves a state, or restores it and tells how it is."""
    from inset_jax.core import overrides, processes
    from inset_jax.core.config import edit

    group = processes.join(processes.place(
        {"coordinator": f"127.0.0.1:{port}", "processes": count, "process": index}, {}
    ))  # fmt: skip
    import jax

    from inset_jax.core import mesh as meshes

    config = edit(overrides.load(f"{folder}/experiment.py"), data__packs=PACKS)
    mesh = meshes.build(config.mesh)
    with jax.set_mesh(mesh):
        told = {"save": save, "restore": restore}[task](config, mesh, pathlib.Path(folder))
    print("TOLD", json.dumps(told), flush=True)
    if group is not None:
        group.leave()


def save(config, mesh, folder: pathlib.Path) -> dict:
    import jax

    from inset_jax.checkpoint import store
    from inset_jax.core import mesh as meshes
    from inset_jax.core import overrides
    from inset_jax.train import start

    items = start.to_items(*start.wanted(config, mesh))
    filled = jax.tree_util.tree_map_with_path(truth, items)
    filled = meshes.put(filled, jax.tree.map(lambda leaf: leaf.sharding, items))
    share, loader = opened(config, mesh, STEP)
    data = {"step": STEP, "plan": loader.hash, "records": loader.records_hash}
    meta = {"config": overrides.to_dict(config), "data": data}
    with store.Store(folder / "checkpoints") as saver:
        saver.save(STEP, filled, meta)
    return {"share": share, "next": names(loader)}


def restore(config, mesh, folder: pathlib.Path) -> dict:
    import jax

    from inset_jax.checkpoint import store
    from inset_jax.train import faults, start

    begun = start.begin(config, mesh, folder / "checkpoints")
    items = start.to_items(begun.state, begun.vae)
    expected = jax.tree_util.tree_map_with_path(truth, items)
    alike = lambda leaf, whole: all(
        np.array_equal(part.data, whole[part.index]) for part in leaf.addressable_shards
    )
    same = {
        item: jax.tree.leaves(jax.tree.map(alike, items[item], expected[item])) for item in items
    }
    saved = store.read_meta(folder / "checkpoints")["data"]
    share, loader = opened(config, mesh, saved["step"])
    kernel = begun.state["params"]["llm"]["layers"]["gen"]["mlp"]["up"]["kernel"]
    return {
        "same": {item: [len(found), all(found)] for item, found in same.items()},
        "step": int(begun.state["step"]),
        "told": faults.check_plan(saved, loader, "stop"),
        "parts": kernel.size // kernel.addressable_shards[0].data.size,
        "share": share,
        "next": names(loader),
    }


def opened(config, mesh, step: int):
    from inset_jax.core import mesh as meshes
    from inset_jax.data.loader import Loader

    share = meshes.share(mesh, config.data.packs)
    return share.rows, Loader(config, "train", share.index, share.count, step)


def names(loader) -> list:
    """Ids of all examples of the next batch, by pack."""
    batch = next(loader)
    loader.close()
    return [[name for name, _ in pack] for pack in batch.examples]


def together(folder: pathlib.Path, task: str, count: int, devices: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, str(folder), task]
    environment = os.environ | several(devices) | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [*command, str(index), str(count), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    told = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        told += [json.loads(line[5:]) for line in out.splitlines() if line.startswith("TOLD ")]
    return told


def batch(told: list[dict]) -> dict[int, list]:
    """The packs of all processes by their row of the global batch."""
    return {row: pack for one in told for row, pack in zip(one["share"], one["next"], strict=True)}


@pytest.mark.slow  # fifteen processes
def test_four_processes_save_what_one_two_and_eight_restore(tmp_path, config):
    from tests.train.runs import prepare

    prepare(tmp_path, config)
    saved = batch(together(tmp_path, "save", 4, 2))
    assert sorted(saved) == list(range(PACKS)) and all(saved.values())
    for count, devices in ((1, 4), (2, 2), (8, 1)):
        told = together(tmp_path, "restore", count, devices)
        assert len(told) == count
        for one in told:
            assert one["parts"] == count * devices  # really split over all of them
            assert one["step"] == STEP and one["told"] == ""
            for number, same in one["same"].values():
                assert number > 20 and same, one
        assert batch(told) == saved


if __name__ == "__main__":
    member(*sys.argv[1:])
