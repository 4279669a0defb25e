"""Decoders from an embedding to a flattened pose in units of the data's scale: score-based, or a residual MLP.

Both have the methods ``loss(target, ...)`` and ``decode(...)``. These take the output of their ``condition``, which
combines an embedding, an int64 tensor ``(B,)`` of the modalities it came from, and the box information.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.diffusion import ScoreNetwork, denoising_loss, make_sde, sample
from unihpe_ref.models.residual_mlp import ResidualBlock
from unihpe_ref.parts import Part


class Condition(nn.Module):
    """``sqrt(D) e + M[modality] + W_b box_info``: the aligned embedding at unit RMS, with its tokens.

    The modality token (section 3.1) starts at zero; the box token is supplement B.0 for 2D and B.3 for both.
    """

    def __init__(self, config: ModelConfig, modalities: int) -> None:
        super().__init__()
        self.scale = math.sqrt(config.embedding_dim) if config.condition == "normalised" else 1.0
        self.modality = nn.Embedding(modalities, config.embedding_dim) if config.modality_token else None
        if self.modality is not None:
            nn.init.zeros_(self.modality.weight)
        self.box = nn.Linear(3, config.embedding_dim) if config.decoder_box_token else None

    def forward(self, embedding: Tensor, modality: Tensor, box_info: Tensor) -> Tensor:
        condition = self.scale * embedding
        if self.modality is not None:
            condition = condition + self.modality(modality)
        if self.box is not None:
            condition = condition + self.box(box_info)
        return condition


class ScoreDecoder(nn.Module):
    """Denoises a pose given an embedding (GFPose's network)."""

    def __init__(self, config: ModelConfig, size: int, modalities: int) -> None:
        super().__init__()
        self.size = size
        self.reduction = config.denoising_reduction
        self.draws = config.noise_draws
        self.sde = make_sde(config.sde)
        self.time_steps = config.time_steps
        self.condition = Condition(config, modalities)
        self.project = nn.Sequential(nn.Linear(config.embedding_dim, config.embedding_dim), nn.SiLU())
        self.network = ScoreNetwork(
            size,
            config.embedding_dim,
            width=config.decoder_width,
            time_width=config.decoder_time_width,
            blocks=config.decoder_blocks,
            dropout=config.decoder_dropout,
            parameterisation=config.parameterisation,
            spread=config.posterior_spread,
            sde=self.sde,
        )

    def loss(self, target: Tensor, condition: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        """Denoising score matching of ``target`` ``(copies of the part, size)``, each row at ``noise_draws`` times."""
        projected = self.network.project(self.project(condition))
        return denoising_loss(
            lambda x, t: self.network(x, t, projected),
            target.repeat(self.draws, 1),
            self.sde,
            reduction=self.reduction,
            generator=generator,
            part=part,
            time_steps=self.time_steps or None,
            weight=self.network.loss_weight,
        )

    def decode(
        self, condition: Tensor, sampling: SamplerConfig, generator: torch.Generator | None, copies: int = 1
    ) -> Tensor:
        """Samples ``(copies * B, size)``, one copy after the other; see :func:`unihpe_ref.diffusion.sample`."""
        with torch.no_grad():
            projected = self.network.project(self.project(condition))
        return sample(
            lambda x, t: self.network(x, t, projected),
            (copies * len(condition), self.size),
            self.sde,
            sampler=sampling.sampler,
            steps=sampling.steps,
            generator=generator,
            device=condition.device,
            dtype=condition.dtype,
        )


class MLPDecoder(nn.Module):
    """Residual blocks and a linear layer, trained with the mean square error (section 3.3; supplement B.1)."""

    def __init__(self, config: ModelConfig, size: int, modalities: int) -> None:
        super().__init__()
        self.condition = Condition(config, modalities)
        self.layers = nn.Sequential(
            *(ResidualBlock(config.embedding_dim, config.mlp_dropout) for _ in range(config.mlp_blocks)),
            nn.Linear(config.embedding_dim, size),
        )

    def loss(self, target: Tensor, condition: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        """Mean square error to ``target`` ``(copies of the part, size)``; draws nothing from the generator."""
        decoded = self.layers(condition)
        return nn.functional.mse_loss(decoded.to(target.dtype), target)

    def decode(
        self, condition: Tensor, sampling: SamplerConfig, generator: torch.Generator | None, copies: int = 1
    ) -> Tensor:
        """The one pose ``(B, size)``; a deterministic decoder uses neither ``sampling`` nor a generator."""
        assert copies == 1  # UniHPE checks its arguments
        return self.layers(condition)
