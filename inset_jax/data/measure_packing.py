"""How full packs are, and how long planning takes; beside BAGEL's greedy rule.

`python -m tools.benchmark packing` and `planning` print what is measured here.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.core.config import Config, SizeLimits, edit
from inset_jax.data import mixes
from inset_jax.data.course import best_capacity
from inset_jax.data.index import Index, measure
from inset_jax.data.plan import Plan

TOTAL = 32768  # tokens of a pack
SMALL_TOTAL = 16384  # of the mix without adversaries, too
REFERENCES = {  # largest reference -> rule for its size, and the least fill of either stream
    518: (SizeLimits(518, 224, 14, 14 * 14 * 9 * 1024), 0.99),
    980: (SizeLimits(980, 378, 14, 2_007_040), 0.98),
}
EXAMPLES = 1_000_000  # planned ...
SECONDS = 180  # ... in at most this
# BAGEL's loader: a pack of 36,864 tokens at most is done at 32,768; a sample that does not fit
# waits in a buffer of 50, which is looked at first while a pack is below 16,384
GREEDY_DONE, GREEDY_BUFFER, GREEDY_PREFERS = 32768 / 36864, 50, 16384 / 36864


class Fill(NamedTuple):
    """Shares of the two capacities that are filled."""

    und: float
    gen: float

    @classmethod
    def of(cls, lengths: np.ndarray, pack: np.ndarray, capacity: np.ndarray) -> Fill:
        """lengths: int [example, column]; pack: int [example], -1 for one that is in none."""
        packs = int(pack.max()) + 1
        used = lengths[pack >= 0, :2].sum(axis=0)
        return cls(*(used / packs / capacity[:2]).tolist())


def greedy(lengths: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Packs by BAGEL's rule, where a sample fits that fits into both streams.

    Args:
      lengths: int [example, column], in the order they come.

    Returns:
      int32 [example], number of the pack; -1 for those still waiting at the end.
    """
    pack = np.full(len(lengths), -1, np.int32)
    rows, limit = lengths[:, :2].tolist(), capacity[:2].tolist()
    total = sum(limit)
    waiting: deque[int] = deque()
    used, number, coming = [0, 0], 0, 0
    while coming < len(rows):
        from_buffer = bool(waiting) and sum(used) < GREEDY_PREFERS * total
        example = waiting.popleft() if from_buffer else coming
        coming += not from_buffer
        own = rows[example]
        fits = used[0] + own[0] <= limit[0] and used[1] + own[1] <= limit[1]
        if fits:
            pack[example] = number
            used = [used[0] + own[0], used[1] + own[1]]
        elif len(waiting) < GREEDY_BUFFER and not from_buffer:
            waiting.append(example)
            continue
        else:  # BAGEL loses this sample: it is neither in the pack nor in the buffer
            pass
        if not fits or sum(used) >= GREEDY_DONE * total:
            used, number = [0, 0], number + 1
    pack[pack == number] = -1  # begun, not done
    return pack


def fitted(
    config: Config, name: str, count: int, longest: int, total: int = TOTAL
) -> tuple[list[Index], Config]:
    """Measures a made-up mix and gives the config the capacities that fit it, `total` in all."""
    made, weights = mixes.MIXES[name](count)
    limits, _ = REFERENCES[longest]
    roomy = edit(
        config,
        data__vit_size=limits,
        data__weights=weights,
        data__train=tuple(own.name for own in made),
        data__smallest_reference=0.5,
        data__max_example_tokens=min(config.data.max_example_tokens, total // 2),
    )
    und = gen = total // 2
    for _ in range(3):  # what is scaled to fit depends on the capacities, and the mean on that
        capacity = dict(und=und, gen=gen, vit=und, cross_entropy=und, examples=1024)
        roomy = edit(roomy, **{f"data__capacity__{k}": v for k, v in capacity.items()})
        indexes = [measure(own, roomy) for own in made]
        und, gen = best_capacity(mean_tokens(indexes, roomy), total)
        if (und, gen) == (capacity["und"], capacity["gen"]):
            break
    return indexes, roomy


def mean_tokens(indexes: list[Index], config: Config, most: int = 20_000) -> np.ndarray:
    """Returns the und and gen tokens of an example of the mix after dropout: float64 [2].

    Args:
      most: examples that are measured; dropout is drawn for each.
    """
    plan = Plan(indexes, config, True, config.data.dropout)
    return plan.sample(most)[:, :2].mean(axis=0)


def packing(config: Config, count: int) -> list[dict]:
    """Packs every mix with references of both sizes, by the planner and by BAGEL's rule."""
    rows = [(name, longest, TOTAL) for name in mixes.MIXES for longest in REFERENCES]
    rows += [("mixed", longest, SMALL_TOTAL) for longest in REFERENCES]
    return [_packed(config, count, *row) for row in rows]


def _packed(config: Config, count: int, name: str, longest: int, total: int) -> dict:
    indexes, own = fitted(config, name, count, longest, total)
    plan = Plan(indexes, own, True, own.data.dropout)
    began = time.perf_counter()
    section = plan.section(0)
    seconds = time.perf_counter() - began
    lengths = plan.sample(len(section.rows))
    ours = (section.used[:2] / section.packs / plan.capacity[:2]).tolist()
    pack = greedy(lengths, plan.capacity)
    has_bar = name == "mixed" and total == TOTAL
    return {
        "mix": name,
        "longest_reference": longest,
        "total": total,
        "capacity": plan.capacity[:2].tolist(),
        "examples": len(section.rows),
        "packs": section.packs,
        "scaled_down": sum(int(np.sum(i.percent < 100)) for i in indexes)
        / sum(len(i) for i in indexes),
        "left_out": sum(len(ids) for index in indexes for ids in index.skipped.values()),
        "fill": ours,
        "greedy_fill": list(Fill.of(lengths, pack, plan.capacity)),
        "greedy_lost": int(np.sum(pack < 0)),
        "milliseconds_an_example": seconds / len(section.rows) * 1e3,
        "bar": REFERENCES[longest][1] if has_bar else None,
    }


def packing_table(results: list[dict]) -> str:
    """Returns the results as lines to read."""
    lines = [
        "mix        references  und, gen capacity  fill und  gen    BAGEL's rule  ms/ex.  scaled"
    ]
    for row in results:
        und, gen = row["capacity"]
        ours, theirs = row["fill"], row["greedy_fill"]
        lines.append(
            f"{row['mix']:<10} {row['longest_reference']:>7} px  {und:>7} {gen:>7}   "
            f"{ours[0]:>7.2%} {ours[1]:>7.2%}  {theirs[0]:>6.1%} {theirs[1]:>6.1%}"
            f"    {row['milliseconds_an_example']:.3f}"
            f"   {row['scaled_down']:>5.1%}, {row['left_out']} left out"
        )
    return "\n".join(lines)


def packing_misses(results: list[dict]) -> list[str]:
    return [
        f"{row['mix']} with references of {row['longest_reference']} px: fill "
        f"{min(row['fill']):.2%}, expected {row['bar']:.0%}"
        for row in results
        if row["bar"] and min(row["fill"]) < row["bar"]
    ]


def planning(config: Config, count: int, workers: int) -> dict:
    """Times the plan of one epoch of made-up examples, in a temporary folder."""
    indexes, own = fitted(config, "mixed", count, 518)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(indexes, own, True, own.data.dropout, Path(folder))
        sections = -(-count // plan.section_size)
        began = time.perf_counter()
        plan.make_sections(range(sections), workers)
        seconds = time.perf_counter() - began
        made = [plan.section(number) for number in range(sections)]
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        examples = sum(len(section.rows) for section in made)
        return {
            "examples": examples,
            "packs": sum(section.packs for section in made),
            "workers": workers,
            "seconds": seconds,
            "seconds_a_million": seconds / examples * 1e6,
            "bytes_an_example": size / examples,
            "fill": plan.fill(range(sections))[:2].tolist(),
        }
