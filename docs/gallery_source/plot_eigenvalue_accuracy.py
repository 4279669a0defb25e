r"""
Digits near a tie
=================

Where the two largest eigenvalues of a matrix coincide, formulas by the arc cosine lose half of their digits and the
derivative of an eigenvector loses all. Our closed form does not subtract nearly equal numbers, and
its gradient never divides by the gap.
"""

# %%
# Three cosines near a common negative value :math:`-t`: their Gram matrix has a double largest eigenvalue
# :math:`1 + t`, which a relative spread ``gap`` splits. The truth is LAPACK's in float64. Below a
# gap of about 1e-6 rounding makes the cosines equal, and the gradient has no single value.

import matplotlib.pyplot as plt
import torch

import multicontrast as mc

EPS = torch.finfo(torch.float32).eps
gaps = torch.logspace(-5.5, -0.5, 40, dtype=torch.float64)
generator = torch.Generator().manual_seed(0)


def matrices(cosines):
    """Gram matrices (..., 3, 3) of cosines (3, ...)."""
    a, b, c = cosines
    one = torch.ones_like(a)
    return torch.stack(
        [torch.stack(row, -1) for row in ((one, a, b), (a, one, c), (b, c, one))], -2
    )


def arc_cosine(a, b, c):
    """The textbook form."""
    s, p = a * a + b * b + c * c, a * b * c
    return 1 + 2 * (s / 3).sqrt() * torch.cos(
        torch.acos((p / (s / 3) ** 1.5).clamp(-1, 1)) / 3
    )


def value_and_gradient(function, cosines):
    leaves = [cosine.clone().requires_grad_() for cosine in cosines]
    value = function(*leaves)
    return value.detach(), torch.stack(torch.autograd.grad(value.sum(), leaves))


contenders = {
    "multicontrast": mc.linalg.gram3_eigmax,
    "LAPACK (eigvalsh)": lambda *cosines: torch.linalg.eigvalsh(matrices(cosines))[
        ..., -1
    ],
    "arc cosine": arc_cosine,
}
worst = {name: ([], []) for name in contenders}
for gap in gaps:
    t = 0.05 + 0.4 * torch.rand(400, dtype=torch.float64, generator=generator)
    spread = 1 + gap * torch.randn(3, 400, dtype=torch.float64, generator=generator)
    cosines = (-t * spread).float()
    truth, true_gradient = value_and_gradient(
        lambda *given: torch.linalg.eigvalsh(matrices(given))[..., -1], cosines.double()
    )
    for name, function in contenders.items():
        value, gradient = value_and_gradient(function, cosines)
        worst[name][0].append((value - truth).abs().max() / EPS)
        error = (gradient - true_gradient).abs()
        worst[name][1].append(error.nan_to_num(nan=torch.inf).max() / EPS)

# %%
# The largest error of 400 matrices at each gap, in units of float32's eps.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
for axis, which, title in zip(axes, (0, 1), ("eigenvalue", "gradient")):
    for (name, errors), colour in zip(worst.items(), ("#0072b2", "#666666", "#d55e00")):
        finite = torch.tensor(errors[which]).clamp(max=1e9)
        axis.loglog(gaps, finite.clamp(min=0.05), label=name, color=colour, linewidth=2)
    axis.set(
        title=title,
        xlabel="gap between the two largest, relative",
        ylabel="largest error / eps",
    )
    axis.grid(alpha=0.3)
axes[0].legend()
