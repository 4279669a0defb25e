r"""
Sampled against exact denominators
==================================

UniHPE compares each anchor with one sampled triplet for each sample of the batch, and calls all triplets unaffordable.
A closed form makes the exact denominator affordable. The sampled one is a noisy estimate of it, with too few terms in
its sum.
"""

# %%
# Embeddings as in the middle of training: three noisy views of the same sample.

import matplotlib.pyplot as plt
import torch

import multicontrast as mc

B, D, TAU = 96, 64, 0.2
generator = torch.Generator().manual_seed(0)
shared = torch.randn(B, D, generator=generator)
x_img, x_2d, x_3d = (
    shared + 1.2 * torch.randn(B, D, generator=generator) for _ in range(3)
)

# %%
# Forty draws for each number of negatives. The sum has :math:`K` terms instead of :math:`B^2 - 1`. Multiplying it by
# :math:`(B^2 - 1) / K` corrects this, up to the noise of the draw.

exact = mc.triplet_infonce(x_img, x_2d, x_3d, TAU, negatives="all").item()
counts = [1, 2, 4, 8, 16, 32, 64, 95, 256, 1024]


def draw(count):
    """The loss of one draw: as it is, and with its negatives counted more than once."""
    options = {
        "negatives": "permutation",
        "num_negatives": count,
        "generator": generator,
    }
    loss = mc.triplet_infonce(x_img, x_2d, x_3d, TAU, reduction="none", **options)
    return torch.stack(
        [loss.mean(), torch.log1p((B**2 - 1) / count * torch.expm1(loss)).mean()]
    )


draws = {count: torch.stack([draw(count) for _ in range(40)]) for count in counts}


def direction(**options):
    """The gradient with respect to the images, flattened."""
    x = x_img.clone().requires_grad_()
    mc.triplet_infonce(x, x_2d, x_3d, TAU, **options).backward()
    return x.grad.flatten()


true_direction = direction(negatives="all")
agreement = {
    count: torch.stack(
        [
            torch.cosine_similarity(
                direction(
                    negatives="permutation", num_negatives=count, generator=generator
                ),
                true_direction,
                dim=0,
            )
            for _ in range(10)
        ]
    )
    for count in counts
}

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.axhline(
    exact, color="#0072b2", linewidth=2, label=f"exact: {B**2} triplets for each anchor"
)
for which, colour, label in (
    (0, "#d55e00", "sampled"),
    (1, "#009e73", "sampled, each counted (B² - 1) / K times"),
):
    left.errorbar(
        counts,
        [draws[count][:, which].mean() for count in counts],
        [draws[count][:, which].std() for count in counts],
        color=colour,
        marker="o",
        label=label,
    )
left.axvline(B - 1, color="0.7", linestyle=":", label="the paper: B - 1")
left.set(
    xscale="log",
    xlabel="negatives for each anchor",
    ylabel="loss, mean and spread of 40 draws",
)
left.legend(loc="center left")
right.errorbar(
    counts,
    [agreement[count].mean() for count in counts],
    [agreement[count].std() for count in counts],
    color="#d55e00",
    marker="o",
)
right.axvline(B - 1, color="0.7", linestyle=":")
right.set(
    xscale="log",
    ylim=(0, 1.02),
    xlabel="negatives for each anchor",
    ylabel="cosine with the exact gradient",
)
for axis in (left, right):
    axis.grid(alpha=0.3)

# %%
# The value is far off, but the direction of the gradient is not: with as many negatives as the paper draws it is nearly
# that of the exact loss. The exact loss has no noise, and its scale does not depend on the number of negatives.
