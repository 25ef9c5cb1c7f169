"""Settings that contradict each other, or that change nothing beside the others."""

from __future__ import annotations

import math
from collections.abc import Iterator

from inset_jax.core.config import Config, edit
from inset_jax.preflight.chips import Slice

LAST_BIT = 2**-8  # of a bfloat16, relative


def fitted(config: Config, preset: Config, slice_: Slice) -> tuple[Config, list[str]]:
    """Fills in what only the slice can say, where the command line does not: packs and slices.

    Returns:
      the config, and the flags that a run on this slice needs for the same.

    Raises:
      ValueError: what the command line says cannot work on this slice.
    """
    flags = []
    if slice_.count > 1 and config.mesh.dcn == preset.mesh.dcn == 1:
        config = edit(config, mesh__dcn=slice_.count)
        flags.append(f"--config.mesh.dcn={slice_.count}")
    inside = config.mesh.context * config.mesh.tensor
    ways = (
        slice_.devices // inside if config.mesh.fsdp == -1 else config.mesh.dcn * config.mesh.fsdp
    )
    if config.data.packs % max(ways, 1):
        packs = math.ceil(config.data.packs / ways) * ways
        if config.data.packs != preset.data.packs:
            raise ValueError(
                f"data.packs={config.data.packs} cannot be split over {ways} devices: make it "
                f"{packs}"
            )
        config = edit(config, data__packs=packs)
        flags.append(f"--config.data.packs={packs}")
    return config, flags


def useless(config: Config) -> Iterator[str]:
    """Yields a line for each setting that has no effect, or hardly the one that was meant."""
    compute, room, optimizer = config.compute, config.data.capacity, config.optimizer
    if compute.attention_block and compute.attention in ("chunked", "reference"):
        yield (
            f"compute.attention_block={compute.attention_block} has no effect: compute.attention="
            f"{compute.attention!r} has no tiles"
        )
    if room.attention_tiles and config.mesh.context > 1:
        yield (
            f"data.capacity.attention_tiles={room.attention_tiles} has no effect with mesh.context="
            f"{config.mesh.context}: lists of whole packs are not used by parts of them"
        )
    if compute.attention in ("chunked", "reference"):
        yield f"compute.attention={compute.attention!r}: the kernels for TPUs are not used"
    if compute.dtype == "float32":
        yield "compute.dtype='float32': activations take twice the memory and products run slower"
    if compute.cross_entropy_chunk >= room.cross_entropy:
        size = room.cross_entropy * config.model.llm.vocab_size * 4 / (1 << 30)
        yield (
            f"compute.cross_entropy_chunk={compute.cross_entropy_chunk} is not below data.capacity."
            f"cross_entropy={room.cross_entropy}: all logits exist at once, {size:.1f} GiB"
        )
    if (
        optimizer.schedule == "constant"
        and optimizer.final_lr_ratio != type(optimizer)().final_lr_ratio
    ):
        yield (
            f"optimizer.final_lr_ratio={optimizer.final_lr_ratio} has no effect: "
            "optimizer.schedule='constant' ends where it is"
        )
    if optimizer.name == "muon" and optimizer.weight_decay == 0:
        yield "optimizer.name='muon' with optimizer.weight_decay=0: Muon is meant to have a decay"
    if optimizer.decay_follows_rate and optimizer.weight_decay == 0:
        yield "optimizer.decay_follows_rate has no effect: optimizer.weight_decay is 0"
    yield from _context(config)
    yield from _precision(config)
    yield from _losses(config)
    yield from _run(config)


def _context(config: Config) -> Iterator[str]:
    ways = config.mesh.context
    for name in ("und", "gen", "vit"):
        size = getattr(config.data.capacity, name)
        if size % ways:
            near = math.ceil(size / ways) * ways
            yield (
                f"mesh.context={ways} does not divide data.capacity.{name}={size}: each of them "
                f"does the work of the whole stream; {near} would be split"
            )


def _precision(config: Config) -> Iterator[str]:
    compute, optimizer = config.compute, config.optimizer
    if compute.gradient_sums == "float32" and compute.dtype == "float32":
        yield "compute.gradient_sums='float32' has no effect: compute.dtype is float32"
    if optimizer.moments_dtype == "bfloat16" and 1 - optimizer.beta2 < LAST_BIT:
        yield (
            f"optimizer.beta2={optimizer.beta2} with optimizer.moments_dtype='bfloat16': an update "
            f"moves the squares by less than their last bit, {LAST_BIT:.1%}, and they stand still"
        )


def _losses(config: Config) -> Iterator[str]:
    loss, frozen = config.loss, config.optimizer.frozen
    if loss.cross_entropy_weight == 0:
        yield "loss.cross_entropy_weight=0: the cross entropy is computed and weighs nothing"
    if loss.flow_weight == 0:
        yield "loss.flow_weight=0: the flow loss is computed and weighs nothing"
    if loss.flow_weight == 0 and loss.timestep_shift != type(loss)().timestep_shift:
        yield f"loss.timestep_shift={loss.timestep_shift} hardly matters: loss.flow_weight is 0"
    if "llm/*" in frozen and loss.cross_entropy_weight:
        yield "optimizer.frozen holds all of llm: its cross entropy teaches the ViT alone"


def _run(config: Config) -> Iterator[str]:
    run, data = config.run, config.data
    if data.validation == () and 0 < run.validate_every <= run.steps:
        yield "run.validate_every has no effect: data.validation names no records"
    if not run.init_from:
        yield "run.init_from is empty: the run begins with random weights"
    drops = data.dropout
    if drops.segment_vae and not (drops.segment_vit or drops.segment_text or drops.example_text):
        yield "data.dropout drops clean latents alone: guidance has no branch that was trained"
    if config.optimizer.accumulation > 1:
        yield (
            f"optimizer.accumulation={config.optimizer.accumulation}: an update sees "
            f"{data.packs * config.optimizer.accumulation} packs"
        )
