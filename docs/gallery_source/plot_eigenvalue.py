r"""
What the eigenvalue measures, and what it ignores
==================================================

The largest eigenvalue of a triplet's Gram matrix is a function of three cosines. It is 3 if the embeddings are equal
and 1 if they are orthogonal, and it ignores signs: cosines :math:`(1, -1, -1)` score like :math:`(1, 1, 1)`.
"""

# %%
# Fix the cosine between image and 2D pose, and let the other two vary. Outside the shaded lens no three unit vectors
# have such cosines.

import matplotlib.pyplot as plt
import torch

import multicontrast as mc

similarities = {
    "eigenvalue": mc.linalg.gram3_eigmax,
    "mean_cosine": lambda a, b, c: (a + b + c) / 3,
}
b, c = torch.meshgrid(*[torch.linspace(-1, 1, 201)] * 2, indexing="ij")
figure, axes = plt.subplots(2, 3, figsize=(10, 6.6), layout="constrained")
for row, (name, low, high) in zip(
    axes, (("eigenvalue", 1, 3), ("mean_cosine", -0.5, 1))
):
    for axis, a in zip(row, (0.8, 0.0, -0.8)):
        cosines = [torch.full_like(b, a), b, c]
        possible = 1 + 2 * a * b * c - a**2 - b**2 - c**2 >= 0
        value = torch.where(possible, similarities[name](*cosines), torch.nan)
        image = axis.contourf(
            b, c, value, levels=torch.linspace(low, high, 25), cmap="viridis"
        )
        axis.set(
            title=f"{name.replace('_', ' ')}, a = {a:g}",
            xlabel="b",
            ylabel="c",
            aspect="equal",
        )
    figure.colorbar(image, ax=row, shrink=0.8)

# %%
# The eigenvalue (top) has two peaks: aligned, and aligned with one embedding negated. The mean cosine (bottom) has one.
# A loss of the eigenvalue alone cannot distinguish the two.

x = torch.nn.functional.normalize(
    torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), dim=-1
)
for name, triplet in {"aligned": (x, x, x), "one turned round": (-x, x, x)}.items():
    a, b, c = ((triplet[m] * triplet[n]).sum(-1) for m, n in ((0, 1), (0, 2), (1, 2)))
    value = mc.linalg.gram3_eigmax(a, b, c)
    print(
        f"{name:>16}: cosines {a.item():+.0f} {b.item():+.0f} {c.item():+.0f}, "
        f"eigenvalue {value.item():.4f}"
    )

# %%
# That is why :func:`multicontrast.trimodal_infonce` adds the pairs to the triplet term: their cosines have signs.
