"""Settings and sources so small that a test of the whole takes seconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unihpe_ref.config import RunConfig
from unihpe_ref.data import Motion, PoseSource, generate_motion
from unihpe_ref.training.logs import RunLog

SMALL = RunConfig(preset="small").override(
    **{
        "data.image_size": (32, 32),
        "data.subjects": 3,
        "data.seconds": 2.0,
        "model.embedding_dim": 32,
        "model.image_encoder": "hrnet_tiny",
        "model.encoder_width": 16,
        "model.encoder_layers": 1,
        "model.encoder_heads": 2,
        "model.encoder_feedforward": 16,
        "model.decoder_width": 32,
        "model.decoder_time_width": 8,
        "model.decoder_blocks": 1,
        "model.mlp_width": 16,
        "model.mlp_blocks": 1,
        "sampler.steps": 3,
        "stage1.steps": 3,
        "stage1.batch_size": 8,
        "stage2.steps": 2,
        "stage2.batch_size": 6,
        "stage3.steps": 3,
        "stage3.batch_size": 6,
        "evaluation.stride": 40,
        "log_every": 1,
    }
)
POSES_ONLY = SMALL.override(**{"model.image_encoder": "none"})


def small_motion(**options: Any) -> Motion:
    """Twelve short sequences of four actions and three people."""
    return generate_motion(0, actions=("walk", "wave", "sit", "kick"), num_subjects=3, num_test_subjects=1, **options)


def small_source(images: bool = False) -> PoseSource:
    """Training sequences."""
    return PoseSource(small_motion(seconds=2.0), image_size=(32, 32) if images else None).split("train")


def quiet_log(folder: Path) -> RunLog:
    """A log whose progress nobody sees."""
    return RunLog(folder / "log.jsonl", Console(file=io.StringIO()))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that a module stores."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
