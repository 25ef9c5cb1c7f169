"""The plan: which examples make up pack 0, 1, 2, ... of a run.

It works from lengths alone (`Index`), and is a function of the indexes, the config and the seed.
Examples come data set by data set in proportion to the weights, in epochs of random order (`mix`);
condition dropout is drawn before lengths are measured; no example is split, and the oldest one
waiting always opens the next pack (`fill`).

The sequence of examples is cut into *sections* that are packed independently of each other, so they
can be planned in any order, by any number of processes, ahead of need, and give the same packs. A
planned section is a file that is mapped into memory: one row a drawn example.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inset_jax.core.config import Config, DropoutConfig
from inset_jax.data import columns, dropout, fill, pool
from inset_jax.data.index import Index, capacity_row, rows_of, sums
from inset_jax.data.mix import Draws, Mix

VERSION = 2
SECTION = 1 << 16  # drawn examples in a section; fewer for small data sets
SMALLEST_SECTION = 1 << 8
STAGE_EPOCHS = 1 << 16  # epochs of a stage are numbered from a multiple of this


class Draw(NamedTuple):
    """One example in a pack."""

    data_set: int
    example: int  # row of its index
    epoch: int


class Section(NamedTuple):
    """A planned section."""

    rows: np.ndarray  # int32 [draw, 4]: pack of the section, data set, example, epoch
    used: np.ndarray  # int64 [COLUMNS], what its examples take
    packs: int


class Plan:
    """Packs of examples by number; endless, or one pass over all examples."""

    def __init__(
        self,
        indexes: Sequence[Index],
        config: Config,
        endless: bool = True,
        drops: DropoutConfig | None = None,
        folder: Path | None = None,
        stage: int = 0,
    ):
        """Args:
        indexes: one a data set.
        endless: epoch after epoch, or each example once.
        drops: condition dropout; None drops nothing.
        folder: where sections are kept; None plans them in memory.
        stage: of the curriculum; each begins new epochs.
        """
        self.indexes = list(indexes)
        self.capacity = capacity_row(config.data.capacity)
        self._seed, self._drops, self.endless = config.run.seed, drops, endless
        self._null = int(config.model.null_token)  # what a dropped segment leaves
        weights = config.data.weights if endless else ()
        first_epoch = stage * STAGE_EPOCHS
        sizes = [len(index) for index in indexes]
        self._mix = Mix(sizes, weights, self._seed, first_epoch)
        examples = sum(sizes)
        self._total = None if endless else examples
        self.section_size = min(max(1 << (examples - 1).bit_length(), SMALLEST_SECTION), SECTION)
        # no wider than an epoch: small data sets would else be seen in blocks of large and small
        self._window = min(fill.WINDOW, examples)
        self.hash = columns.digest(
            VERSION,
            [index.key for index in indexes],
            [weights, first_epoch, self._seed, endless],
            [self.capacity.tolist(), self._null, drops and vars(drops)],
            [self.section_size, self._window, fill.WIDTHS],
        )
        self.folder = folder and Path(folder) / f"plan-{self.hash}"
        self._restart()

    def _restart(self) -> None:
        self._sections: dict[int, Section] = {}
        self._ends: list[int] = []  # packs up to the end of each section
        self._lock, self._planning = threading.Lock(), threading.Lock()

    def __getstate__(self):  # a worker process opens the sections, or plans them, for itself
        live = ("_sections", "_ends", "_lock", "_planning")
        return {name: value for name, value in self.__dict__.items() if name not in live}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._restart()

    @property
    def skipped(self) -> dict[str, dict[str, list[str]]]:
        """Data set -> reason -> ids of the examples that no pack will ever hold."""
        return {index.name: index.skipped for index in self.indexes if index.skipped}

    def pack(self, number: int) -> list[Draw]:
        """Returns the examples of a pack; [] beyond the end of a plan that is not endless."""
        place = self._find(number)
        if place is None:
            return []
        rows = self.section(place[0]).rows
        start, end = np.searchsorted(rows[:, 0], [place[1], place[1] + 1])
        return [Draw(*row) for row in rows[start:end, 1:].tolist()]

    def __len__(self) -> int:
        """Number of packs of a plan that is not endless."""
        assert self._total is not None, "an endless plan has no length"
        return self.packs_until(-(-self._total // self.section_size) - 1)

    def section_of(self, number: int) -> int:
        """Returns the section that a pack lies in; of a pack beyond the end, the last one."""
        place = self._find(number)
        return place[0] if place else len(self._ends) - 1

    def _find(self, number: int) -> tuple[int, int] | None:
        """Returns the section of a pack and its number there."""
        with self._lock:
            while (not self._ends or self._ends[-1] <= number) and self._grow():
                pass
            section = int(np.searchsorted(self._ends, number, side="right"))
            if section == len(self._ends):
                return None
            return section, number - (self._ends[section - 1] if section else 0)

    def _grow(self) -> bool:
        """Looks at one more section; False at the end of a plan that is not endless."""
        following = len(self._ends)
        if not self.draws_in(following):
            return False
        packs = self.section(following).packs
        self._ends.append((self._ends[-1] if self._ends else 0) + packs)
        return True

    def packs_until(self, section: int) -> int:
        """Returns the number of packs up to the end of a section."""
        with self._lock:
            while len(self._ends) <= section and self._grow():
                pass
            return self._ends[min(section, len(self._ends) - 1)]

    def draws_in(self, section: int) -> int:
        """Returns how many examples a section has; 0 beyond the end of a plan that has one."""
        if self._total is None:
            return self.section_size
        return max(min(self.section_size, self._total - section * self.section_size), 0)

    def section(self, number: int) -> Section:
        """Returns a section, from memory or its file; plans it where there is none."""
        if number not in self._sections:
            with self._planning:
                if number not in self._sections:
                    self._sections[number] = self._open(number)
        return self._sections[number]

    def _open(self, number: int) -> Section:
        if self.folder is None:
            return self._make(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"section-{number:06d}"
        with _locked(place.with_suffix(".lock")):
            stored = columns.load(place)
            if stored is None:
                made = self._make(number)
                meta = {"used": made.used.tolist(), "packs": made.packs}
                columns.save(place, {"rows": made.rows}, meta)
                stored = columns.load(place)
        arrays, meta = stored
        return Section(arrays["rows"], np.array(meta["used"]), meta["packs"])

    def _make(self, number: int) -> Section:
        draws = self._mix.draws(number * self.section_size, self.draws_in(number))
        lengths = self.measure(draws)
        pack = fill.fill_packs(lengths, self.capacity, self._window)
        order = np.argsort(pack, kind="stable")
        rows = np.stack([pack, *draws], axis=1)[order]
        return Section(rows, lengths.sum(axis=0), int(pack.max()) + 1)

    def sample(self, count: int) -> np.ndarray:
        """Returns what the first examples take after dropout, in order: int64 [draw, COLUMNS]."""
        return self.measure(self._mix.draws(0, count))

    def dropped(self, draw: Draw) -> np.ndarray:
        """Returns which segments of a drawn example condition dropout removes: bool [segment]."""
        index = self.indexes[draw.data_set]
        rows = index.segments(draw.example)
        if self._drops is None:
            return np.zeros(rows.stop - rows.start, bool)
        own = (index.code[rows], index.opens[rows], self._drops, self._seed)
        return dropout.draw(*own, index.ids[draw.example], draw.epoch)

    def lengths(self, draw: Draw) -> np.ndarray:
        """Returns what a drawn example takes after dropout: int64 [COLUMNS]."""
        return self.measure(Draws(*(np.array([part]) for part in draw)))[0]

    def measure(self, draws: Draws) -> np.ndarray:
        """Returns what drawn examples take after dropout: int64 [draw, COLUMNS].

        A dropped segment takes nothing, or the one token of `ModelConfig.null_token`.
        """
        result = np.ones((len(draws.example), len(self.capacity)), np.int64)
        for number, index in enumerate(self.indexes):
            own = np.flatnonzero(draws.data_set == number)
            if not len(own):
                continue
            rows, start = rows_of(index.start, draws.example[own])
            tokens = index.tokens[rows]
            if self._drops is not None:
                ids = (index.ids[example] for example in draws.example[own].tolist())
                names = zip(ids, draws.epoch[own].tolist(), strict=True)
                segments = (index.code[rows], index.opens[rows], start)
                gone = dropout.draw_many(*segments, self._drops, self._seed, names)
                tokens = np.where(gone[:, None], [self._null, 0, 0, 0], tokens)
            result[own, :-1] = sums(tokens, start)
        return result

    def room(self, draws: Sequence[Draw]) -> np.ndarray:
        """Returns what is left of the capacities beside these examples: int64 [COLUMNS]."""
        return self.capacity - sum((self.lengths(draw) for draw in draws), np.zeros(5, np.int64))

    def fill(self, sections: Iterable[int]) -> np.ndarray:
        """Returns the share of the capacities that packs of some sections use: float [COLUMNS]."""
        made = [self.section(number) for number in sections]
        return sum(s.used for s in made) / sum(s.packs for s in made) / self.capacity

    def make_sections(self, numbers: Sequence[int], workers: int) -> None:
        """Plans sections in worker processes; needs a folder.

        Raises:
          ChildProcessError: a process died twice at one section; the others are kept.
        """
        assert self.folder, "sections of a plan in memory cannot be shared"
        name = lambda number: f"{self.folder}: planning section {number}"
        list(pool.each(functools.partial(_make_section, self), numbers, workers, name))


def _make_section(plan: Plan, number: int) -> None:
    plan.section(number)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time in; a process that dies lets go."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
