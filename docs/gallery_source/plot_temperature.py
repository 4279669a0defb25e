r"""
A temperature within its bounds
===============================

A learned temperature that is clamped in the loss stops learning on its bound, because a clamp has no gradient. One
that is never clamped can diverge. :class:`multicontrast.Temperature` clamps the stored value before the forward pass,
so it always gets a gradient and can leave its bound.
"""

# %%
# Matches are first easy, which pulls tau down to its bound of 0.05, and then hard, which should let it rise again.

import matplotlib.pyplot as plt
import torch
from torch import nn

import multicontrast as mc

B, D, STEPS = 64, 32, 400
LOWEST = 0.05


def noisy_views(step, generator):
    """Two views of the same batch; the noise starts in the middle of the run."""
    x = torch.randn(B, D, generator=generator)
    level = 1.5 if step < STEPS // 2 else 6.0
    return x, x + level * torch.randn(B, D, generator=generator)


class ClampedInside(nn.Module):
    """What many do: a clamp in the graph."""

    def __init__(self):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(0.2).log())

    def forward(self):
        return self.log_tau.exp().clamp(min=LOWEST)


def run(temperature):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.2)
    taus = []
    for step in range(STEPS):
        x, y = noisy_views(step, generator)
        tau = temperature()
        optimizer.zero_grad()
        mc.pairwise_infonce(x, y, tau).backward()
        optimizer.step()
        taus.append(tau.item())
    return taus


# %%

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.axhline(LOWEST, color="0.7", linestyle=":", label="lower bound")
axis.axvline(STEPS / 2, color="0.9", linewidth=6, label="the matches become hard")
axis.plot(
    run(ClampedInside()), color="#d55e00", label="clamped inside the graph: stuck"
)
axis.plot(
    run(mc.Temperature(0.2, min=LOWEST)),
    color="#0072b2",
    linewidth=2,
    label="multicontrast.Temperature",
)
axis.set(yscale="log", xlabel="step", ylabel="tau")
axis.legend()
