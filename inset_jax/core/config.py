"""Every default of the project, as frozen dataclasses, with the checks that cross fields.

An experiment in `configs/` edits a copy of these defaults. `ml_collections` sees them as a locked
`ConfigDict` (`core/overrides.py`), so that flags can override single values; the program itself
only ever holds the frozen form.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LlmConfig:
    """The Mixture-of-Transformers language model. Defaults: Qwen2.5-7B as BAGEL uses it."""

    vocab_size: int = 152064
    model_dim: int = 3584
    layers: int = 28
    query_heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    mlp_dim: int = 18944
    rope_theta: float = 1e6
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class VitConfig:
    """The SigLIP encoder. `layers` counts the layers that run (BAGEL: 27 stored minus 1)."""

    width: int = 1152
    layers: int = 26
    heads: int = 16
    mlp_dim: int = 4304
    patch: int = 14  # pixels
    side: int = 70  # rows and columns of the learned position table
    norm_eps: float = 1e-6

    @property
    def patch_dim(self) -> int:
        return self.patch * self.patch * 3


@dataclass(frozen=True)
class VaeConfig:
    """The FLUX autoencoder: one multiplier a resolution, all but the last then halve it.

    Or, as "linear", a matrix each way (`model.linear_coder`), of which only the number of
    resolutions and of latent channels matter.
    """

    kind: str = "flux"  # "flux" or "linear"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    latent_channels: int = 16
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class LatentConfig:
    """How VAE latents become tokens of the gen stream."""

    patch: int = 2  # latent pixels a side of one token
    max_side: int = 64  # rows and columns of the frozen sin-cos table


@dataclass(frozen=True)
class TokenConfig:
    """Ids of the four special tokens the layout needs. Defaults: Qwen2.5."""

    text_start: int = 151644  # <|im_start|>
    text_end: int = 151645  # <|im_end|>
    image_start: int = 151652  # <|vision_start|>
    image_end: int = 151653  # <|vision_end|>


@dataclass(frozen=True)
class ModelConfig:
    """What the weights are: two models with equal `ModelConfig` can exchange checkpoints."""

    llm: LlmConfig = field(default_factory=LlmConfig)
    vit: VitConfig = field(default_factory=VitConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    connector_side: int = 70  # rows and columns of the frozen table added after the connector
    position_ratio: float = 10000.0  # of the longest wave of the sin-cos tables to the shortest,
    position_step: float = 1.0  # whose phase moves by so many radians from place to place
    position_scale: float = 1.0  # the tables are multiplied by it; BAGEL: 10000, 1 and 1
    time_scale: float = 1.0  # of timesteps before they become waves
    prediction: str = "velocity"  # what the latent head predicts: "velocity" (BAGEL) or "clean"
    null_token: bool = False  # a learned token stands for a dropped modality, instead of absence

    @property
    def patch_side(self) -> int:
        """Places of ViT patches are row * this + column in both tables, as BAGEL counts."""
        return self.connector_side

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token, ordered (row, column, channel)."""
        return self.latents.patch**2 * self.vae.latent_channels

    @property
    def latent_stride(self) -> int:
        """Pixels a side of one latent token."""
        return self.latents.patch * self.vae.downsample


@dataclass(frozen=True)
class ComputeConfig:
    """How the numbers are computed; no value here changes what a checkpoint is."""

    dtype: str = "bfloat16"  # of activations and matrix work; parameters stay float32
    gradient_sums: str = (
        "compute"  # over devices: in `dtype`, as BAGEL's; "float32": twice the bytes
    )
    attention: str = (
        "auto"  # "pallas", "whole", "chunked", "reference"; "auto": the first that fits
    )
    attention_block: tuple[int, ...] = ()  # queries and keys of a tile of "pallas"; (): the chip's
    flow_loss: str = "auto"  # "fused" (one kernel), "plain", or "auto": fused on TPUs
    remat: str = "full"  # "none", "dots", "attention", "full", "offload": see model.decoder.REMAT
    cross_entropy_chunk: int = 2048  # tokens whose logits exist at once


@dataclass(frozen=True)
class SizeLimits:
    """BAGEL's resizing rule for one kind of image, in pixels; sides are multiples of `stride`."""

    max_side: int = 980
    min_side: int = 224
    stride: int = 14
    max_pixels: int = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class DropoutConfig:
    """Condition dropout. One draw an example first, then one a segment, as probabilities.

    BAGEL drops segments one by one; the branches that INSET's guidance needs (no text at all, no
    image at all) are then hardly ever trained in a sentence of many pieces, so examples drop whole
    modalities first. BAGEL's behaviour is `example_* = 0`.
    """

    example_text: float = 0.0
    example_images: float = 0.0
    example_both: float = 0.0
    segment_text: float = 0.1
    segment_vit: float = 0.3
    segment_vae: float = 0.3


@dataclass(frozen=True)
class CapacityConfig:
    """Static sizes of one pack, in tokens."""

    und: int = 16384
    gen: int = 16384
    vit: int = 16384
    cross_entropy: int = 4096
    examples: int = 128
    attention_tiles: int = 0  # visible tiles of a stream, listed on the host; 0: on the device


@dataclass(frozen=True)
class DataConfig:
    """Which records are read and how they become packs."""

    train: tuple[str, ...] = ()  # folders of records
    validation: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # one a folder of `train`; () means in proportion to size
    tokenizer: str = ""  # folder or tokenizer.json; "" means the one beside the checkpoint
    packs: int = 1  # packs in the global batch of one step
    capacity: CapacityConfig = field(default_factory=CapacityConfig)
    vit_size: SizeLimits = field(default_factory=SizeLimits)
    vae_size: SizeLimits = field(
        default_factory=lambda: SizeLimits(max_side=1024, min_side=512, stride=16)
    )
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    max_example_tokens: int = 16384
    smallest_reference: float = 0.5  # of its side; how far references of a long example shrink
    stages: tuple[tuple[int, str], ...] = ()  # curriculum; see core.stages
    plans: str = ""  # folder for length indexes and plans; "" keeps them beside the records
    posterior: str = "sample"  # "sample" or "mean" of the VAE's posterior
    moments: str = "own"  # stored latents to use: of the run's "own" VAE, "none", or a digest
    max_side: int = 2048  # pixels a side of pictures in records (tools.build_records --max-side)
    workers: int = 0  # Grain worker processes; 0 reads in the main process
    worker_timeout: float = 600.0  # seconds of silence after which a worker hangs; 0: never
    prefetch: int = 2  # batches held ready (by each worker process)
    on_bad_record: str = "stop"  # "stop" or "replace"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a schedule, clipping and an exponential moving average."""

    name: str = "adamw"  # "adamw", or "muon" on block matrices with AdamW elsewhere
    peak_lr: float = 2.5e-5
    adam_lr_ratio: float = 1.0  # beside Muon: AdamW's learning rate over Muon's
    warmup_steps: int = 2000
    schedule: str = "constant"  # "constant" or "cosine" (to `final_lr_ratio` at run.steps)
    final_lr_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-15
    moments_dtype: str = "float32"  # of the state; "bfloat16" halves it
    weight_decay: float = 0.0
    decay_follows_rate: bool = False  # the decay falls with the schedule as the rate does
    clip_norm: float = 1.0
    accumulation: int = 1  # steps whose gradients are summed before one update
    ema_decay: float = 0.9999
    frozen: tuple[str, ...] = ()  # parameter path patterns (fnmatch), e.g. "vit/*"
    first_step_zero: bool = True  # the first update uses lr = 0, as BAGEL's warm-up does


@dataclass(frozen=True)
class LossConfig:
    """Weights of the two losses and the timestep distribution of training."""

    cross_entropy_weight: float = 0.25
    flow_weight: float = 1.0
    timestep_shift: float = 4.0
    cross_entropy_reweighting: bool = False  # weight 1/sqrt(n) a token of an n-token text


@dataclass(frozen=True)
class RunConfig:
    """The training loop."""

    steps: int = 15000
    seed: int = 0
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3  # newest checkpoints that stay
    keep_every: int = 0  # steps of whose multiples checkpoints stay as well; 0: of none
    validate_every: int = 1000
    validation_packs: int = 8
    sample_every: int = 1000  # 0 draws no pictures during training
    init_from: str = ""  # a BAGEL-format folder or a checkpoint to start from; "" means random
    autoencoder: str = ""  # an ae.safetensors for a start from random weights; "": random too
    save_minutes: float = 0.0  # a checkpoint also after so much wall time; 0: by steps alone
    keep_best: bool = False  # a held-out loss lower than all before is saved, and stays
    on_damaged_checkpoint: str = "stop"  # or "previous": the newest that is whole is used
    on_bad_step: str = "stop"  # or "skip"; a step that is not finite, or a spike, updates nothing
    max_bad_steps: int = 10  # in a row; the run then stops
    spike: float = 0.0  # gradient norm, in medians of recent ones, that make a bad step; 0: none do
    spike_window: int = 100  # good steps whose norms are the recent ones
    watchdog_minutes: float = 30.0  # without a step, until all stacks are written; 0: never
    profile_steps: tuple[int, ...] = ()  # first and last step of a trace; (): none
    wandb_project: str = ""  # of Weights & Biases, which then has to be installed


@dataclass(frozen=True)
class SampleConfig:
    """Sampling and guidance. INSET's setting: alpha 4.0, beta 1.5, 50 timesteps, no renorm."""

    guidance: str = "inset"  # a name in sample.guidance.MODES: "inset", "bagel", "none"
    alpha: float = 4.0  # scale of stage 1 (inset: text over the visual-only branch)
    beta: float = 1.5  # scale of stage 2 (inset: over the null branch)
    text_only_alpha: float = 4.0  # alpha of a sentence without images
    text_only_beta: float = 1.0  # beta of a sentence without images
    interval: tuple[float, float] = (0.0, 1.0)  # guidance acts where low < t <= high
    renorm: str = "none"  # "none", "global", "channel", "text_channel"
    renorm_min: float = 0.0
    side: int = 0  # pixels a side of a picture that is given no size; 0: the model's largest
    num_timesteps: int = 50  # as BAGEL counts: N points are N - 1 evaluations
    shift: float = 3.0


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis. -1 (one axis at most) takes what is left."""

    dcn: int = 1  # slices, joined by the data-centre network
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Config:
    """One experiment, whole."""

    name: str = "bagel_7b"
    model: ModelConfig = field(default_factory=ModelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True)
class CropConfig:
    """What an autoencoder trains on: square cuts of pictures, mirrored half of the time."""

    train: tuple[str, ...] = ()  # folders of records or of image files
    validation: tuple[str, ...] = ()
    side: int = 256  # pixels; a multiple of the downsampling
    shrink: float = 2.0  # a picture is reduced up to this much before it is cut, if it is so large
    batch: int = 32


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the terms of the loss, each a mean over pixels or latents."""

    reconstruction: str = "l1"  # "l1" or "l2", of pixels in [-1, 1]
    kl_weight: float = 1e-6  # of the posterior against a standard normal


@dataclass(frozen=True)
class AutoencoderRunConfig:
    """The loop that trains an autoencoder."""

    steps: int = 100000
    seed: int = 0
    log_every: int = 50
    save_every: int = 5000
    keep: int = 3  # newest checkpoints that stay
    validate_every: int = 5000  # with a grid of pictures beside their reconstructions
    validation_images: int = 64
    measure_images: int = 512  # training cuts that the latents' scale and shift are measured on
    dtype: str = "float32"  # of activations; parameters stay float32
    file_dtype: str = "float32"  # of the tensors in the ae.safetensors that is written
    init_from: str = ""  # an ae.safetensors to start from; "" means random weights


@dataclass(frozen=True)
class AutoencoderConfig:
    """One autoencoder, trained by itself. `vae.scale` and `vae.shift` are measured, not set."""

    name: str = "flux_vae"
    vae: VaeConfig = field(default_factory=VaeConfig)
    data: CropConfig = field(default_factory=CropConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: AutoencoderRunConfig = field(default_factory=AutoencoderRunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def edit(config, **changes):
    """Returns a copy of a (nested) dataclass with fields replaced.

    A double underscore descends: `edit(config, model__llm__layers=2)`; into a group that is itself
    replaced, after that.

    Raises:
      AttributeError: a path names no field; the message lists the fields that exist.
    """
    nested: dict[str, dict] = {}
    flat = {}
    names = [f.name for f in dataclasses.fields(config)]
    for path, value in changes.items():
        head, _, rest = path.partition("__")
        if head not in names:
            raise AttributeError(f"{type(config).__name__} has no field {head!r}; it has {names}")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            flat[head] = value
    for head, inner in nested.items():
        flat[head] = edit(flat.get(head, getattr(config, head)), **inner)
    return dataclasses.replace(config, **flat)
