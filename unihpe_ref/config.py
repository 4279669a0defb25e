"""Every option of a run and its default, defined only here.

The defaults are the paper's (UniHPE, arXiv 2311.16477), with its section beside a value that is not obvious; where the
paper gives none, its source is named instead. ``presets.py`` holds smaller settings for a CPU. The page
``docs/unihpe/deviations.md`` explains our decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multicontrast._checks import three_beats
from unihpe_ref.settings import Settings, option

Similarity = Literal["eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear"]
Negatives = Literal["permutation", "shared", "cyclic", "tied", "all"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Cameras, crops and augmentation; and the amount of generated motion if none is given."""

    cameras: Literal["random", "varied", "fixed"] = "random"  # in training: like Human3.6M's, any, or the tests'
    view: Literal["camera", "box"] = "camera"  # "box": as if the camera faced the person; only without images
    image_size: tuple[int, int] = option((256, 192), at_least=32)  # height, width; multiples of 32; section 4.2
    crop: Literal["aligned", "classic", "udp"] = "aligned"  # of recorded pictures; "classic" and "udp" as mmpose's
    joints_2d: Literal["annotated", "detected"] = "annotated"  # of a recording: true joints, or a detector's
    flip: float = option(0.5, at_least=0)  # probability; augmentation as mmpose's for Human3.6M
    scale: float = option(0.25, at_least=0)  # the box grows or shrinks by up to this share
    rotation_degrees: float = option(30.0, at_least=0)  # about the optical axis, up to this much
    joint_noise: float = option(0.0, at_least=0)  # 2D noise, deviation up to this share of the box; not in the paper
    bodies: float = option(0.0, at_least=0)  # probability that a sample gets other limb lengths; not in the paper
    limb_degrees: float = option(0.0, at_least=0)  # turns of limbs, deviation up to this; not in the paper
    min_gap_seconds: float = option(1.0, at_least=0)  # between two frames of one sequence in one batch
    min_distance: float = option(0.0, at_least=0)  # metres between two poses of one batch of a recording; 0: no limit
    subjects: int = option(7, at_least=3)  # generated bodies; the last two are the test split
    takes: int = option(1, at_least=1)  # generated sequences for each subject and action
    seconds: float = option(8.0, above=0)  # length of each


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Sizes and parts of the network."""

    joints: int = option(17, at_least=2)  # the Human3.6M skeleton
    embedding_dim: int = option(1024, at_least=1, at_most=2**16)  # D; supplement B.2
    image_encoder: str = "hrnet_w32"  # a HRNet of timm, vit_s or vit_b, or "none" for a model without images
    lifting_only: bool = False  # 2D encoder and 3D decoder, and no other part: the shipped lifter
    pose_encoder: Literal["transformer", "mlp"] = "transformer"  # section 3.1, or the ablation of Table 4
    encoder_width: int = option(256, at_least=1, at_most=2**16)  # MPM (same authors); the paper gives none
    encoder_layers: int = option(3, at_least=1, at_most=1000)  # supplement B.2
    encoder_heads: int = option(8, at_least=1, at_most=2**16)  # MPM
    encoder_feedforward: int = option(512, at_least=1, at_most=2**16)  # MPM
    encoder_dropout: float = option(0.1, at_least=0, below=1)  # MPM
    encoder_box_token: bool = True  # 2D encoder only; supplement B.0
    encoder_noise_token: bool = False  # tells the 2D encoder how much its joints err; not in the paper
    decoder: Literal["diffusion", "mlp"] = "diffusion"  # section 3.1, or the ablation of Table 4
    decoder_width: int = option(1024, at_least=32, at_most=2**16)  # GFPose; multiple of 32
    decoder_time_width: int = option(512, at_least=4, at_most=2**16)  # GFPose
    decoder_blocks: int = option(2, at_least=0, at_most=1000)  # section 3.1
    decoder_dropout: float = option(0.25, at_least=0, below=1)  # GFPose
    decoder_box_token: bool = True  # supplement B.0 (2D), B.3 (both)
    modality_token: bool = True  # section 3.1; Table 6 has a row without
    condition: Literal["normalised", "raw"] = "normalised"  # sqrt(D) x the unit embedding, or the features themselves
    sde: Literal["subvp", "vp", "ve"] = "subvp"  # GFPose; the paper also cites NCSN (VE)
    time_steps: int = option(0, at_least=0)  # of training; 0: t from the whole interval, as GFPose. 1000: as printed
    parameterisation: Literal["noise", "preconditioned"] = "noise"  # GFPose; the other serves every sampler
    posterior_spread: float = option(1.0, above=0)  # of a pose given its embedding, over the scale; "preconditioned"
    denoising_reduction: Literal["half_sum", "mean"] = "half_sum"  # GFPose: half the sum over coordinates
    noise_draws: int = option(
        1, at_least=1
    )  # noised copies of each pose per step: a decoder is cheap, an encoder is not
    mlp_width: int = option(1024, at_least=1, at_most=2**16)  # residual-MLP pose encoders
    mlp_blocks: int = option(3, at_least=1, at_most=1000)  # encoders and decoders; supplement B.1
    mlp_dropout: float = option(0.1, at_least=0, below=1)
    scale_2d: float = option(0.36, above=0)  # standard deviation of box-normalised joints: decoders see unit variance
    scale_3d: float = option(0.3, above=0)  # the same for pelvis-relative metres, for the 3D encoder too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lifting_only and self.image_encoder != "none":
            needed = "`ModelConfig.lifting_only` needs `image_encoder='none'`"
            raise ValueError(three_beats(needed, repr(self.image_encoder), "Leave out one of the two."))
        if self.encoder_noise_token and not self.encoder_box_token:
            needed = "`ModelConfig.encoder_noise_token` needs `encoder_box_token`, of which it is a part"
            raise ValueError(three_beats(needed, "False", "Leave out one of the two."))


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Settings):
    """How the score-based decoders sample a pose from noise."""

    sampler: Literal["gfpose", "ode", "sde"] = "gfpose"  # noise-free reverse SDE: the best single answer
    steps: int = option(1000, at_least=1)  # supplement B.3; 50 lose 1-3 mm


@dataclass(frozen=True, kw_only=True)
class StageConfig(Settings):
    """Settings that all three stages share."""

    steps: int = option(8000, at_least=0)  # 0 leaves the stage out. Figure 5 shows about 8000
    batch_size: int = option(180, at_least=2)  # section 4.2
    learning_rate: float = option(1e-4, above=0)  # Adam, peak; section 4.2
    final_learning_rate: float = option(1.0, at_least=0)  # fraction at the end of a cosine decay; 1: constant (paper)
    warmup_steps: int = option(1000, at_least=0)  # linear; the paper gives none
    clip: float = option(1.0, above=0)  # largest norm of the gradient; GFPose
    weight_decay: float = option(0.0, at_least=0)  # decoupled; never on the temperature
    temperature: float = option(0.2, above=0)  # tau at the start of the stage; section 4.2
    temperature_min: float = option(0.1, above=0)
    temperature_max: float = option(1e4, above=0)
    accumulate: int = option(1, at_least=1)  # micro-batches in a step, to fit a smaller memory
    cached_gradients: bool = True  # the contrastive loss sees the whole batch; False: each micro-batch on its own
    symmetric: bool = True  # each pair is the mean of both directions; equation (1) has one direction
    freeze_batch_norm: bool = False  # keeps the statistics of BatchNorm; for batches below about 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            needed = f"`{type(self).__name__}.temperature` starts within its bounds"
            bounds = f"{self.temperature:g} for [{self.temperature_min:g}, {self.temperature_max:g}]"
            raise ValueError(three_beats(needed, bounds, "Move the start or the bounds."))
        if self.accumulate > self.batch_size // 2:
            needed = f"`{type(self).__name__}.accumulate` leaves two samples or more for each micro-batch"
            came = f"{self.accumulate} of a batch of {self.batch_size}"
            raise ValueError(three_beats(needed, came, "Lower it, or raise `batch_size`."))


@dataclass(frozen=True, kw_only=True)
class Stage1(StageConfig):
    """2D and 3D pose encoders: pairwise loss (section 3.2)."""

    batch_size: int = option(2048, at_least=2)  # section 4.2
    temperature: float = option(1 / 14, above=0)  # section 4.2
    temperature_min: float = option(1 / 100, above=0)  # section 4.2


@dataclass(frozen=True, kw_only=True)
class Stage2(StageConfig):
    """Image encoder against the frozen pose encoders: pairs and triplets (section 3.2)."""

    alpha: float = option(1.0, at_least=0)  # weight of the triplet term; section 4.2
    similarity: Similarity = "eigenvalue"  # of a triplet; equation (3)
    negatives: Negatives = "permutation"  # Algorithm 1; "all" is the exact denominator


@dataclass(frozen=True, kw_only=True)
class Stage3(StageConfig):
    """All parts together: contrastive and decoding losses (section 3.3)."""

    steps: int = option(20000, at_least=0)
    temperature_min: float = option(0.2, above=0)  # section 4.2: the stage starts on its bound
    alpha: float = option(1.0, at_least=0)
    similarity: Similarity = "eigenvalue"
    negatives: Negatives = "permutation"
    contrastive_weight: float = option(1.0, at_least=0)  # of L_cl in equation (5), where it is 1
    ema_decay: float = option(0.9999, at_least=0, below=1)  # GFPose; the average is evaluated and saved


@dataclass(frozen=True, kw_only=True)
class LiftingStage(StageConfig):
    """2D to 3D alone, before the paper's stages; not in the paper, and off unless a preset turns it on."""

    steps: int = option(0, at_least=0)
    batch_size: int = option(512, at_least=2)
    ema_decay: float = option(0.999, at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class CompanionStage(StageConfig):
    """3D encoder and 2D decoder around a frozen lifter; not in the paper, and off unless a preset turns it on."""

    steps: int = option(0, at_least=0)
    batch_size: int = option(512, at_least=2)
    temperature: float = option(1 / 14, above=0)  # as stage 1
    temperature_min: float = option(1 / 100, above=0)
    ema_decay: float = option(0.999, at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Which poses are evaluated."""

    stride: int = option(64, at_least=1)  # evaluates every stride-th frame of the test sequences
    joint_noise: float = option(0.0, at_least=0)  # of 2D joints, standard deviation in shares of the box's longer side
    protocol: str | None = None  # for a recording: sets frames and joints; unihpe_ref.data.PROTOCOLS lists them
    batch_size: int = option(256, at_least=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """The settings of a whole run, which are printed at its start and saved with its weights."""

    preset: str = "paper"  # the name of the preset
    seed: int = option(0, at_least=0)  # weights, poses, cameras, negatives, noise
    motion: Path | None = None  # motion or a recording, as `unihpe data` reads it; None generates motion
    also: Path | None = None  # more data, drawn in proportion to its size; Table 6 adds MPI-INF-3DHP to Human3.6M
    start: Path | None = None  # fine-tuning: a model of the same parts and sizes whose weights the run begins with
    image_weights: Path | None = None  # COCO pose checkpoint that the image encoder starts from; section 4.4
    fuse_init: Literal["zero", "imagenet", "random"] = "zero"  # of the layers that a HRNet pose checkpoint lacks
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the networks; losses stay in float32
    workers: int = option(0, at_least=0)  # processes that prepare batches; any number gives the same batches
    log_every: int = option(10, at_least=1)  # steps between two records of log.jsonl
    checkpoint_every: int = option(500, at_least=1)  # steps between two checkpoints to resume from
    tensorboard: bool = False  # event files beside JSONL and CSV; needs the extra `tensorboard`
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    lifting: LiftingStage = LiftingStage()
    companions: CompanionStage = CompanionStage()
    stage1: Stage1 = Stage1()
    stage2: Stage2 = Stage2()
    stage3: Stage3 = Stage3()
    evaluation: EvaluationConfig = EvaluationConfig()
