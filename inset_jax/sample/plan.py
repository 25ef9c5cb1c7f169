"""From requests to arrays: which contexts are needed, and what a step runs over them.

A request is one sentence and the pictures to draw from it. Guidance asks for it in up to three
branches; each distinct context (what a branch leaves of a sentence) becomes one example, followed
by a noise segment for every picture that is drawn from it. Noise segments see their context and
themselves, nothing sees them, and positions do not advance over them: pictures of one sentence, and
of all sentences in the empty context, share its keys. The layout is the training pipeline's own.

NumPy only. Letters as in `core.batch`, and R: rows of the state, the latent tokens being drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inset_jax.core.batch import STREAMS, Pack, Visibility
from inset_jax.core.config import ModelConfig
from inset_jax.core.visibility import NOISE, for_queries, reading_intervals
from inset_jax.data.layout import GEN, Item, Layout, layout
from inset_jax.sample.cache import bucket, pad, still_pack
from inset_jax.sample.guidance import BRANCHES, MODES


class Picture(NamedTuple):
    """A picture to draw."""

    size: tuple[int, int]  # rows and columns of latent tokens
    noise: np.ndarray  # float32 [rows * columns, L], where the flow starts


class Request(NamedTuple):
    """One sentence, and what to draw from it."""

    items: tuple[Item, ...]  # the sentence in reading order: "text", "vit" and "clean"
    pictures: tuple[Picture, ...]
    scales: tuple[float, float] = (1.0, 1.0)  # of the guidance's two stages
    plan: Item | None = None  # a text the model wrote after the sentence, before drawing


class Step(NamedTuple):
    """What one evaluation runs, [P, ...]: the noise segments of some branches of all pictures."""

    token: np.ndarray  # int32 [P, U], the segments' markers
    position: dict[str, np.ndarray]  # a stream: int32 [P, A, T]
    place: np.ndarray  # int32 [P, G], row of the latent position table
    visibility: dict[str, Visibility]  # of the keys [kept; own und; own gen]
    source: np.ndarray  # int32 [P, G], the row of the state that each latent token reads
    rows: (
        np.ndarray
    )  # int32 [P, branches, R], the row of the gen stream that each branch answers at
    first: np.ndarray  # float32 [P, R], scale of stage 1
    second: np.ndarray  # float32 [P, R], scale of stage 2
    picture: np.ndarray  # int32 [P, R], number of the picture in its pack; -1 is padding


class Plan(NamedTuple):
    """Everything a drawing needs, as arrays."""

    still: Pack | None  # [P, ...] all contexts; None if all are empty
    guided: Step  # all branches
    plain: Step  # the conditional branch alone, for times outside the guidance interval
    state: np.ndarray  # float32 [P, R, L], the initial noise
    spans: list[tuple[int, slice]]  # of each picture, in the order of requests: its pack and rows

    def pictures_of(self, state: np.ndarray) -> list[np.ndarray]:
        """Takes a state [P, R, L] apart: [rows * columns, L] of each picture."""
        return [state[pack, rows] for pack, rows in self.spans]


def branch_items(request: Request, branch: str, config: ModelConfig) -> tuple[Item, ...]:
    """What a branch leaves of a sentence. Without a null token, what is removed leaves no trace."""
    items = request.items + ((request.plan,) if request.plan is not None else ())
    roles = [item.kind for item in request.items] + ["plan"] * (request.plan is not None)
    stays = BRANCHES[branch](roles)
    if config.null_token:
        pairs = zip(items, stays, strict=True)
        return tuple(item if stay else item._replace(dropped=True) for item, stay in pairs)
    return tuple(item for item, stay in zip(items, stays, strict=True) if stay)


def plan(requests: Sequence[Request], mode: str, config: ModelConfig, packs: int = 1) -> Plan:
    """Lays out a drawing: the still contexts once, and the steps over them.

    Args:
      requests: sentences of any lengths and picture sizes.
      mode: a name in `guidance.MODES`.
      packs: P; requests are spread over them by length.

    Raises:
      ValueError: a picture or image larger than its position table, by its size.
    """
    pack_of = _spread(requests, packs)
    groups = [
        [r for r, own in zip(requests, pack_of, strict=True) if own == p] for p in range(packs)
    ]
    drafts = [_draft(group, mode, config) for group in groups]
    contexts = [draft.contexts for draft in drafts]
    still, sizes = still_pack(contexts, config)
    laid = [layout(draft.examples(), config) for draft in drafts]
    rows = bucket(max(draft.start[-1] for draft in drafts))
    guided = [_step(d, own, sizes, range(3), rows) for d, own in zip(drafts, laid, strict=True)]
    plain = [_step(d, own, sizes, range(1), rows) for d, own in zip(drafts, laid, strict=True)]
    state = np.zeros((packs, rows, config.latent_dim), np.float32)
    for pack, draft in enumerate(drafts):
        for picture, start in zip(draft.pictures, draft.start, strict=False):
            state[pack, start : start + len(picture.noise)] = picture.noise
    spans, taken = [], [0] * packs
    for request, pack in zip(requests, pack_of, strict=True):
        for _ in request.pictures:
            first, end = drafts[pack].start[taken[pack] :][:2]
            spans.append((pack, slice(int(first), int(end))))
            taken[pack] += 1
    return Plan(still, _stack_steps(guided), _stack_steps(plain), state, spans)


class _Draft(NamedTuple):
    """One pack's contexts, pictures, and which context answers for which picture."""

    contexts: list[tuple[Item, ...]]
    pictures: list[Picture]
    start: np.ndarray  # int [pictures + 1], first row of each picture in the state
    drawn: list[list[int]]  # of each context, the pictures drawn from it
    answer: np.ndarray  # int [branches, pictures], the context
    scales: np.ndarray  # float32 [2, pictures]

    def examples(self) -> list[list[Item]]:
        """The contexts with their noise segments."""
        target = [Item("target", size=picture.size) for picture in self.pictures]
        return [
            [*items, *(target[n] for n in drawn)]
            for items, drawn in zip(self.contexts, self.drawn, strict=True)
        ]


def _draft(requests: Sequence[Request], mode: str, config: ModelConfig) -> _Draft:
    number: dict[tuple, int] = {}
    contexts, drawn, pictures, answer, scales = [], [], [], [], []
    for request in requests:
        acts = MODES[mode].acts(*request.scales)
        # a stage that does not act reads the conditional branch, at scale 1: the identity
        first, second = (
            branch if act else "full"
            for branch, act in zip((MODES[mode].first, MODES[mode].second), acts, strict=True)
        )
        own = []
        for branch in ("full", first, second):
            items = branch_items(request, branch, config)
            key = tuple(("dropped", item.kind) if item.dropped else id(item) for item in items)
            if key not in number:
                number[key] = len(contexts)
                contexts.append(items)
                drawn.append([])
            own.append(number[key])
        for picture in request.pictures:
            for context in dict.fromkeys(own):
                drawn[context].append(len(pictures))
            pictures.append(picture)
            answer.append(own)
            scales.append([s if act else 1.0 for s, act in zip(request.scales, acts, strict=True)])
    return _Draft(
        contexts,
        pictures,
        np.cumsum([0, *(math.prod(picture.size) for picture in pictures)]),
        drawn,
        np.asarray(answer, np.int64).reshape(-1, 3).T,
        np.asarray(scales, np.float32).reshape(-1, 2).T,
    )


def _step(draft: _Draft, laid: Layout, still: tuple[int, int], branches: range, rows: int) -> Step:
    """One pack's step over some branches, not yet padded to the sizes of the other packs."""
    segment = np.repeat(np.arange(len(laid.segments.length)), laid.segments.length)
    is_noise = np.asarray(laid.segments.kind) == NOISE
    # noise segments in reading order: (context, picture)
    targets = [(c, n) for c, drawn in enumerate(draft.drawn) for n in drawn]
    wanted = {(draft.answer[b, n], n) for b in branches for n in range(len(draft.pictures))}
    chosen = np.zeros(len(is_noise), bool)
    chosen[is_noise] = [target in wanted for target in targets]
    runs, is_gen, stays = chosen[segment], laid.stream == GEN, ~is_noise[segment]
    reading = reading_intervals(laid.segments)
    keys = [stays & ~is_gen, stays & is_gen, runs & ~is_gen, runs & is_gen]
    visibility = {}
    for name, asks in zip(STREAMS, keys[2:], strict=True):
        sides = [side.astype(np.int32) for side in for_queries(reading, asks)]
        parts = [[side[key] for key in keys] for side in sides]
        kept = [[pad(part, size) for part, size in zip(p, still, strict=False)] for p in parts]
        visibility[name] = Visibility(
            *(np.concatenate([*k, *p[2:]]) for k, p in zip(kept, parts, strict=True))
        )
    start, source, at = {}, [np.zeros(0, np.int64)], 0
    for context, n in (target for target in targets if target in wanted):
        start[context, n] = at
        source.append(np.arange(draft.start[n], draft.start[n + 1]))
        at += len(source[-1])
    count = np.diff(draft.start)
    answers = [
        np.concatenate(
            [np.zeros(0, np.int64)]
            + [start[draft.answer[b, n], n] + np.arange(count[n]) for n in range(len(count))]
        )
        for b in branches
    ]
    return Step(
        token=laid.id[keys[2]],
        position={name: laid.position[:, key] for name, key in zip(STREAMS, keys[2:], strict=True)},
        place=laid.place[runs[is_gen]],
        visibility=visibility,
        source=np.concatenate(source).astype(np.int32),
        rows=pad(np.stack(answers).astype(np.int32), rows),
        first=pad(np.repeat(draft.scales[0], count), rows, 1),
        second=pad(np.repeat(draft.scales[1], count), rows, 1),
        picture=pad(np.repeat(np.arange(len(count), dtype=np.int32), count), rows, -1),
    )


def _stack_steps(steps: Sequence[Step]) -> Step:
    """Pads the steps of all packs to common sizes and puts P in front."""
    und = bucket(max(len(step.token) for step in steps))
    gen = bucket(max(len(step.source) for step in steps))

    def visibility(step: Step, name: str) -> Visibility:
        own = len(step.token), len(step.source)
        sides = []
        for side in step.visibility[name]:
            kept, und_keys, gen_keys = np.split(side, np.cumsum([len(side) - sum(own), own[0]]))
            sides.append(np.concatenate([kept, pad(und_keys, und), pad(gen_keys, gen)]))
        return Visibility(*sides)

    size = dict(zip(STREAMS, (und, gen), strict=True))
    join = lambda values: np.stack(list(values))
    sides = {name: [visibility(step, name) for step in steps] for name in STREAMS}
    return Step(
        token=join(pad(step.token, und) for step in steps),
        position={n: join(pad(step.position[n], size[n]) for step in steps) for n in STREAMS},
        place=join(pad(step.place, gen) for step in steps),
        visibility={n: Visibility(*map(join, zip(*sides[n], strict=True))) for n in STREAMS},
        source=join(pad(step.source, gen) for step in steps),
        **{name: join(getattr(s, name) for s in steps) for name in Step._fields[5:]},
    )


def _spread(requests: Sequence[Request], packs: int) -> list[int]:
    """Gives each request a pack: the longest first, each to the pack with the least work."""
    work = [
        sum(math.prod(picture.size) for picture in request.pictures) + len(request.items)
        for request in requests
    ]
    total, own = [0] * packs, [0] * len(requests)
    for number in sorted(range(len(requests)), key=lambda n: -work[n]):
        own[number] = total.index(min(total))
        total[own[number]] += work[number]
    return own
