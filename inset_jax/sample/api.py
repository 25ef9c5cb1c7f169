"""The Python API: load a model once, give it sentences with pictures, get pictures or text.

generator = Generator.load("checkpoint")
[picture] = generator.draw(["A ", cat, " sits on a ", bench], seed=0).pictures
text = generator.answer(["What is on the ", bench, "?"])
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from inset_jax.checkpoint import load
from inset_jax.core import mesh as core_mesh
from inset_jax.core import overrides
from inset_jax.core.config import ComputeConfig, Config, MeshConfig, SampleConfig
from inset_jax.data import text as texts
from inset_jax.data.layout import Item
from inset_jax.sample import guidance
from inset_jax.sample.plan import Picture, Request
from inset_jax.sample.prompt import (
    Prompt,
    check_length,
    compose,
    picture_size,
    start_noise,
    upright,
)
from inset_jax.sample.sampler import Sampler, pack_count

Watch = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True)
class Options:
    """How to draw or to answer."""

    settings: SampleConfig | None = None  # None: the checkpoint's own, or its kind's preset
    pictures: int = 1  # of each prompt, from seeds counting up
    think: bool = False  # write a plan first (BAGEL), and draw or answer after it
    max_tokens: int = 1024  # of a plan or an answer
    temperature: float = 0.0  # of the words; 0 takes the likeliest


class Drawn(NamedTuple):
    """The pictures of one prompt and how they came about."""

    pictures: list[Image.Image]
    seeds: list[int]
    plan: str  # what the model wrote before drawing; "" without `think`
    settings: SampleConfig  # alpha and beta are those that were used
    evaluations: int  # forward passes of the flow, each over all guidance branches


class Generator:
    """A loaded model. Calls of similar sizes share compiled programs."""

    def __init__(
        self,
        config: Config,
        params: dict[str, Any],
        tokenizer: texts.Tokenizer,
        info: dict[str, Any] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Wraps what is already in memory; `load` reads it from disk.

        Args:
          params: {"model": tree, "vae": tree}.
          info: where the model comes from, for messages and metadata.
          mesh: the devices that the parameters are spread over.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.info = dict(info or {"kind": "memory", "path": ""})
        self.mesh = mesh
        # nothing is differentiated here, so nothing is recomputed
        compute = dataclasses.replace(config.compute, remat="none")
        self.sampler = Sampler(config.model, params, compute)

    @classmethod
    def load(
        cls,
        path: str,
        weights: str = "ema",
        dtype: str | None = None,
        tokenizer: str = "",
        mesh: MeshConfig | None = None,
        is_int8: bool = False,
    ) -> Generator:
        """Loads a training run's folder, one of its checkpoints, or a BAGEL-format folder.

        Args:
          weights: "ema" or "params".
          dtype: of the computation and the parameters, "float32" or "bfloat16"; None: float32 on a
            CPU, bfloat16 elsewhere. The autoencoder is in float32 either way.
          tokenizer: a tokenizer.json or its folder; "" means the one beside the checkpoint.
          mesh: how all devices, if there are several, share weights and work. Weights are split
            over "fsdp" and "tensor"; sentences are dealt to the packs, "dcn" x "fsdp" of them, and
            "context" and "tensor" split the work of each. None: all devices along "fsdp".
          is_int8: whether the kernels of the language model's layers are held as int8.

        Raises:
          ValueError: nothing loadable there, a damaged or another model's file, no tokenizer.
        """
        compute = _compute(path, dtype)
        several = mesh is not None or jax.device_count() > 1
        built = core_mesh.build(mesh or MeshConfig()) if several else None
        loaded = load.load_any(path, built, weights, compute.dtype, is_int8)
        config = dataclasses.replace(
            run_config(loaded.info["meta"], loaded.config), compute=compute
        )
        file = tokenizer or loaded.tokenizer
        if not file:
            raise ValueError(
                f"{path}: no tokenizer.json beside this model; name one with --tokenizer"
            )
        words = texts.load(file, config.model.tokens, config.model.llm.vocab_size)
        return cls(config, loaded.params, words, loaded.info, built)

    @property
    def packs(self) -> int:
        """How many sentences its devices work on at a time."""
        with self._devices():
            return pack_count()

    def settings(self, guidance_mode: str = "", task: str = "image") -> SampleConfig:
        """The settings a call gets that asks for nothing: the run's, or the mode's preset.

        A BAGEL folder, converted or not, says nothing about sampling and gets BAGEL's guidance.
        """
        converted = "weights" in self.info.get("meta", {})  # which a run's meta has not
        trained = self.info["kind"] != "bagel" and not converted
        mode = guidance_mode or (self.config.sample.guidance if trained else "bagel")
        if trained and mode == self.config.sample.guidance:
            return self.config.sample
        if (mode, task) not in guidance.PRESETS:
            raise ValueError(f"guidance {mode!r}: it is one of {sorted(guidance.MODES)}")
        return guidance.PRESETS[mode, task]

    def draw(
        self,
        sentence: Sequence[str | Image.Image],
        source: Image.Image | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        options: Options = Options(),
    ) -> Drawn:
        """Draws from one sentence: texts and PIL images in reading order.

        Args:
          source: a picture to edit; without `size` the result has its size.
          size: height and width in pixels.
        """
        height, width = size or (None, None)
        return self.draw_all([Prompt(sentence, source, height, width, seed)], options)[0]

    def answer(
        self,
        sentence: Sequence[str | Image.Image],
        seed: int = 0,
        options: Options = Options(),
    ) -> str:
        """Answers one question that may have pictures in it."""
        return self.answer_all([Prompt(sentence, seed=seed)], options)[0]

    def draw_all(
        self, prompts: Sequence[Prompt], options: Options, watch: Watch | None = None
    ) -> list[Drawn]:
        """Draws from several prompts in one batched run.

        Raises:
          ValueError: a prompt without text, too long, or with an impossible size; it is named.
        """
        if options.pictures < 1:
            raise ValueError(f"{options.pictures} pictures: at least 1 is drawn")
        prompts = [upright(prompt) for prompt in prompts]
        sizes = [picture_size(prompt, self.config) for prompt in prompts]
        stride = self.config.model.latent_stride
        tokens = [(height // stride, width // stride) for height, width in sizes]
        task = lambda prompt: "edit" if prompt.source is not None else "image"
        contexts = []
        for prompt, size in zip(prompts, tokens):
            think = task(prompt) if options.think else ""
            items = compose(prompt, self.config, self.tokenizer, think)
            check_length(prompt, items, math.prod(size) + 2, self.config)
            contexts.append(items)
        with self._devices():
            contexts = [[self._encoded(item) for item in items] for items in contexts]
            plans = [""] * len(prompts)
            if options.think:
                plans = self._write(contexts, prompts, options, watch, "planning")
            used = [
                self._used_settings(options, items, task(prompt))
                for prompt, items in zip(prompts, contexts)
            ]
            requests = [
                self._request(*request, options)
                for request in zip(prompts, contexts, tokens, plans, used)
            ]
            drawn = self._draw(requests, used, watch)
        return [
            Drawn(pictures, _seeds(prompt, options), plan, own, evaluations)
            for prompt, plan, own, (pictures, evaluations) in zip(prompts, plans, used, drawn)
        ]

    def request(self, prompt: Prompt) -> tuple[Request, SampleConfig]:
        """What `draw` asks of the sampler for one prompt, to look into its drawing step by step.

        Raises:
          ValueError: as `draw_all`.
        """
        prompt = upright(prompt)
        stride = self.config.model.latent_stride
        height, width = (side // stride for side in picture_size(prompt, self.config))
        items = compose(prompt, self.config, self.tokenizer)
        check_length(prompt, items, height * width + 2, self.config)
        with self._devices():
            items = [self._encoded(item) for item in items]
        task = "edit" if prompt.source is not None else "image"
        used = self._used_settings(Options(), items, task)
        return self._request(prompt, items, (height, width), "", used, Options()), used

    def draw_requests(
        self, requests: Sequence[tuple[Request, SampleConfig]]
    ) -> list[list[Image.Image]]:
        """Draws what `request` returned, or variants of it; requests may share their items.

        Those whose settings differ in nothing but the scales, which are the requests' own, are
        drawn together.
        """
        with self._devices():
            drawn = self._draw(*zip(*requests, strict=True), watch=None)
        return [pictures for pictures, _ in drawn]

    def answer_all(
        self, prompts: Sequence[Prompt], options: Options, watch: Watch | None = None
    ) -> list[str]:
        """Answers several prompts in one batched run; errors as `draw_all`."""
        think = "text" if options.think else ""
        contexts = [compose(prompt, self.config, self.tokenizer, think) for prompt in prompts]
        for prompt, items in zip(prompts, contexts):
            check_length(prompt, items, 0, self.config)
        with self._devices():
            return self._write(contexts, prompts, options, watch, "answering")

    def _devices(self):
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()

    def _encoded(self, item: Item) -> Item:
        """Gives a clean VAE item its latents; others pass."""
        if item.kind != "clean":
            return item
        return item._replace(latent=self.sampler.encode(item.image, item.posterior_noise))

    def _write(self, contexts, prompts, options: Options, watch, what: str) -> list[str]:
        note = watch and (lambda word: watch(what, word.index + 1, word.limit))
        seeds = [prompt.seed for prompt in prompts]
        written = self.sampler.write(contexts, options.max_tokens, options.temperature, seeds, note)
        return [self.tokenizer.decode(one.ids) for one in written]

    def _used_settings(self, options: Options, items: Sequence[Item], task: str) -> SampleConfig:
        settings = options.settings or self.settings(task=task)
        if any(item.kind != "text" for item in items):
            return settings
        return dataclasses.replace(
            settings, alpha=settings.text_only_alpha, beta=settings.text_only_beta
        )

    def _request(self, prompt, items, size, plan, used, options: Options) -> Request:
        noise = lambda seed: start_noise(seed, math.prod(size), self.config.model)
        return Request(
            tuple(items),
            tuple(Picture(size, noise(seed)) for seed in _seeds(prompt, options)),
            (used.alpha, used.beta),
            Item("text", ids=self.tokenizer.encode(plan)) if plan else None,
        )

    def _draw(self, requests: Sequence[Request], used, watch) -> list[tuple[list, int]]:
        """Draws requests of equal settings together; returns each one's pictures and evaluations.

        Only an edit beside other prompts, under BAGEL's presets, makes more than one group.
        """
        shared = [dataclasses.replace(own, alpha=0.0, beta=0.0) for own in used]
        results: list = [None] * len(requests)
        note = watch and (lambda moment: watch("drawing", moment.index + 1, moment.count))
        for settings in dict.fromkeys(shared):
            numbers = [n for n, own in enumerate(shared) if own == settings]
            drawing = self.sampler.draw([requests[n] for n in numbers], settings, note)
            sizes = [picture.size for n in numbers for picture in requests[n].pictures]
            pictures = iter(self._decoded(drawing.latents, sizes))
            for n in numbers:
                own = list(itertools.islice(pictures, len(requests[n].pictures)))
                results[n] = own, drawing.evaluations
        return results

    def _decoded(self, latents: Sequence[np.ndarray], sizes) -> list[Image.Image]:
        pixels = self.sampler.decode_all(latents, sizes)
        if not all(np.isfinite(one).all() for one in latents):  # casting to bytes hides it
            raise ValueError(
                f"{self.info['path'] or 'the model'}: the drawing came out not finite; the weights "
                "or the guidance scales are at fault"
            )
        return [Image.fromarray(one) for one in pixels]


def run_config(meta: dict[str, Any], model) -> Config:
    """The experiment that a checkpoint's meta describes; defaults where it only has the model."""
    stored = meta.get("config", {})
    return overrides.from_dict(stored) if "model" in stored else Config(model=model)


def _compute(path: str, dtype: str | None) -> ComputeConfig:
    if dtype is not None and dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r}: it is float32 or bfloat16")
    on_cpu = jax.default_backend() == "cpu"
    default = "float32" if on_cpu else "bfloat16"
    return ComputeConfig(dtype=dtype or default, remat="none")


def _seeds(prompt: Prompt, options: Options) -> list[int]:
    return [prompt.seed + number for number in range(options.pictures)]
