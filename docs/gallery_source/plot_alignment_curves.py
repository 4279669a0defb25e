r"""
Alignment with and without the triplet
======================================

Three small encoders learn to bring three views of the same thing together. The curves are the mean cosine between each
two modalities for matching samples, as in Fig. 5 of the UniHPE paper, once with the pairs alone and once with the
triplet term beside them. On a toy as small as this the two are close; the page on studies has the real comparison.
"""

# %%
# Twelve hidden numbers, seen three times through random nonlinear views with noise of their own.

import matplotlib.pyplot as plt
import torch
from torch import nn

import multicontrast as mc

HIDDEN, VIEW, D, B, STEPS = 12, 40, 32, 128, 120
NOISE = (0.9, 0.3, 0.1)  # pictures are the least certain
NAMES = ("image", "2D", "3D")


def make_world(seed):
    generator = torch.Generator().manual_seed(seed)
    lenses = [torch.randn(HIDDEN, VIEW, generator=generator) for _ in NAMES]

    def batch():
        hidden = torch.randn(B, HIDDEN, generator=generator)
        return [
            torch.tanh(hidden @ lens) + noise * torch.randn(B, VIEW, generator=generator)
            for lens, noise in zip(lenses, NOISE)
        ]

    return batch


def train(alpha):
    torch.manual_seed(0)
    batch = make_world(1)
    encoders = nn.ModuleList(nn.Sequential(nn.Linear(VIEW, 64), nn.ReLU(), nn.Linear(64, D)) for _ in NAMES)
    criterion = mc.TrimodalInfoNCE(mc.Temperature(0.2, min=0.05), alpha=alpha, negatives="shared")
    optimizer = torch.optim.Adam([*encoders.parameters(), *criterion.parameters()], lr=3e-3)
    curves = []
    for _ in range(STEPS):
        x = [encoder(view) for encoder, view in zip(encoders, batch())]
        optimizer.zero_grad()
        criterion(*x).backward()
        optimizer.step()
        with torch.no_grad():
            curves.append(mc.metrics.cosine_matrix(x)[torch.triu_indices(3, 3, 1).unbind()])
    return torch.stack(curves)


# %%

figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
for alpha, style, label in ((0.0, "--", "pairs"), (1.0, "-", "pairs + triplet")):
    for curve, (m, n), colour in zip(train(alpha).T, ((0, 1), (0, 2), (1, 2)), ("#0072b2", "#d55e00", "#009e73")):
        axis.plot(curve, style, color=colour, label=f"{NAMES[m]} and {NAMES[n]}, {label}")
axis.set(xlabel="step", ylabel="mean cosine of matching samples")
axis.legend(ncols=2)
axis.grid(alpha=0.3)
