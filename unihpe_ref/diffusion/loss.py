r"""Denoising score matching.

With :math:`x_t = m x_0 + \sigma z` the score of the noised sample is :math:`-z / \sigma`, so a network that states the
noise :math:`z` states the score. The loss weighs every noise level alike in :math:`z`:

.. math:: \mathcal L = \mathbb E_{t, z} \; \tfrac12 \lVert z - \hat z(m x_0 + \sigma z, t) \rVert^2 .
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multicontrast._checks import check_choice
from unihpe_ref.diffusion.sde import SubVP

SMALLEST_TIME = 1e-5  # training times are uniform on [1e-5, 1]: at 0 the noise level is 0 and the score infinite
REDUCTIONS = ("half_sum", "mean")

NoiseEstimate = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> the noise in x_t


def denoising_loss(
    estimate_noise: NoiseEstimate,
    x0: Tensor,
    sde: SubVP,
    *,
    reduction: str = "half_sum",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoising score matching at one random time per row.

    Args:
        estimate_noise: called once with ``x_t`` ``(B, n)`` and ``t`` ``(B,)``; returns ``(B, n)``.
        x0: ``(B, n)`` data, of about unit variance.
        sde: the process that adds the noise.
        reduction: ``"half_sum"`` is half the squared error summed over the n coordinates, averaged over the batch:
            what GFPose trains, about n / 2 before training. ``"mean"`` averages over the coordinates as well.
        generator: draws the times and the noise; on the CPU, so that every device sees the same draw.
    Returns: a scalar.
    """
    check_choice("denoising_loss", "reduction", reduction, REDUCTIONS)
    t = torch.rand(len(x0), generator=generator, dtype=x0.dtype) * (1 - SMALLEST_TIME) + SMALLEST_TIME
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t, noise = t.to(x0.device), noise.to(x0.device)
    x_t = sde.mean(t)[:, None] * x0 + sde.std(t)[:, None] * noise
    squared = (noise - estimate_noise(x_t, t)).square()
    if reduction == "half_sum":
        return 0.5 * squared.sum(-1).mean()
    return squared.mean()
