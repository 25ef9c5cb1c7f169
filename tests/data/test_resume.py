"""Stop on four hosts, go on with two, eight or one, any number of workers: the same packs.

Every host is a loader of its own in a process of its own; nothing is passed from one run to the
next but the number of the step.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from inset_jax.core.config import edit
from inset_jax.data.loader import Loader

PACKS = 8  # in the global batch
STOP, END = 3, 7  # steps
DROPS = dict(data__dropout__example_both=0.2, data__dropout__segment_vit=0.3)


def host(config, index: int, count: int, first: int, end: int) -> tuple:
    """One host's run over some steps: the loader's hash, ids and what depends on draws, by step."""
    loader = Loader(config, "train", index, count, first)
    seen = []
    for _ in range(first, end):
        batch = next(loader)
        draws = [pack.tobytes() for pack in batch.pack.gen_timestep]
        places = [pack.tobytes() for pack in batch.pack.und_position]
        names = [[name for name, _ in pack] for pack in batch.examples]
        seen.append(list(zip(names, draws, places, strict=True)))
    loader.close()
    return loader.hash, seen


def run(config, hosts: int, processes: int, first: int, end: int) -> tuple[set, list]:
    """Runs all hosts; returns their hashes and the global sequence of packs by step."""
    jobs = [(config, index, hosts, first, end) for index in range(hosts)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = list(pool.map(host, *zip(*jobs, strict=True)))
    steps = [[pack for _, seen in found for pack in seen[n]] for n in range(end - first)]
    return {name for name, _ in found}, steps


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The config, and what one host sees that is never interrupted, in this process."""
    folder = str(tmp_path_factory.mktemp("plans"))
    config = edit(config, data__packs=PACKS, data__plans=folder, **DROPS)
    return config, host(config, 0, 1, 0, END)


def test_four_hosts_then_two_eight_or_one(straight, tmp_path):
    config, (name, expected) = straight
    fresh = edit(config, data__plans=str(tmp_path))  # the hosts measure and plan for themselves
    names, steps = run(fresh, 4, 4, 0, STOP)
    assert names == {name} and steps == expected[:STOP]
    for hosts, processes, workers in [(2, 2, 1), (8, 2, 0), (1, 1, 2)]:
        resumed = edit(fresh, data__workers=workers)
        names, steps = run(resumed, hosts, processes, STOP, END)
        assert names == {name} and steps == expected[STOP:], (hosts, workers)


def test_nothing_is_lost_or_repeated(straight):
    config, _ = straight
    loader = Loader(config)
    plan, drawn = loader.plan, []
    section = plan.packs_until(0)
    for number in range(section):
        drawn += plan.pack(number)
    assert len(set(drawn)) == len(drawn) == plan.section_size
    epochs = plan.section_size // len(plan.indexes[0])
    for epoch in range(epochs):
        examples = [draw.example for draw in drawn if draw.epoch == epoch]
        assert sorted(examples) == list(range(len(plan.indexes[0])))
