"""Checks of a config that span fields, run before a device is touched.

Each says what was found, why it cannot work, and what to do. `check` reports all it finds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from inset_jax.core.config import AutoencoderConfig, Config, SizeLimits

DIGEST = re.compile("[0-9a-f]{16}")

# fields that name one of a few things
CHOICES = {
    "model.prediction": ("velocity", "clean"),
    "compute.dtype": ("float32", "bfloat16"),
    "compute.gradient_sums": ("compute", "float32"),
    "compute.attention": ("auto", "pallas", "whole", "chunked", "reference"),
    "model.vae.kind": ("flux", "linear"),
    "compute.flow_loss": ("auto", "fused", "plain"),
    "compute.remat": ("none", "dots", "attention", "full", "offload"),
    "data.posterior": ("sample", "mean"),
    "data.on_bad_record": ("stop", "replace"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.schedule": ("constant", "cosine"),
    "optimizer.moments_dtype": ("float32", "bfloat16"),
    "run.on_bad_step": ("stop", "skip"),
    "run.on_damaged_checkpoint": ("stop", "previous"),
    "sample.guidance": ("inset", "bagel", "none"),
    "sample.renorm": ("none", "global", "channel", "text_channel"),
}

# inclusive ranges of numbers (of every entry of a tuple): low, high, group, fields; None is open
RANGES: tuple[tuple[float, float | None, str, str], ...] = (
    (1, None, "model", "connector_side"),
    (1e-6, None, "model", "position_ratio position_step position_scale time_scale"),
    (1, None, "model.llm", "vocab_size model_dim layers query_heads kv_heads head_dim mlp_dim"),
    (1e-38, None, "model.llm", "rope_theta norm_eps"),
    (1, None, "model.vit", "width heads mlp_dim patch side"),
    (1e-38, None, "model.vit", "norm_eps"),
    (0, None, "model.vit", "layers"),
    (1e-6, None, "model.vae", "scale"),
    (1, None, "model.vae", "channels multipliers res_blocks latent_channels"),
    (1, None, "model.latents", "patch max_side"),
    (1, None, "compute", "cross_entropy_chunk"),
    (1, None, "data", "packs max_example_tokens"),
    (0, None, "data", "workers worker_timeout prefetch max_side"),
    (0, 1, "data", "smallest_reference"),
    (1, None, "data.capacity", "und gen vit cross_entropy examples"),
    (0, None, "data.capacity", "attention_tiles"),
    (0, 1, "data.dropout", "example_text example_images example_both"),
    (0, 1, "data.dropout", "segment_text segment_vit segment_vae"),
    (0, None, "optimizer", "peak_lr adam_lr_ratio warmup_steps weight_decay"),
    (0, 1, "optimizer", "final_lr_ratio ema_decay"),
    (0, 0.999999, "optimizer", "beta1 beta2"),
    (1e-38, None, "optimizer", "eps clip_norm"),
    (1, None, "optimizer", "accumulation"),
    (0, None, "loss", "cross_entropy_weight flow_weight"),
    (1e-6, None, "loss", "timestep_shift"),
    (0, None, "run", "steps seed validate_every sample_every keep_every"),
    (1, None, "run", "log_every save_every keep validation_packs max_bad_steps spike_window"),
    (0, None, "run", "save_minutes spike watchdog_minutes"),
    (1, None, "run", "profile_steps"),
    (0, None, "sample", "side"),
    (2, None, "sample", "num_timesteps"),
    (1e-6, None, "sample", "shift"),
    (0, 1, "sample", "interval renorm_min"),
)

AUTOENCODER_CHOICES = {
    "vae.kind": CHOICES["model.vae.kind"],
    "loss.reconstruction": ("l1", "l2"),
    "run.dtype": CHOICES["compute.dtype"],
    "run.file_dtype": ("float32", "bfloat16", "float16"),
    **{path: names for path, names in CHOICES.items() if path.startswith("optimizer.")},
}
AUTOENCODER_RANGES = (
    (1, None, "vae", "channels multipliers res_blocks latent_channels"),
    (1, None, "data", "side shrink batch"),
    (0, None, "loss", "kl_weight"),
    *(row for row in RANGES if row[2] == "optimizer"),
    (0, None, "run", "steps seed validate_every"),
    (1, None, "run", "log_every save_every keep validation_images measure_images"),
)


def check(config: Config) -> None:
    """Refuses a config that cannot work.

    Raises:
      ValueError: one line a contradiction, all of them, each saying what to do.
    """
    problems = [*_choices(config, CHOICES), *_ranges(config, RANGES)]
    if not problems:  # the rest divides by these numbers
        problems = [line for part in PARTS for line in part(config)]
    if problems:
        raise ValueError("\n".join(problems))


def check_autoencoder(config: AutoencoderConfig) -> None:
    """Refuses a config of `inset_jax.train.autoencoder` that cannot work; see `check`."""
    problems = [
        *_choices(config, AUTOENCODER_CHOICES),
        *_ranges(config, AUTOENCODER_RANGES),
        *_warmup(config),
    ]
    stride, side = config.vae.downsample, config.data.side
    if side % stride:
        problems.append(
            f"data.side={side} is not a multiple of {stride}, the downsampling of vae.multipliers="
            f"{config.vae.multipliers}: make it {max(side // stride, 1) * stride}"
        )
    if config.optimizer.accumulation > 1:
        problems.append(
            f"optimizer.accumulation={config.optimizer.accumulation}: an autoencoder trains without"
            " accumulation; leave it at 1 and set data.batch"
        )
    if problems:
        raise ValueError("\n".join(problems))


def _value(config: Config, path: str):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _choices(config, table: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for path, names in table.items():
        if _value(config, path) not in names:
            found = _value(config, path)
            yield f"config.{path}: found {found!r}, expected one of {', '.join(names)}"


def _ranges(config, table) -> Iterator[str]:
    for low, high, group, fields in table:
        for name in fields.split():
            value = getattr(_value(config, group), name)
            numbers = value if isinstance(value, tuple) else (value,)
            inside = lambda x, low=low, high=high: low <= x <= (math.inf if high is None else high)
            if not all(math.isfinite(x) and inside(x) for x in numbers):
                bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                yield f"config.{group}.{name}: found {value!r}, expected {bounds}"


def _llm(config: Config) -> Iterator[str]:
    llm, tokens = config.model.llm, config.model.tokens
    if llm.query_heads % llm.kv_heads:
        yield (
            f"model.llm.query_heads={llm.query_heads} cannot share model.llm.kv_heads="
            f"{llm.kv_heads}: make the first a multiple of the second"
        )
    if llm.head_dim % 2:
        yield f"model.llm.head_dim={llm.head_dim} is rotated in two halves: make it even"
    if llm.model_dim % 4:
        yield (
            f"model.llm.model_dim={llm.model_dim} must hold sin and cos of two axes in the "
            "position tables: make it a multiple of 4"
        )
    ids = {name: getattr(tokens, name) for name in vars(tokens)}
    if len(set(ids.values())) < len(ids):
        yield f"model.tokens={ids}: the four ids must differ"
    for name, number in ids.items():
        if not 0 <= number < llm.vocab_size:
            yield (
                f"model.tokens.{name}={number} is outside model.llm.vocab_size={llm.vocab_size}: "
                "use the tokenizer's own ids or raise the second"
            )


def _attention(config: Config) -> Iterator[str]:
    block = config.compute.attention_block
    if block and (len(block) != 2 or any(size < 128 or size % 128 for size in block)):
        yield (
            f"compute.attention_block={block}: give two multiples of 128, queries and keys of a "
            "tile, or () for the sizes measured on the chip"
        )
    if config.data.capacity.attention_tiles and not block:
        yield (
            f"data.capacity.attention_tiles={config.data.capacity.attention_tiles} lists tiles on "
            "the host, which does not know the chip: name their sizes in compute.attention_block, "
            "or set the first to 0"
        )


def _images(config: Config) -> Iterator[str]:
    model, data = config.model, config.data
    vit = model.vit
    if vit.width % vit.heads:
        yield f"model.vit.width={vit.width} does not divide into model.vit.heads={vit.heads}"
    if model.connector_side != vit.side:
        yield (
            f"model.connector_side={model.connector_side} and model.vit.side={vit.side} are "
            "indexed by the same patch places: make them equal"
        )
    yield from _side(
        "vit_size", data.vit_size, vit.patch, "model.vit.side", vit.side, "ViT patches"
    )
    latents = model.latents.max_side
    yield from _side(
        "vae_size",
        data.vae_size,
        model.latent_stride,
        "model.latents.max_side",
        latents,
        "latent tokens",
    )


def _side(
    field: str, limits: SizeLimits, stride: int, table: str, side: int, what: str
) -> Iterator[str]:
    """Checks one kind of image against the stride and the position table of its encoder."""
    if limits.stride < 1 or limits.stride % stride:
        yield (
            f"data.{field}.stride={limits.stride} must be a multiple of {stride} pixels, the side "
            f"of one of the {what}"
        )
        return
    if limits.min_side > limits.max_side:
        yield (
            f"data.{field}.min_side={limits.min_side} is above data.{field}.max_side="
            f"{limits.max_side}: swap or lower it"
        )
    if limits.max_side < limits.stride:
        yield (
            f"data.{field}.max_side={limits.max_side} is below data.{field}.stride={limits.stride}"
            ": no image has that size"
        )
    needed = limits.max_side // stride
    if needed > side:
        yield (
            f"data.{field}.max_side={limits.max_side} needs {needed} {what} a side, but {table} is "
            f"{side}: lower the first to {side * stride} or raise the second"
        )
    if limits.max_pixels < limits.stride**2:
        yield f"data.{field}.max_pixels={limits.max_pixels} is less than one tile of the stride"


def _capacity(config: Config) -> Iterator[str]:
    data, capacity = config.data, config.data.capacity
    if data.max_example_tokens > capacity.und + capacity.gen:
        yield (
            f"data.max_example_tokens={data.max_example_tokens} is more than a pack holds "
            f"(data.capacity.und + data.capacity.gen = {capacity.und + capacity.gen}): lower the "
            "first or raise the capacities"
        )
    for field, limits, stride, room in (
        ("vit_size", data.vit_size, config.model.vit.patch, "vit"),
        ("vit_size", data.vit_size, config.model.vit.patch, "und"),
        ("vae_size", data.vae_size, config.model.latent_stride, "gen"),
    ):
        # the smallest image of the shape that is always allowed: a square of the short side
        tokens = (min(limits.min_side, limits.max_side) // stride) ** 2
        if tokens > getattr(capacity, room):
            yield (
                f"data.{field}.min_side={limits.min_side} makes a square image of {tokens} tokens, "
                f"but data.capacity.{room} is {getattr(capacity, room)}: raise the second or lower "
                "the first"
            )


def _data(config: Config) -> Iterator[str]:
    data = config.data
    if data.weights and len(data.weights) != len(data.train):
        yield (
            f"data.weights has {len(data.weights)} numbers for {len(data.train)} folders of "
            "data.train: give one a folder, or none"
        )
    if data.weights and (min(data.weights) < 0 or sum(data.weights) <= 0):
        yield f"data.weights={data.weights}: none may be negative, one must be positive"
    if data.moments not in ("own", "none") and not DIGEST.fullmatch(data.moments):
        yield (
            f"data.moments={data.moments!r}: expected own, none, or the digest of an autoencoder "
            "(16 hexadecimal digits)"
        )
    if 0 < data.max_side < max(data.vae_size.max_side, data.vit_size.max_side):
        yield (
            f"data.max_side={data.max_side}: records would be smaller than data.vae_size.max_side="
            f"{data.vae_size.max_side} or data.vit_size.max_side={data.vit_size.max_side}: raise "
            "the first or lower these"
        )
    drops = data.dropout
    total = drops.example_text + drops.example_images + drops.example_both
    if total > 1 + 1e-9:
        yield (
            "data.dropout.example_text + example_images + example_both = "
            f"{total:g}: they exclude each other, so lower them until the sum is at most 1"
        )


def _warmup(config: Config | AutoencoderConfig) -> Iterator[str]:
    optimizer, run = config.optimizer, config.run
    if optimizer.name != "muon" and optimizer.adam_lr_ratio != 1:
        yield (
            f"optimizer.adam_lr_ratio={optimizer.adam_lr_ratio:g} is for what Muon leaves, but "
            f"optimizer.name={optimizer.name!r}: set peak_lr alone and leave the ratio at 1"
        )
    if optimizer.schedule == "cosine" and optimizer.warmup_steps >= run.steps > 0:
        yield (
            f"optimizer.warmup_steps={optimizer.warmup_steps} leaves nothing of run.steps="
            f"{run.steps} for the cosine: lower the first"
        )


def _training(config: Config) -> Iterator[str]:
    loss, run = config.loss, config.run
    yield from _warmup(config)
    if loss.cross_entropy_weight == 0 and loss.flow_weight == 0:
        yield "loss.cross_entropy_weight and loss.flow_weight are both 0: nothing would be learned"
    if run.init_from and run.autoencoder:
        yield (
            f"run.autoencoder={run.autoencoder!r} is for a start from random weights, and "
            f"run.init_from={run.init_from!r} brings an autoencoder: leave one empty"
        )
    yield from _watching(config)
    if config.sample.interval[0] >= config.sample.interval[1]:
        yield f"sample.interval={config.sample.interval}: the first number is the lower end"


def _watching(config: Config) -> Iterator[str]:
    run = config.run
    if run.profile_steps and (
        len(run.profile_steps) != 2 or sorted(run.profile_steps) != list(run.profile_steps)
    ):
        yield (
            f"run.profile_steps={run.profile_steps}: give the first and the last step of the trace,"
            " or () for none"
        )
    if 0 < run.spike <= 1:
        yield (
            f"run.spike={run.spike}: half of all gradient norms are above their median; give a "
            "number well above 1, or 0 for no guard"
        )
    if run.keep_every % run.save_every:
        near = math.ceil(run.keep_every / run.save_every) * run.save_every
        yield (
            f"run.keep_every={run.keep_every} is no multiple of run.save_every={run.save_every}, "
            f"and only what is saved can stay: make it {near}, or 0"
        )
    if run.keep_best and not (config.data.validation and run.validate_every):
        yield (
            "run.keep_best=True needs a held-out loss: name folders in data.validation and set "
            "run.validate_every, or set it to False"
        )


def _mesh(config: Config) -> Iterator[str]:
    mesh = config.mesh
    sizes = vars(mesh)
    if list(sizes.values()).count(-1) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
        yield f"mesh={sizes}: each size is at least 1, and one may be -1"
        return
    for part, name in (("llm", "query_heads"), ("llm", "kv_heads"), ("vit", "heads")):
        heads = getattr(getattr(config.model, part), name)
        if mesh.tensor > 1 and heads % mesh.tensor:
            near = max(n for n in range(1, mesh.tensor) if heads % n == 0)
            yield (
                f"mesh.tensor={mesh.tensor} does not divide model.{part}.{name}={heads}: the "
                f"nearest that does is {near}"
            )
    ways = mesh.dcn * mesh.fsdp
    if mesh.dcn > 0 and mesh.fsdp > 0 and config.data.packs % ways:
        yield (
            f"data.packs={config.data.packs} cannot be split over mesh.dcn * mesh.fsdp = {ways}: "
            f"make it a multiple of {ways}"
        )


PARTS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _llm,
    _attention,
    _images,
    _capacity,
    _data,
    _training,
    _mesh,
)
