"""The network of the score-based decoders: fully connected, conditioned at every layer.

Its shape is GFPose's (Ci et al., CVPR 2023), which UniHPE adopts (supplement B.3): a stem and residual blocks of two
layers; every layer adds its own projections of the time and of the condition, then GroupNorm, SiLU and dropout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multicontrast._checks import three_beats
from unihpe_ref.diffusion.sde import SDE, SubVP

_GROUPS = 32
_TIME_SCALE = 999.0  # t in (0, 1] becomes the index of one of a thousand steps
_LONGEST_PERIOD = 1e4


def sinusoidal_embedding(t: Tensor, width: int) -> Tensor:
    """``(B,)`` times in (0, 1] to ``(B, width)``: sines and cosines of 999 t, periods from 2 pi to 2 pi 1e4."""
    half = width // 2
    exponent = torch.arange(half, device=t.device, dtype=t.dtype) / (half - 1)
    angles = _TIME_SCALE * t[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    return torch.cat((angles.sin(), angles.cos()), -1)


class _ConditionedLayer(nn.Module):
    """``dropout(silu(norm(W h + W_t time + W_c condition)))``."""

    def __init__(self, inputs: int, width: int, time_width: int, condition_width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.time = nn.Linear(time_width, width)
        self.condition = nn.Linear(condition_width, width)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        mixed = self.linear(h) + self.time(time) + self.condition(condition)
        return self.dropout(nn.functional.silu(self.norm(mixed)))


class ScoreNetwork(nn.Module):
    """States the noise in ``x_t``; the score is minus that over sigma(t).

    Args:
        size: n, the number of coordinates.
        condition_width: length of the condition vector.
        width: of the hidden layers, a multiple of 32. 1024 in GFPose.
        time_width: of the embedding of the time, even and at least 4. 512 in GFPose.
        blocks: residual blocks of two layers. Two in the paper (section 3.1).
        dropout: after every layer. 0.25 in GFPose.
        gaussian_skip: adds the exact noise estimate for unit Gaussian data, ``sigma x / (m^2 + sigma^2)``, so that the
            layers learn the difference. GroupNorm right after the input hides the norm of ``x_t`` from the plain
            network; the probability-flow ODE then amplifies every drift. With the skip each sampler is stable. The
            plain network is GFPose's and does well with the ``"gfpose"`` sampler.
        sde: the process; used by the skip alone.
    Raises: ValueError for a width or a time width that does not divide.
    """

    def __init__(
        self,
        size: int,
        condition_width: int,
        *,
        width: int = 1024,
        time_width: int = 512,
        blocks: int = 2,
        dropout: float = 0.25,
        gaussian_skip: bool = False,
        sde: SDE | None = None,
    ) -> None:
        super().__init__()
        if width % _GROUPS or width < _GROUPS:
            needed = f"`ScoreNetwork` needs `width` to be a multiple of {_GROUPS} (its group normalisation)"
            raise ValueError(three_beats(needed, str(width), "Try 256 or 1024."))
        if time_width % 2 or time_width < 4:
            needed = "`ScoreNetwork` needs `time_width` to be even and at least 4 (sines and cosines)"
            raise ValueError(three_beats(needed, str(time_width), "Try 128 or 512."))
        self.time_width = time_width
        self.gaussian_skip = gaussian_skip
        self.sde = sde or SubVP()
        self.time = nn.Sequential(nn.Linear(time_width, time_width), nn.SiLU())
        self.stem = _ConditionedLayer(size, width, time_width, condition_width, dropout)
        layers = (_ConditionedLayer(width, width, time_width, condition_width, dropout) for _ in range(2 * blocks))
        self.blocks = nn.ModuleList(layers)  # two to a block
        self.out = nn.Linear(width, size)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """``x_t`` ``(B, n)``, ``t`` ``(B,)`` in (0, 1], ``condition`` ``(B, condition_width)``: noise ``(B, n)``."""
        time = self.time(sinusoidal_embedding(t, self.time_width))
        h = self.stem(x_t, time, condition)
        for first, second in zip(self.blocks[::2], self.blocks[1::2]):
            h = h + second(first(h, time, condition), time, condition)
        noise = self.out(h)
        if self.gaussian_skip:
            mean, std = self.sde.mean(t)[:, None], self.sde.std(t)[:, None]
            noise = noise + std * x_t / (mean.square() + std.square())
        return noise
