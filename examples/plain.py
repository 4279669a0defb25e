"""Three modalities in plain PyTorch: encoders, a loss with a learned temperature, one optimizer for both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import multicontrast as mc


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 16))


def batches(count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Three noisy views of a hidden cause, each through its own matrix."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(3, 4, 12, generator=generator)
    for _ in range(count):
        cause = torch.randn(size, 4, generator=generator)
        yield tuple(cause @ view + 0.1 * torch.randn(size, 12, generator=generator) for view in views)


def main() -> float:
    torch.manual_seed(0)
    encoders = nn.ModuleList(encoder() for _ in range(3))
    loss = mc.TrimodalInfoNCE(mc.Temperature(0.07, min=0.01), negatives="cyclic")
    optimizer = torch.optim.AdamW(
        [{"params": encoders.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0}], lr=3e-3
    )
    loss.temperature.check_optimizer(optimizer)

    for step, views in enumerate(batches(60)):
        value = loss(*(encode(view) for encode, view in zip(encoders, views)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3}: loss {value.item():.3f}, tau {loss.temperature.tau.item():.3f}")

    with torch.no_grad():
        x, y, _ = (encode(view) for encode, view in zip(encoders, next(batches(1))))
    recall = mc.metrics.retrieval_recall(x, y, k=1)
    print(f"loss {value.item():.3f}, recall at 1 from the first view to the second {float(recall):.2f}")
    return value.item()


if __name__ == "__main__":
    main()
