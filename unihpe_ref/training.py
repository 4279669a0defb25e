"""The one training loop. A stage says what is trained and what is lost; everything else about a step is here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from multicontrast import Temperature
from multicontrast._checks import three_beats
from unihpe_ref.config import StageConfig
from unihpe_ref.data import PoseBatch, PoseSource
from unihpe_ref.logs import RunLog
from unihpe_ref.models import UniHPE


@dataclass(frozen=True)
class StageOutput:
    """One forward pass: the terms of the objective, which is their sum, and the embeddings behind them."""

    losses: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]  # modality -> (B, D)


class Stage(Protocol):
    """One stage of the paper."""

    @property
    def number(self) -> int:
        """1, 2 or 3, as the paper counts."""

    @property
    def name(self) -> str:
        """For the log and the display."""

    @property
    def config(self) -> StageConfig:
        """Its settings."""

    @property
    def temperature(self) -> Temperature:
        """Of its contrastive loss; new in each stage."""

    @property
    def ema_decay(self) -> float | None:
        """Of the average of the weights, which is then the result; None where the last weights are."""

    @property
    def needs_images(self) -> bool:
        """Whether its batches hold pictures, where the model encodes them."""

    def trained(self, model: UniHPE) -> list[nn.Module]:
        """The parts whose weights move; all others are frozen, in evaluation mode."""

    def forward(self, model: UniHPE, batch: PoseBatch, generator: torch.Generator) -> StageOutput:
        """Losses of a batch."""


def learning_rate_factor(step: int, config: StageConfig) -> float:
    """What multiplies the peak learning rate at ``step`` (from 0): a linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: UniHPE, stage: Stage) -> torch.optim.Optimizer:
    """Adam over the weights that the stage trains and its temperature, which never decays.

    AdamW is Adam where the weight decay is zero, as in the paper.
    """
    weights = [parameter for part in stage.trained(model) for parameter in part.parameters()]
    groups = [
        {"params": weights, "weight_decay": stage.config.weight_decay},
        {"params": list(stage.temperature.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.config.learning_rate, fused=True)


def fit(
    stage: Stage,
    model: UniHPE,
    source: PoseSource,
    log: RunLog,
    *,
    seed: int,
    log_every: int = 10,
    min_gap_seconds: float = 1.0,
) -> None:
    """Trains ``model`` in place through one stage.

    The seed fixes everything: which poses, which cameras, dropout, negatives and noise. Two runs on one machine with
    the same number of threads give the same weights, bit for bit.

    Args:
        stage: what is trained and how it is judged.
        model: left in evaluation mode, all weights free again; after a stage with ``ema_decay``, with their average.
        source: the training split.
        log: takes a record every ``log_every`` steps and for the last.
        seed: of this stage.
        min_gap_seconds: between two frames of one sequence in one batch: near duplicates are false negatives.
    Raises: FloatingPointError when the loss is no longer finite.
    """
    config = stage.config
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)  # all the rest
    _choose_trained(model, stage)
    temperature = stage.temperature.to(model.device)
    optimizer = make_optimizer(model, stage)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = None if stage.ema_decay is None else _average_of(model, stage.ema_decay)
    batches = _batches(stage, source, generator, min_gap_seconds, model.device)

    log.begin_stage(stage.name, config.steps)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        output = stage.forward(model, next(batches), generator)
        loss = torch.stack(list(output.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        record = None
        if (step + 1) % log_every == 0 or step + 1 == config.steps:
            record = _record(output, loss, norm, temperature, optimizer)
        if record is not None or loss.device.type == "cpu":  # elsewhere a look at each step would wait for the device
            _check_finite(loss.item(), stage, step)
        log.step(step + 1, record)
    log.end_stage()

    if average is not None and config.steps:
        model.load_state_dict(average.module.state_dict())
    model.requires_grad_(True).eval()


def _check_finite(loss: float, stage: Stage, step: int) -> None:
    if not math.isfinite(loss):
        needed, came = f"{stage.name} needs a finite loss", f"{loss} at step {step + 1}"
        raise FloatingPointError(three_beats(needed, came, "Lower `learning_rate` or lengthen `warmup_steps`."))


def _choose_trained(model: UniHPE, stage: Stage) -> None:
    model.requires_grad_(False).eval()
    for part in stage.trained(model):
        part.requires_grad_(True).train()


def _average_of(model: UniHPE, decay: float) -> AveragedModel:
    """Exponential moving average with a warm-up: after n updates the decay is at most (1 + n) / (10 + n), as GFPose's.

    Buffers (the running statistics of BatchNorm) are averages already and are copied.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:  # lists of tensors, a tensor
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)


def _batches(
    stage: Stage, source: PoseSource, generator: torch.Generator, min_gap_seconds: float, device: torch.device
) -> Iterator[PoseBatch]:
    for indices in source.sampler(stage.config.batch_size, generator, min_gap_seconds):
        yield source.batch(indices, generator).to(device)


def _record(
    output: StageOutput, loss: Tensor, norm: Tensor, temperature: Temperature, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """The numbers of a step: losses, mean cosine of the positives of each pair (Figure 5), tau, rate, gradient."""
    record = {"loss": loss.item()}
    record |= {name: value.item() for name, value in output.losses.items()}
    with torch.no_grad():
        for a, b in combinations(output.embeddings, 2):
            cosine = nn.functional.cosine_similarity(output.embeddings[a], output.embeddings[b])
            record[f"cosine_{a}_{b}"] = cosine.mean().item()
        record["tau"] = temperature().item()
    record["learning_rate"] = optimizer.param_groups[0]["lr"]
    record["gradient_norm"] = norm.item()
    return record
