r"""The sub-VP process, which turns data at t = 0 into unit noise at t = 1.

.. math::

    dx = -\tfrac12 \beta(t)\, x\, dt + g(t)\, dw, \qquad
    x_t \mid x_0 \sim \mathcal N\big(m(t)\, x_0,\; \sigma(t)^2 I\big),

with :math:`\beta(t) = \beta_0 + t (\beta_1 - \beta_0)`, :math:`\log m(t) = -\tfrac14 t^2 (\beta_1 - \beta_0) -
\tfrac12 t \beta_0`, :math:`\sigma(t) = 1 - m(t)^2` (no square root: that is what "sub" says) and
:math:`g(t)^2 = \beta(t) \big(1 - m(t)^4\big)`.

Source: Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SubVP:
    """Sub-VP SDE on t in (0, 1]; every method is element-wise in ``t`` and keeps its shape and dtype."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_mean(self, t: Tensor) -> Tensor:
        """log m(t), the shrinkage of the data."""
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def mean(self, t: Tensor) -> Tensor:
        """m(t): 1 at t = 0, about 0.007 at t = 1."""
        return torch.exp(self.log_mean(t))

    def std(self, t: Tensor) -> Tensor:
        """sigma(t) = 1 - m(t)^2, written with ``expm1`` so that it keeps its digits near t = 0."""
        return -torch.expm1(2 * self.log_mean(t))

    def beta(self, t: Tensor) -> Tensor:
        """beta(t); the drift of the process is ``-beta(t) x / 2``."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = beta(t) (1 - m(t)^4)."""
        return -self.beta(t) * torch.expm1(4 * self.log_mean(t))
