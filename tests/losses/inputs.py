"""Inputs that the tests of the losses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multicontrast.losses.api import run
from multicontrast.losses.options import TrimodalOptions, check_options
from multicontrast.losses.plan import make_plan
from multicontrast.losses.softmax import Masks

SIMILARITIES = ["eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear"]
SCHEMES = ["cyclic", "permutation", "shared", "tied"]


def embeddings(count: int, size: int, dim: int = 6, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, dim, dtype=torch.float64, generator=generator)
    return [
        (common + scale * torch.randn(size, dim, dtype=torch.float64, generator=generator)).requires_grad_()
        for _ in range(count)
    ]


def assert_same(
    ours: Tensor, theirs: Tensor, inputs: list[Tensor], value: float = 1e-10, gradient: float = 1e-8
) -> None:
    """Values within ``value`` and, for a random cotangent, gradients within ``gradient``."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=value, rtol=value)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(ours, inputs, cotangent, retain_graph=True)
    expected = torch.autograd.grad(theirs, inputs, cotangent, retain_graph=True)
    for g, e in zip(got, expected):
        torch.testing.assert_close(g, e, atol=gradient, rtol=gradient)


SIZE = 5
PRESENT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
IDS = torch.tensor([7, 2, 7, 2, 5])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0], dtype=torch.float64)


def further(count: int, *missing: int) -> list[Tensor | None]:
    rows = [x.detach() for x in embeddings(count, 3, seed=9)]
    return [None if m in missing else row for m, row in enumerate(rows)]


OPTIONS = {
    "present": {"present": PRESENT},
    "ids": {"ids": IDS},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.2},
    "hardness": {"hardness": 0.7},
    "extra": {"extra_negatives": further(3)},
    "some extra": {"extra_negatives": further(3, 1), "present": PRESENT},
    "everything": {
        "present": PRESENT,
        "ids": IDS,
        "weight": WEIGHT,
        "label_smoothing": 0.1,
        "hardness": 0.4,
        "extra_negatives": further(3),
    },
}


def poisoned(inputs: list[Tensor], present: Tensor | None, value: float = torch.nan) -> list[Tensor]:
    """The same embeddings with rubbish where nothing is; leaves of their own."""
    if present is None:
        return inputs
    return [
        torch.where(present[:, m, None], x.detach(), value).requires_grad_() for m, x in enumerate(inputs)
    ]  # fmt: skip


def trimodal_of_range(
    xs: list[Tensor],
    tau: Tensor,
    anchors: tuple[int, int] | None,
    masks: Masks | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """The loss of a range of anchors, as a rank of several computes it of the gathered rows."""
    settled = check_options("test", TrimodalOptions, options)
    plan = make_plan(
        "test", xs, tau, settled, masks or Masks(), pairs=settled["pairs"], has_tuples=True, anchors=anchors,
        generator=generator,
    )  # fmt: skip
    return run("test", plan, xs, xs[0].dtype)


def assert_transforms_agree(loss: Callable[[Tensor], Tensor], stacked: Tensor) -> None:
    """vmap over batches, grad, and forward mode agree with ordinary autograd."""
    one_by_one = torch.stack([loss(xs) for xs in stacked])
    torch.testing.assert_close(torch.func.vmap(loss)(stacked), one_by_one)
    leaf = stacked[0].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(stacked[0]), expected)
    tangent = torch.randn_like(leaf)
    _, slope = torch.func.jvp(loss, (stacked[0],), (tangent,))
    torch.testing.assert_close(slope, (expected * tangent).sum())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(stacked[0], tangent)
        torch.testing.assert_close(forward_ad.unpack_dual(loss(dual)).tangent, slope)
