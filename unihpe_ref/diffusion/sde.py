r"""Processes that turn data at t = 0 into noise at t = 1.

.. math::

    dx = f(t)\, x\, dt + g(t)\, dw, \qquad
    x_t \mid x_0 \sim \mathcal N\big(m(t)\, x_0,\; \sigma(t)^2 I\big).

For the two that preserve variance, :math:`f = -\tfrac12 \beta(t)` with :math:`\beta(t) = \beta_0 + t (\beta_1 -
\beta_0)`, so :math:`\log m(t) = -\tfrac14 t^2 (\beta_1 - \beta_0) - \tfrac12 t \beta_0`, and

=========  ============================================  =================================
sub-VP     :math:`\sigma = 1 - m^2` (no square root)     :math:`g^2 = \beta\, (1 - m^4)`
VP         :math:`\sigma^2 = 1 - m^2`                    :math:`g^2 = \beta`
=========  ============================================  =================================

The one whose variance explodes has :math:`f = 0`, :math:`m = 1`, :math:`\sigma^2 = \sigma_0^2\,(r^{2t} - 1)` with
:math:`r = \sigma_1 / \sigma_0`, and :math:`g^2 = 2 \ln r\; \sigma_0^2\, r^{2t}`.

Source: Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021, appendix B. Its VE leaves
:math:`\sigma_0^2` at t = 0; here the process starts from the data, as its equation says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from multicontrast._checks import check_choice, check_number, describe, three_beats


class SDE(Protocol):
    """A process on t in (0, 1]; every method is element-wise in ``t`` and keeps its shape and dtype."""

    def mean(self, t: Tensor) -> Tensor:
        """m(t), the factor of the data."""

    def std(self, t: Tensor) -> Tensor:
        """sigma(t), the level of the noise: 0 at t = 0."""

    def drift(self, t: Tensor) -> Tensor:
        """f(t), the factor of x in the drift."""

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2."""


def check_sde(operation: str, sde: object) -> None:
    """Raise ``TypeError`` unless ``sde`` has the four methods of a process."""
    methods = ("mean", "std", "drift", "diffusion_squared")
    if isinstance(sde, type) or not all(callable(getattr(sde, method, None)) for method in methods):
        needed = f"`{operation}` needs `sde` to be a process"
        raise TypeError(three_beats(needed, describe(sde), "Make one with `make_sde('subvp')`."))


@dataclass(frozen=True)
class VP:
    """The variance-preserving process, the limit of DDPM."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        for name, default in (("beta_min", 0.1), ("beta_max", 20.0)):
            given, remedy = getattr(self, name), f"Its default is {default:g}."
            number = check_number(type(self).__name__, name, given, least=0, below=1e6, remedy=remedy)
            object.__setattr__(self, name, number)

    def log_mean(self, t: Tensor) -> Tensor:
        """log m(t), the shrinkage of the data."""
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def mean(self, t: Tensor) -> Tensor:
        """m(t): 1 at t = 0, about 0.007 at t = 1."""
        return torch.exp(self.log_mean(t))

    def std(self, t: Tensor) -> Tensor:
        """sigma(t), written with ``expm1`` so that it keeps its digits near t = 0."""
        return (-torch.expm1(2 * self.log_mean(t))).sqrt()

    def beta(self, t: Tensor) -> Tensor:
        """beta(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def drift(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = beta(t)."""
        return self.beta(t)


@dataclass(frozen=True)
class SubVP(VP):
    """The process of GFPose, and the default: less noise than VP at every time before the last."""

    def std(self, t: Tensor) -> Tensor:
        """sigma(t) = 1 - m(t)^2, written with ``expm1`` so that it keeps its digits near t = 0."""
        return -torch.expm1(2 * self.log_mean(t))

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = beta(t) (1 - m(t)^4)."""
        return -self.beta(t) * torch.expm1(4 * self.log_mean(t))


@dataclass(frozen=True)
class VE:
    """The variance-exploding process, which keeps the data and adds growing noise; the limit of NCSN."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        low = check_number("VE", "sigma_min", self.sigma_min, above=0, below=1e18, remedy="Its default is 0.01.")
        most = 1e18 * low  # the square of the ratio fits into float32
        high = check_number("VE", "sigma_max", self.sigma_max, above=low, below=most, remedy="Its default is 50.")
        object.__setattr__(self, "sigma_min", low)
        object.__setattr__(self, "sigma_max", high)

    def mean(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        """sigma(t): 0 at t = 0, ``sigma_max`` at t = 1 (to within 1e-8 of it)."""
        return self.sigma_min * torch.expm1(2 * t * math.log(self.sigma_max / self.sigma_min)).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = d sigma^2 / dt."""
        ratio = math.log(self.sigma_max / self.sigma_min)
        return 2 * ratio * self.sigma_min**2 * torch.exp(2 * t * ratio)


SDES: dict[str, type[VP] | type[VE]] = {"subvp": SubVP, "vp": VP, "ve": VE}


def make_sde(name: str) -> SDE:
    """``"subvp"``, ``"vp"`` or ``"ve"`` with the constants of Song et al.; ValueError for another name."""
    check_choice("make_sde", "name", name, SDES)
    return SDES[name]()
