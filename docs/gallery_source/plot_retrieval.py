r"""
Retrieval between modalities
============================

Once three modalities share a space, each retrieves its match in the others. The program measures recall within the
first k answers, in all six directions, before and after three hundred steps.
"""

# %%
# Twelve hidden numbers, in three random nonlinear views with independent noise.

import matplotlib.pyplot as plt
import torch
from torch import nn

import multicontrast as mc

HIDDEN, VIEW, D, B = 12, 40, 32, 128
NAMES = ("image", "audio", "text")
generator = torch.Generator().manual_seed(1)
lenses = [torch.randn(HIDDEN, VIEW, generator=generator) for _ in NAMES]


def views(count):
    hidden = torch.randn(count, HIDDEN, generator=generator)
    return [
        torch.tanh(hidden @ lens) + 0.3 * torch.randn(count, VIEW, generator=generator)
        for lens in lenses
    ]


torch.manual_seed(0)
encoders = nn.ModuleList(
    nn.Sequential(nn.Linear(VIEW, 64), nn.ReLU(), nn.Linear(64, D)) for _ in NAMES
)
criterion = mc.TrimodalInfoNCE(mc.Temperature(0.07, min=0.01), alpha=0.0)
optimizer = torch.optim.Adam([*encoders.parameters(), *criterion.parameters()], lr=3e-3)
held_out = views(1000)


@torch.no_grad()
def recalls():
    """Recall@1 of each modality (rows) in each other one (columns), in per cent."""
    x = [encoder(view) for encoder, view in zip(encoders, held_out)]
    table = torch.full((3, 3), torch.nan)
    for m in range(3):
        for n in range(3):
            if m != n:
                table[m, n] = 100 * mc.metrics.retrieval_recall(x[m], x[n], k=1)
    return table


before = recalls()
for _ in range(300):
    optimizer.zero_grad()
    criterion(*(encoder(view) for encoder, view in zip(encoders, views(B)))).backward()
    optimizer.step()
after = recalls()

# %%

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for axis, table, title in zip(
    axes, (before, after), ("before training", "after 300 steps")
):
    image = axis.imshow(table, vmin=0, vmax=100, cmap="Blues")
    axis.set(
        title=f"recall@1 of 1000, {title}",
        xticks=range(3),
        yticks=range(3),
        xlabel="searched",
        ylabel="asked",
    )
    axis.set_xticklabels(NAMES)
    axis.set_yticklabels(NAMES)
    for m in range(3):
        for n in range(3):
            if m != n:
                dark = table[m, n] > 60
                axis.text(
                    n,
                    m,
                    f"{table[m, n]:.1f} %",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
figure.colorbar(image, ax=axes, label="per cent")
