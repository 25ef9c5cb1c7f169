"""What a person wants to know of a plan before a run: what is left out, fill, better capacities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inset_jax.data.course import Course, Leg, best_capacity
from inset_jax.data.index import COLUMNS

SHOWN = 3  # ids in a line


def report(course: Course, sections: int, workers: int, total: int | None) -> Iterator[str]:
    """Plans the first sections of every stage and yields lines about them.

    Args:
      workers: processes that plan; 0 plans in this one.
      total: und and gen capacity together that is to be divided; None keeps the sum.
    """
    for leg in course.legs:
        if len(course.legs) > 1:
            yield f"stage from batch {leg.batch} on"
        if workers:
            leg.plan.make_sections(range(sections), workers)
        yield from _data_sets(leg)
        yield from _fill(leg, sections, total)
    yield f"plan {course.hash}"


def _data_sets(leg: Leg) -> Iterator[str]:
    for index in leg.plan.indexes:
        scaled = int(np.sum(index.percent < 100))
        yield (
            f"{index.name}: {len(index):,} examples, references of {scaled:,} scaled down "
            f"(to {index.percent.min()}% at least)"
        )
        for reason, ids in index.skipped.items():
            shown = ", ".join(ids[:SHOWN]) + ", ..." * (len(ids) > SHOWN)
            yield f"  left out: {len(ids):,}: {reason}: {shown}"


def _fill(leg: Leg, sections: int, total: int | None) -> Iterator[str]:
    plan = leg.plan
    made = [plan.section(number) for number in range(sections)]
    packs, examples = sum(own.packs for own in made), sum(len(own.rows) for own in made)
    used = sum(own.used for own in made)
    shares = plan.fill(range(sections))
    yield f"{examples:,} examples in {packs:,} packs ({examples / packs:.1f} a pack); filled:"
    for name, capacity, share in zip(COLUMNS, plan.capacity, shares, strict=True):
        yield f"  {name:<14} {share:7.2%} of {capacity:,}"
    und, gen = best_capacity(used[:2] / examples, total or int(plan.capacity[:2].sum()))
    yield (
        f"an example has {used[0] / examples:,.0f} und and {used[1] / examples:,.0f} gen tokens: "
        f"data.capacity.und={und} data.capacity.gen={gen} fit best"
    )
    ratio = (und / gen) / (plan.capacity[0] / plan.capacity[1])
    if used[:2].all() and abs(ratio - 1) > 0.02:
        yield (
            f"warning: the capacities are off that ratio by {abs(ratio - 1):.0%}; one stream is "
            f"filled less by about as much"
        )
