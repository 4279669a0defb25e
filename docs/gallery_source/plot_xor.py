r"""
What no pair can find
=====================

Two modalities together may determine a third on which neither has information alone. Then no loss over pairs can learn
it, but a loss over tuples can.
"""

# %%
# Four bits in each modality, and z is x XOR y: knowing x alone, or y alone, every z is equally likely.

import matplotlib.pyplot as plt
import torch
from torch import nn

import multicontrast as mc

B, D, STEPS = 128, 16, 240
generator = torch.Generator().manual_seed(0)


def batch(count):
    x, y = torch.randint(2, (2, count, 4), generator=generator)
    views = [
        2.0 * bits - 1 + 0.3 * torch.randn(count, 4, generator=generator)
        for bits in (x, y, x ^ y)
    ]
    return views, ((x ^ y) * torch.tensor([1, 2, 4, 8])).sum(1)


# %%
# Symile's product takes each modality as the anchor in turn. Its values are of the order of 1/D, so its temperature is
# small as well.


def pairs(x, y, z):
    return mc.trimodal_infonce(x, y, z, 0.1, alpha=0.0)


def pairs_and_eigenvalue(x, y, z):
    return mc.trimodal_infonce(
        x, y, z, 0.1, similarity="eigenvalue", negatives="cyclic"
    )


def product(x, y, z):
    turns = ((x, y, z), (y, z, x), (z, x, y))
    options = {
        "similarity": "multilinear",
        "negatives": "shared",
        "generator": generator,
    }
    return sum(mc.triplet_infonce(*turn, 0.1 / D**0.5, **options) for turn in turns) / 3


NAMES = {
    pairs: "pairs",
    pairs_and_eigenvalue: "pairs + eigenvalue (UniHPE)",
    product: "multilinear (Symile)",
}
held_out, code = batch(512)
gallery = torch.stack(
    [(code == value).nonzero()[0, 0] for value in range(16)]
)  # one z of each of the sixteen


def train(loss):
    """How often x and y together find the right z among sixteen, every twenty steps."""
    torch.manual_seed(0)
    encoders = nn.ModuleList(
        nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, D)) for _ in range(3)
    )
    optimizer = torch.optim.Adam(encoders.parameters(), lr=5e-3)
    found = []
    for step in range(STEPS + 1):
        if step % 20 == 0:
            with torch.no_grad():
                x, y, z = (
                    nn.functional.normalize(e(view), dim=1)
                    for e, view in zip(encoders, held_out)
                )
                scores = (
                    (x + y) @ z[gallery].T,
                    (x * y) @ z[gallery].T,
                )  # the better of two ways to ask
                found.append(
                    max(
                        (code[gallery][score.argmax(1)] == code).float().mean().item()
                        for score in scores
                    )
                )
        optimizer.zero_grad()
        loss(*(encode(view) for encode, view in zip(encoders, batch(B)[0]))).backward()
        optimizer.step()
    return found


# %%

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.axhline(100 / 16, color="0.6", linestyle=":", label="chance")
for loss, colour in zip(NAMES, ("#8c959f", "#0072b2", "#d55e00")):
    found = train(loss)
    axis.plot(
        range(0, STEPS + 1, 20),
        [100 * share for share in found],
        color=colour,
        label=NAMES[loss],
    )
    print(f"{NAMES[loss]:>26}: {100 * found[-1]:.0f} % of z found with x and y")
axis.set(xlabel="step", ylabel="z found with x and y (%)", ylim=(0, 102))
axis.legend()
axis.grid(alpha=0.3)

# %%
# The eigenvalue is a function of the cosines of pairs and learns nothing here either. Real modalities are between this
# and full redundancy; :doc:`/when-a-tuple-term-pays` has measurements.
