r"""Denoising score matching.

With :math:`x_t = m x_0 + \sigma z` the score of the noised sample is :math:`-z / \sigma`, so a network that estimates
the noise :math:`z` estimates the score:

.. math:: \mathcal L = \mathbb E_{t, z} \; \tfrac12\, w(t)\, \lVert z - \hat z(m x_0 + \sigma z, t) \rVert^2 .

With w = 1 every noise level has the same weight in terms of :math:`z`. In terms of :math:`x_0`, whose error is
:math:`\sigma / m` times that of :math:`z`, a high level has almost none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multicontrast._checks import (
    call,
    check_callable,
    check_choice,
    check_count,
    check_generator,
    check_shape,
    describe,
    three_beats,
)
from unihpe_ref.diffusion.sde import SDE, check_sde
from unihpe_ref.parts import Part, check_part

SMALLEST_TIME = 1e-5  # training times are uniform on [1e-5, 1]: at 0 the noise level is 0 and the score infinite
REDUCTIONS = ("half_sum", "mean")

NoiseEstimate = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> the noise in x_t; t is (B,), or (1,) for all rows
ESTIMATE = "Pass a function `(x_t, t) -> noise`."  # the remedy in errors about that argument


def denoising_loss(
    estimate_noise: NoiseEstimate,
    x0: Tensor,
    sde: SDE,
    *,
    reduction: str = "half_sum",
    generator: torch.Generator | None = None,
    part: Part | None = None,
    time_steps: int | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoising score matching at one random time per row.

    Args:
        estimate_noise: called once with ``x_t`` ``(B, n)`` and ``t`` ``(B,)``; returns ``(B, n)``.
        x0: ``(B, n)`` data, of about unit variance.
        sde: the process that adds the noise.
        reduction: ``"half_sum"`` is half the squared error summed over the n coordinates, averaged over the batch:
            GFPose's loss, about n / 2 before training. ``"mean"`` averages over the coordinates as well.
        generator: draws the times and the noise; on the CPU, so that every device sees the same draw.
        part: which rows of a larger batch ``x0`` holds, once or as several copies one after the other. The draw for
            the whole batch is sliced, so that parts of a batch get the same noise as the whole.
        time_steps: draws the times from ``1 / time_steps, ..., 1`` instead of the whole interval.
        weight: w(t), of times ``(B,)``; 1 unless given. See
            ``unihpe_ref.diffusion.score_network.ScoreNetwork.loss_weight``.
    Returns: a scalar.
    Raises: ValueError for an unknown reduction and for rows that are not copies of the part.
    """
    check_choice("denoising_loss", "reduction", reduction, REDUCTIONS)
    check_callable("denoising_loss", "estimate_noise", estimate_noise, ESTIMATE)
    check_shape("denoising_loss", "x0", x0, ("B", "n"))
    check_sde("denoising_loss", sde)
    check_generator("denoising_loss", generator)
    if time_steps is not None:
        time_steps = check_count("denoising_loss", "time_steps", time_steps, 1, remedy="Leave it out for any time.")
    part = check_part("denoising_loss", part, len(x0))
    if not part.count or len(x0) % part.count:
        needed = f"`denoising_loss` needs `x0` to hold whole copies of the {part.count} rows of `part`"
        raise ValueError(three_beats(needed, describe(x0), "Cut the batch as the part says."))
    copies = len(x0) // part.count
    t = torch.rand(copies, part.total, generator=generator, dtype=x0.dtype)[:, part.rows].reshape(-1)
    noise = torch.randn(copies, part.total, x0.shape[1], generator=generator, dtype=x0.dtype)[:, part.rows]
    t = t * (1 - SMALLEST_TIME) + SMALLEST_TIME if time_steps is None else (t * time_steps).floor().add(1) / time_steps
    t = t.to(x0.device)
    noise = noise.reshape(x0.shape).to(x0.device)
    x_t = sde.mean(t)[:, None] * x0 + sde.std(t)[:, None] * noise
    estimate = call("`denoising_loss` needs an `estimate_noise(x_t, t)`", estimate_noise, x_t, t, remedy=ESTIMATE)
    check_shape("denoising_loss", "estimate_noise(x_t, t)", estimate, x0.shape, ESTIMATE)
    squared = (noise - estimate.to(x0.dtype)).square()  # autocast may have returned half precision
    if weight is not None:
        remedy = "Pass a function of times (B,)."
        check_callable("denoising_loss", "weight", weight, remedy)
        weights = call("`denoising_loss` needs a `weight(t)`", weight, t, remedy=remedy)
        check_shape("denoising_loss", "weight(t)", weights, t.shape, remedy)
        squared = weights[:, None] * squared
    if reduction == "half_sum":
        return 0.5 * squared.sum(-1).mean()
    return squared.mean()
