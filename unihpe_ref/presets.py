"""Named settings: the paper's, each row of its ablations, and some that a CPU can train.

A preset lists only its differences from the paper. The data are chosen where a run starts.
"""

from __future__ import annotations

from typing import Any

from multicontrast._checks import check_choice
from unihpe_ref.config import RunConfig

# Table 6, row 1: "without contrastive learning", so stages 1 and 2 have nothing to do.
_NO_CONTRAST = {"stage1.steps": 0, "stage2.steps": 0, "stage3.contrastive_weight": 0.0, "model.modality_token": False}
# "Applying those losses on the pre-training stage" (Table 6's caption): stage 3 is that of equation (5) in every row.
_PAIRS = {"stage2.alpha": 0.0, "model.modality_token": False}

# Poses alone, by the residual-MLP pair of Table 4, small enough for half an hour on a CPU.
_RESIDUAL_MLP = {
    "data.rotation_degrees": 0.0,
    "data.scale": 0.0,
    "model.image_encoder": "none",
    "model.embedding_dim": 512,
    "model.pose_encoder": "mlp",
    "model.decoder": "mlp",
    "model.mlp_width": 512,
    "model.mlp_blocks": 2,
    "model.mlp_dropout": 0.0,
    "evaluation.stride": 24,
}
_LIFTER = _RESIDUAL_MLP | {
    "data.rotation_degrees": 30.0,
    "data.limb_degrees": 30.0,
    "data.cameras": "varied",
    "data.bodies": 0.4,
    "data.joint_noise": 0.02,
    "data.min_gap_seconds": 0.1,
    "data.view": "box",
    "model.embedding_dim": 480,
    "model.modality_token": False,
    "model.encoder_noise_token": True,
    "precision": "bfloat16",
    "lifting.steps": 20000,
    "lifting.batch_size": 1024,
    "lifting.learning_rate": 3e-3,
    "lifting.final_learning_rate": 0.0,
    "lifting.warmup_steps": 100,
    "stage1.steps": 0,
    "stage3.steps": 0,
    "companions.steps": 2000,
    "companions.batch_size": 512,
    "companions.learning_rate": 1e-3,
    "companions.final_learning_rate": 0.0,
    "companions.warmup_steps": 100,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Table 4: 2D encoder and 3D decoder, trained on Human3.6M. The paper does not name the 3D encoder and 2D decoder;
    # here they are of the same kinds.
    "table4-mlp-mlp": {"model.pose_encoder": "mlp", "model.decoder": "mlp"},
    "table4-transformer-mlp": {"model.decoder": "mlp"},
    "table4-mlp-diffusion": {"model.pose_encoder": "mlp"},
    "table4-transformer-diffusion": {},
    # Table 5: image encoder, trained on Human3.6M and MPI-INF-3DHP (--also) from COCO pose weights (--image-weights).
    # Its HRNet-w32, 55.2 / 40.0, is the last row of Table 6.
    "table5-vit-s": {"model.image_encoder": "vit_s"},
    "table5-vit-b": {"model.image_encoder": "vit_b"},
    "table5-hrnet-w32": {},
    "table5-hrnet-w48": {"model.image_encoder": "hrnet_w48"},
    # Table 6: what is aligned and how; the last row adds MPI-INF-3DHP (--also) to Human3.6M.
    "table6-no-contrast": _NO_CONTRAST,
    "table6-pairs": _PAIRS,
    "table6-pairs-triplet": {"model.modality_token": False},
    "table6-pairs-triplet-token": {},
    "table6-pairs-triplet-token-3dhp": {},
    # All three modalities in minutes on one core: small transformers, score-based decoders and HRNet, small crops.
    "demo": {
        "data.image_size": (64, 64),
        "data.scale": 0.0,
        "data.rotation_degrees": 0.0,
        "model.embedding_dim": 256,
        "model.image_encoder": "hrnet_tiny",
        "model.encoder_width": 64,
        "model.encoder_layers": 2,
        "model.encoder_heads": 4,
        "model.encoder_feedforward": 128,
        "model.encoder_dropout": 0.0,
        "model.decoder_width": 256,
        "model.decoder_time_width": 64,
        "model.decoder_dropout": 0.0,
        "model.parameterisation": "preconditioned",
        "model.posterior_spread": 0.25,
        "model.noise_draws": 4,
        "sampler.steps": 50,
        "stage1.steps": 100,
        "stage1.batch_size": 128,
        "stage1.learning_rate": 1e-3,
        "stage1.final_learning_rate": 0.0,
        "stage1.warmup_steps": 10,
        "stage2.steps": 60,
        "stage2.batch_size": 32,
        "stage2.learning_rate": 3e-3,
        "stage2.warmup_steps": 10,
        "stage3.steps": 200,
        "stage3.batch_size": 32,
        "stage3.learning_rate": 2e-3,
        "stage3.final_learning_rate": 0.0,
        "stage3.warmup_steps": 10,
        "stage3.ema_decay": 0.97,
        "evaluation.stride": 40,
    },
    # Stages 1 and 3 of the paper.
    "lifting": _RESIDUAL_MLP
    | {
        "stage1.steps": 200,
        "stage1.batch_size": 256,
        "stage1.learning_rate": 1e-3,
        "stage1.final_learning_rate": 0.0,
        "stage1.warmup_steps": 50,
        "stage3.steps": 4000,
        "stage3.batch_size": 256,
        "stage3.learning_rate": 1e-3,
        "stage3.final_learning_rate": 0.0,
        "stage3.warmup_steps": 50,
        "stage3.ema_decay": 0.999,
    },
    # The shipped lifter: 2D to 3D alone, trained on the reported error, for any body, camera and level of noise in the
    # 2D joints; then the 3D encoder and the 2D decoder around it.
    "lifter": _LIFTER,
}

PRESETS = tuple(_PRESETS)
SECOND_DATA_SET = "table6-pairs-triplet-token-3dhp"
"""The row of Table 6 that only adds a second data set."""


def preset(name: str) -> RunConfig:
    """The configuration of that name.

    Raises: ValueError for an unknown name, with the nearest one.
    """
    check_choice("preset", "name", name, PRESETS)
    return RunConfig(preset=name).override(**_PRESETS[name])


# Options that are not settings of the paper: data, device and logging.
_NO_SETTING = {
    "preset",
    "seed",
    "motion",
    "also",
    "start",
    "workers",
    "log_every",
    "checkpoint_every",
    "tensorboard",
    "evaluation",
}


def deviations(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The differences of a run from the paper: dotted name to (value here, the paper's).

    ``docs/unihpe/deviations.md`` explains our decisions where the paper says nothing.

    Example:
        >>> deviations(preset("table4-transformer-mlp"))
        {'model.decoder': ('mlp', 'diffusion')}
    """
    found = config.differences(RunConfig())
    return {name: both for name, both in found.items() if name.split(".")[0] not in _NO_SETTING}
