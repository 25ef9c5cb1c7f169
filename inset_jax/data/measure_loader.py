"""Speed and memory of the loader; `python -m tools.benchmark loader` prints what is measured here.

Seconds are those of one core (processor time of one thread). The records are made up: the mix of
`mixes.mixed` with its histograms of sizes, pictures of smooth colours and noise as JPEGs of quality
90 (about 2.5 bits a pixel).
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from inset_jax.core.config import Config, edit
from inset_jax.data import bagel_way, image, measure_packing, mixes, prepare
from inset_jax.data.batch import BatchMaker, HostBatch
from inset_jax.data.index import build_index
from inset_jax.data.keyed import keyed, normal
from inset_jax.data.loader import Loader, open_data
from inset_jax.data.pack import Item, assemble, layout, stack
from inset_jax.data.record import Example, Segment, write_records
from inset_jax.data.text import make_small_tokenizer

BARS = {"of_plain": 0.9, "of_bagel": 2.0}
POOL = 48  # distinct pictures of each histogram
WORDS = "a the red blue old small dog cat chair lamp tree boat stands sits beside under on of in"
# a v5p host as its vendor states it: chips, bfloat16 operations a second and chip, cores
HOST = {"chips": 4, "flops": 459e12, "cores": 208}
ACTIVE, UTILISATION = 7.6e9, 0.5  # parameters that a token meets; share of the peak, hoped for


def picture(random: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of smooth colours with a little noise."""
    coarse = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = random.normal(0, 5, (height, width, 1)).astype(np.float32)
    pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class _Maker:
    """Makes up examples from a pool of pictures."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self._words = WORDS.split()
        self._pools = {}
        for name in ("REFERENCE_SIDE", "TARGET_SIDE"):
            sizes = mixes.pictures(self._random, getattr(mixes, name), POOL).tolist()
            self._pools[name] = [(picture(self._random, *size), *size) for size in sizes]

    def text(self, histogram) -> Segment:
        words = self._random.choice(self._words, int(mixes.draw(self._random, histogram, 1)[0]))
        return Segment("text", text=" ".join(words))

    def image(self, kind: str, pool: str) -> Segment:
        data, width, height = self._pools[pool][self._random.integers(POOL)]
        return Segment(kind, image=data, width=width, height=height)

    def example(self, kind: str, number: int) -> Example:
        target = self.image("target", "TARGET_SIDE")
        if kind == "t2i":
            segments = [self.text(mixes.CAPTION)]
        elif kind == "editing":
            source = self.image("vae", "TARGET_SIDE")
            reference = Segment("vit", image=source.image, width=source.width, height=source.height)
            segments = [source, reference, self.text(mixes.INSTRUCTION)]
        else:
            segments = []
            low, high = mixes.REFERENCES
            for _ in range(self._random.integers(low, high + 1)):
                segments += [self.text(mixes.PIECE), self.image("vit", "REFERENCE_SIDE")]
        return Example(f"{kind}-{number}", (*segments, target), kind, source="made up")


def make_records(config: Config, folder: Path, count: int, seed: int = 0) -> Config:
    """Writes `count` examples of the mix and a tokenizer; returns the config that reads them."""
    maker = _Maker(seed)
    shares = {"image-interleaved": 0.2, "video-interleaved": 0.2, "editing": 0.1, "t2i": 0.5}
    for kind, share in shares.items():
        examples = [maker.example(kind, n) for n in range(max(round(count * share), 1))]
        write_records(folder / kind, {"train": examples})
    tokenizer = make_small_tokenizer([WORDS], 512)
    tokenizer.save(folder)
    limits, _ = measure_packing.REFERENCES[518]
    config = edit(
        config,
        model__llm__vocab_size=512,
        model__tokens=tokenizer.special_ids(),
        data__train=tuple(str(folder / kind) for kind in shares),
        data__weights=tuple(shares.values()),
        data__tokenizer=str(folder),
        data__vit_size=limits,
        data__packs=1,
        data__prefetch=2,
    )
    und = gen = measure_packing.TOTAL // 2
    room = dict(vit=und, cross_entropy=und, examples=256)
    config = edit(config, **{f"data__capacity__{name}": size for name, size in room.items()})
    _, records, _ = open_data(config, "train")
    indexes = [build_index(own, tokenizer, config) for own in records]
    mean = measure_packing.mean_tokens(indexes, config)
    und, gen = measure_packing.best_capacity(mean, measure_packing.TOTAL)
    return edit(config, data__capacity__und=und, data__capacity__gen=gen, data__capacity__vit=und)


class Bench:
    """The same packs, loaded in several ways; each returns the tokens that it packed."""

    def __init__(self, config: Config, packs: int):
        self.config, self.packs = config, packs
        self.tokenizer, self.records, course = open_data(config, "train")
        self.plan = course.legs[0].plan
        self.make = BatchMaker(course, self.records, self.tokenizer, range(1))
        self.draws = [draw for number in range(packs) for draw in self.plan.pack(number)]
        self.tokens = sum(int(self.plan.lengths(draw)[:2].sum()) for draw in self.draws)
        self.images = [image for draw in self.draws for image in self._images(draw)]

    def read(self, draw) -> Example:
        return self.records[draw.data_set][self.plan.indexes[draw.data_set].number[draw.example]]

    def outline(self, draw, example: Example) -> list[Item]:
        percent = int(self.plan.indexes[draw.data_set].percent[draw.example])
        return prepare.outline(example, self.tokenizer, self.config, percent)

    def _images(self, draw):
        """Yields the bytes of the images that are packed, and their sizes there in pixels."""
        example = self.read(draw)
        items, gone = self.outline(draw, example), self.plan.dropped(draw)
        for segment, item, dropped in zip(example.segments, items, gone, strict=True):
            if segment.image and not dropped:
                stride = prepare.limits_of(segment.kind, self.config)[1]
                yield segment.image, (item.size[1] * stride, item.size[0] * stride)

    def ours(self) -> int:
        for number in range(self.packs):
            assert isinstance(self.make(number), HostBatch)
        return self.tokens

    def plain(self) -> int:
        """Decodes and resizes the images that our packs hold, from memory, and nothing else."""
        for data, size in self.images:
            decoded = Image.open(io.BytesIO(data)).convert("RGB")
            np.asarray(decoded.resize(size, Image.Resampling.BICUBIC))
        return self.tokens

    def bagel(self, dense: bool = False) -> int:
        """BAGEL's way over the same examples."""
        examples = ((self.read(draw), draw.epoch) for draw in self.draws)
        total = int(self.plan.capacity[:2].sum())
        made = bagel_way.batches(examples, self.tokenizer, self.config, total, dense)
        return sum(tokens for _, tokens in made)

    def parts(self) -> dict[str, float]:
        """Returns the seconds that each part of our way takes, one after the other."""
        spent: Counter[str] = Counter()

        def timed(name, function, *arguments):
            began = time.thread_time()
            result = function(*arguments)
            spent[name] += time.thread_time() - began
            return result

        model, capacity = self.config.model, self.config.data.capacity
        for number in range(self.packs):
            packed, names = [], []
            for draw in timed("plan", self.plan.pack, number):
                example = timed("read", self.read, draw)
                items = timed("tokenise, sizes", self.outline, draw, example)
                gone = timed("plan", self.plan.dropped, draw)
                filled = timed("fill", prepare.fill, example, items, gone, self.config, draw.epoch)
                packed.append(filled)
                names.append(example.id)
                for item in filled:
                    if item.posterior_noise is not None:
                        timed("noise", _noise, item)
            laid = timed("lay out", layout, packed, model, names)
            timed("patches, two streams", lambda p: stack([assemble(p, capacity, model)]), laid)
        for data, size in self.images:
            decoded = timed("decode", image.load, data)
            timed("resize", image.resize_to, decoded, *size)
        rest = spent.pop("fill") - sum(spent[name] for name in ("decode", "resize", "noise"))
        return {**spent, "other": max(rest, 0.0)}


def _noise(item: Item) -> None:
    """Draws what `prepare.fill` draws for an image of the gen stream."""
    normal(keyed("posterior", 0, "", 0), item.posterior_noise.shape)
    if item.noise is not None:
        normal(keyed("noise", 0, "", 0), item.noise.shape)


def speed(config: Config, packs: int, rounds: int) -> dict:
    """Times all ways in turn, several rounds; medians count, of ratios those within a round."""
    bench = Bench(config, packs)
    ways = {
        "ours": bench.ours,
        "plain": bench.plain,
        "bagel": bench.bagel,
        "bagel_dense": lambda: bench.bagel(dense=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.thread_time()
            tokens = way()
            rates[name].append(tokens / (time.thread_time() - began))
    middle = {name: float(np.median(own)) for name, own in rates.items()}
    ratio = lambda name: float(np.median(np.divide(rates["ours"], rates[name])))
    parts = bench.parts()
    return {
        "packs": packs,
        "rounds": rounds,
        "tokens_per_second_and_core": middle,
        "fastest": {name: max(own) for name, own in rates.items()},
        "images": len(bench.images),
        "images_per_second_and_core": len(bench.images) * middle["ours"] / bench.tokens,
        "of_plain": ratio("plain"),
        "of_bagel": ratio("bagel"),
        "of_bagel_dense": ratio("bagel_dense"),
        "milliseconds_a_pack": {name: own / packs * 1e3 for name, own in parts.items()},
        "host": host(middle["ours"]),
    }


def host(rate: float) -> dict:
    """How many cores of a v5p host feed its chips, at a rate of tokens a second and core."""
    # forward, backward and the forward pass again (remat): 8 operations a parameter and token
    needed = HOST["chips"] * HOST["flops"] * UTILISATION / (8 * ACTIVE)
    return {
        "tokens_per_second_needed": needed,
        "cores_needed": needed / rate,
        "cores_there": HOST["cores"],
    }


def misses(figures: dict) -> list[str]:
    return [
        f"{name}: {figures[name]:.2f}, expected {bar:.1f}"
        for name, bar in BARS.items()
        if figures[name] < bar
    ]


def memory(config: Config, minutes: float, workers: int) -> list[tuple[float, float]]:
    """Streams batches and returns (seconds, resident megabytes of all processes) every second."""
    loader = Loader(edit(config, data__workers=workers))
    began, curve = time.monotonic(), []
    while (now := time.monotonic() - began) < minutes * 60:
        next(loader)
        if not curve or now - curve[-1][0] >= 1:
            curve.append((now, sum(map(_resident, [os.getpid(), *_children()])) / 1e6))
    loader.close()
    return curve


def growth(curve: list[tuple[float, float]]) -> float:
    """Megabytes a minute, by least squares over the second half of a curve."""
    seconds, megabytes = np.array(curve[len(curve) // 2 :]).T
    return float(np.polyfit(seconds / 60, megabytes, 1)[0])


def _children() -> list[int]:
    """Numbers of the worker processes of this one."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.append(int(name))
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def table(figures: dict) -> str:
    """Returns the figures as lines to read."""
    rates = figures["tokens_per_second_and_core"]
    names = {
        "ours": "this loader",
        "plain": "PIL decode + resize of the same images",
        "bagel": "BAGEL's way (flex attention)",
        "bagel_dense": "BAGEL's way (dense masks)",
    }
    lines = [
        f"{names[name]:<40} {rate:>9,.0f} tokens/s a core (fastest {figures['fastest'][name]:,.0f})"
        for name, rate in rates.items()
    ]
    lines += [
        f"of plain {figures['of_plain']:.2f}, of BAGEL's way {figures['of_bagel']:.2f} (with dense "
        f"masks {figures['of_bagel_dense']:.2f}), {figures['images_per_second_and_core']:.0f} "
        "images/s a core",
        "where the time goes, ms a pack:",
    ]
    parts = figures["milliseconds_a_pack"]
    whole = sum(parts.values())
    for name, own in sorted(parts.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {name:<22} {own:>7.1f}  {own / whole:>5.1%}")
    need = figures["host"]
    lines.append(
        f"a v5p host of {HOST['chips']} chips at {UTILISATION:.0%} of their peak takes "
        f"{need['tokens_per_second_needed']:,.0f} tokens/s: {need['cores_needed']:.1f} of its "
        f"{need['cores_there']} cores"
    )
    return "\n".join(lines)
