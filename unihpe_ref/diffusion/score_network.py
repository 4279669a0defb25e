r"""The network of the score-based decoders: fully connected, conditioned at every layer.

Its shape is GFPose's (Ci et al., CVPR 2023), which UniHPE adopts (supplement B.3): a stem and residual blocks of two
layers; every layer adds its own projections of the time and of the condition, then GroupNorm, SiLU and dropout.

The parameterisation is the meaning of its output F. ``"noise"``: F is the noise, as in GFPose. ``"preconditioned"``:
for data of unit variance whose deviation given the condition is s,

.. math:: \hat z = \frac{\sigma}{s^2 m^2 + \sigma^2}\, x_t - c\, F\big(x_t / \sqrt{m^2 + \sigma^2},\, t\big) , \quad
    c = m\, \frac{\sqrt{s^4 m^2 + \sigma^2}}{s^2 m^2 + \sigma^2} ,

so that F has a target of unit variance at every t (``docs/unihpe/model.md`` has the derivation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multicontrast._checks import check_choice, check_count, check_like, check_number, check_shape, three_beats
from unihpe_ref.diffusion.sde import SDE, SubVP, check_sde

PARAMETERISATIONS = ("noise", "preconditioned")
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

    def forward(self, h: Tensor, time: Tensor, projected: Tensor) -> Tensor:
        """``projected`` ``(B, width)`` is ``W_c condition``; ``h`` holds B rows, or several copies of them."""
        mixed = self.linear(h) + self.time(time)
        mixed = (mixed.unflatten(0, (-1, len(projected))) + projected).flatten(0, 1)
        return self.dropout(nn.functional.silu(self.norm(mixed)))


class ScoreNetwork(nn.Module):
    """Estimates the noise in ``x_t``; the score is minus that over sigma(t).

    Args:
        size: n, the number of coordinates.
        condition_width: length of the condition vector.
        width: of the hidden layers, a multiple of 32. 1024 in GFPose.
        time_width: of the embedding of the time, even and at least 4. 512 in GFPose.
        blocks: residual blocks of two layers. Two in the paper (section 3.1).
        dropout: after every layer. 0.25 in GFPose.
        parameterisation: ``"noise"`` is GFPose's; with it GroupNorm hides the norm of ``x_t``, and the
            probability-flow ODE amplifies every drift. ``"preconditioned"`` works with every sampler.
        spread: s, root mean square deviation of a coordinate given the condition; only for the preconditioned network.
        sde: the process; only for the preconditioned network.
    Raises: ValueError for an unknown parameterisation and an invalid ``width`` or ``time_width``.
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
        parameterisation: str = "noise",
        spread: float = 1.0,
        sde: SDE | None = None,
    ) -> None:
        super().__init__()
        check_choice("ScoreNetwork", "parameterisation", parameterisation, PARAMETERISATIONS)
        size = check_count("ScoreNetwork", "size", size, 1, 2**16)
        condition_width = check_count("ScoreNetwork", "condition_width", condition_width, 1, 2**16)
        width = check_count("ScoreNetwork", "width", width, 1, 2**16)
        time_width = check_count("ScoreNetwork", "time_width", time_width, 1, 2**16)
        blocks = check_count("ScoreNetwork", "blocks", blocks, 0, 1000)
        remedy = "Pass a probability, such as GFPose's 0.25."
        dropout = check_number("ScoreNetwork", "dropout", dropout, least=0, below=1, remedy=remedy)
        remedy = "Pass the error of the best single answer over the deviation of the data; 1 is always safe."
        self.spread = check_number("ScoreNetwork", "spread", spread, above=0, below=1e3, remedy=remedy)
        sde = SubVP() if sde is None else sde
        check_sde("ScoreNetwork", sde)
        if width % _GROUPS:
            needed = f"`ScoreNetwork` needs `width` to be a multiple of {_GROUPS} (its group normalisation)"
            raise ValueError(three_beats(needed, str(width), "Try 256 or 1024."))
        if time_width % 2 or time_width < 4:
            needed = "`ScoreNetwork` needs `time_width` to be even and at least 4 (sines and cosines)"
            raise ValueError(three_beats(needed, str(time_width), "Try 128 or 512."))
        self.time_width = time_width
        self.preconditioned = parameterisation == "preconditioned"
        self.sde = sde
        self.time = nn.Sequential(nn.Linear(time_width, time_width), nn.SiLU())
        self.stem = _ConditionedLayer(size, width, time_width, condition_width, dropout)
        layers = (_ConditionedLayer(width, width, time_width, condition_width, dropout) for _ in range(2 * blocks))
        self.blocks = nn.ModuleList(layers)  # two to a block
        self.out = nn.Linear(width, size)

    def project(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Every layer's projection ``(B, width)`` of ``condition`` ``(B, condition_width)``, once for all steps."""
        check_shape("project", "condition", condition, ("B", self.stem.condition.in_features))
        check_like("project", "condition", condition, self.out.weight)
        return tuple(layer.condition(condition) for layer in (self.stem, *self.blocks))

    def forward(self, x_t: Tensor, t: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        """The noise in ``x_t``, ``(R, n)``.

        Args:
            x_t: ``(R, n)``, R rows: those of the condition, or several copies of them one after the other.
            t: ``(R,)`` in (0, 1], or ``(1,)`` for one time of all rows.
            projected: from :meth:`project`, B rows; R is a multiple of B.
        """
        mean, std = self.sde.mean(t)[:, None], self.sde.std(t)[:, None]
        time = self.time(sinusoidal_embedding(t, self.time_width))
        first, *others = projected
        h = self.stem(x_t * (mean.square() + std.square()).rsqrt() if self.preconditioned else x_t, time, first)
        for layers, conditions in zip(zip(self.blocks[::2], self.blocks[1::2]), zip(others[::2], others[1::2])):
            inner = h
            for layer, condition in zip(layers, conditions):
                inner = layer(inner, time, condition)
            h = h + inner
        out = self.out(h)
        if not self.preconditioned:
            return out
        return std / self._variance(mean, std) * x_t - self._factor(mean, std) * out

    def loss_weight(self, t: Tensor) -> Tensor:
        r"""The weight of the squared error of the noise at ``t``, with which every time has equal weight for F.

        :math:`1 / c^2`, which turns an error of the noise into one of F; 1 if F is the noise itself.
        """
        return self._factor(self.sde.mean(t), self.sde.std(t)).pow(-2) if self.preconditioned else torch.ones_like(t)

    def _variance(self, mean: Tensor, std: Tensor) -> Tensor:
        """The variance of x_t given the condition."""
        return (self.spread * mean).square() + std.square()

    def _factor(self, mean: Tensor, std: Tensor) -> Tensor:
        """c, the factor of F in the noise."""
        return mean * (self.spread**4 * mean.square() + std.square()).sqrt() / self._variance(mean, std)
