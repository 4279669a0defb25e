r"""Samplers from noise to data: three ways to run a process in reverse.

With the drift :math:`f(t)\, x`, written :math:`f` below, and the score :math:`s = -\hat z / \sigma`,

``"sde"``
    :math:`dx = (f - g^2 s)\, dt + g\, dw`, Euler-Maruyama. Draws from the distribution.
``"ode"``
    :math:`dx = (f - \tfrac12 g^2 s)\, dt`, Heun. The same distribution, without added noise. It needs a network that
    depends on the norm of x: the ``"preconditioned"`` one of
    :class:`~unihpe_ref.diffusion.score_network.ScoreNetwork`.
``"gfpose"``
    :math:`dx = (f - g^2 s)\, dt`: the reverse SDE with its noise left out, which GFPose calls an ODE. It contracts to
    the conditional mean (the mode), so it is the best single estimate and has almost no diversity.

All start from the noise of t = 1 and take ``steps`` equal steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._checks import (
    call,
    check_callable,
    check_choice,
    check_count,
    check_device,
    check_dtype,
    check_generator,
    check_size,
)
from unihpe_ref.diffusion.loss import ESTIMATE, NoiseEstimate
from unihpe_ref.diffusion.sde import SDE, check_sde

SAMPLERS = ("gfpose", "ode", "sde")


@torch.no_grad()
def sample(
    estimate_noise: NoiseEstimate,
    shape: tuple[int, int],
    sde: SDE,
    *,
    sampler: str = "gfpose",
    steps: int = 50,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Samples ``(B, n)`` of the data whose noise ``estimate_noise(x_t, t)`` estimates.

    Args:
        estimate_noise: as in :func:`~unihpe_ref.diffusion.denoising_loss`; evaluated ``steps`` times
            (``2 * steps - 1`` times by ``"ode"``), with one time ``(1,)`` for all rows.
        shape: ``(B, n)``.
        sde: the process.
        sampler: ``"gfpose"``, ``"ode"`` or ``"sde"``.
        steps: 1000 is the paper's setting; 50 is within 1-3 mm of it for data of unit variance.
        generator: draws the start and the noise; on the CPU, so that every device sees the same draw.
        device, dtype: of the result.
    Returns: ``(B, n)`` without gradient. The last step adds no noise.
    Raises: ValueError for an unknown sampler and for fewer than one step.
    """
    check_choice("sample", "sampler", sampler, SAMPLERS)
    check_callable("sample", "estimate_noise", estimate_noise, ESTIMATE)
    check_sde("sample", sde)
    check_generator("sample", generator)
    device = check_device("sample", device)
    check_dtype("sample", dtype)
    remedy = "Pass 20 to 50 for good poses; the paper takes 1000."
    steps = check_count("sample", "steps", steps, 1, 10**6, remedy=remedy)
    size = check_size("sample", "shape", shape, 0, 2**31 - 1, remedy="Pass `(rows, coordinates)`.")
    needed = "`sample` needs an `estimate_noise(x_t, t)`"
    score_factor = 0.5 if sampler == "ode" else 1.0

    def reverse_drift(x: Tensor, time: float) -> Tensor:
        t = torch.tensor([time], device=device, dtype=dtype)
        weight = score_factor * sde.diffusion_squared(t) / sde.std(t)
        return sde.drift(t)[:, None] * x + weight[:, None] * call(needed, estimate_noise, x, t, remedy=ESTIMATE)

    level = sde.std(torch.ones((), dtype=dtype))
    x = (level * torch.randn(size, generator=generator, dtype=dtype)).to(device)
    step = 1 / steps
    for k in range(steps):
        time = 1 - k * step
        last = k == steps - 1  # ends at t = 0 with noise level 0: adds no noise and averages no slope
        slope = reverse_drift(x, time)
        if sampler == "ode" and not last:
            slope = 0.5 * (slope + reverse_drift(x - step * slope, time - step))
        x = x - step * slope
        if sampler == "sde" and not last:
            t = torch.tensor(time, dtype=dtype)
            noise = torch.randn(size, generator=generator, dtype=dtype)
            x = x + (sde.diffusion_squared(t) * step).sqrt().to(device) * noise.to(device)
    return x
