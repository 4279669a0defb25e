"""Inputs, baselines, and the comparison before the timing.

Baselines that the tests define (Algorithm 2 as printed, the CLIP loss with two products) are imported from the tests,
so they cannot diverge. The others are written from the formulas.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import multicontrast as mc
from benchmarks.driver import BenchmarkError, is_out_of_memory
from benchmarks.environment import ROOT

PAIRS = ((0, 1), (0, 2), (1, 2))
TAU = 0.2  # UniHPE, stage 2: tau_0 = 1/5
Loss = Callable[[], Tensor]


def _load_definitions() -> ModuleType:
    # By path, because another distribution may have a top-level package called `tests`.
    path = ROOT / "tests" / "definitions.py"
    spec = importlib.util.spec_from_file_location("multicontrast_definitions", path)
    if spec is None or spec.loader is None:
        raise BenchmarkError(f"the baselines are read from `{path}`, which is not there. Run from a checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


definitions = _load_definitions()


# --- inputs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Three embeddings of one batch, related as in training, the temperature, and the tuples of Algorithm 1."""

    xs: tuple[Tensor, Tensor, Tensor]  # unit rows (B, D), leaves
    tau: Tensor  # 0-dim leaf: its gradient is part of the step
    index: Tensor  # (B, B, 3)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The leaves that get a gradient."""
        return (*self.xs, self.tau)


def make_inputs(
    batch: int, dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0, *, tuples: bool = True
) -> Inputs:
    """Unit rows with a cosine of about 0.5 to their match, as halfway through training."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    rows = [shared + torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    first, second, third = (F.normalize(row).to(device, dtype).requires_grad_() for row in rows)
    tau = torch.tensor(TAU, dtype=dtype, device=device, requires_grad=True)
    number = None if tuples else 0  # of negatives; the index of a large batch would not fit in memory
    generator = torch.Generator().manual_seed(seed)
    index = mc.sample_tuples(batch, 3, num_negatives=number, generator=generator).to(device)
    return Inputs((first, second, third), tau, index)


def step_of(loss: Loss, leaves: Iterable[Tensor]) -> Callable[[], None]:
    """Forward and backward. No tensor outlives a step, so its peak memory includes the gradients."""
    leaves = tuple(leaves)

    def step() -> None:
        loss().backward()
        for leaf in leaves:
            leaf.grad = None

    return step


# --- baselines ------------------------------------------------------------------------------------------------


def lapack_on_gathered_cosines(xs: Sequence[Tensor], index: Tensor, tau: Tensor) -> Tensor:
    """Eq. (3) from the three Gram blocks, with `torch.linalg.eigvalsh` on each 3x3 matrix.

    It needs less memory than Algorithm 2, so it can check large batches. Expects unit rows.
    """
    a, b, c = ((xs[m] @ xs[n].mT)[index[..., m], index[..., n]] for m, n in PAIRS)  # (B, 1 + K)
    one = torch.ones_like(a)
    gram = torch.stack((one, a, b, a, one, c, b, c, one), dim=-1).unflatten(-1, (3, 3))
    logits = torch.linalg.eigvalsh(gram)[..., -1] / tau
    return F.cross_entropy(logits, torch.zeros(len(index), dtype=torch.int64, device=index.device))


def arccosine_on_gathered_cosines(xs: Sequence[Tensor], index: Tensor, tau: Tensor) -> Tensor:
    """The same in float64 by the textbook's root of the cubic, which is accurate enough in float64. It checks batches
    for which LAPACK takes minutes."""
    a, b, c = ((xs[m] @ xs[n].mT).double()[index[..., m], index[..., n]] for m, n in PAIRS)
    mean = ((a * a + b * b + c * c) / 3).sqrt()
    angle = torch.acos((a * b * c / mean**3).clamp(-1 + 1e-15, 1 - 1e-15))
    logits = (1 + 2 * mean * torch.cos(angle / 3)) / tau
    return F.cross_entropy(logits, torch.zeros(len(index), dtype=torch.int64, device=index.device))


def direct_determinant(xs: Sequence[Tensor], tau: Tensor) -> Tensor:
    """GRAM's volume over tied negatives ``(i; j, j)``: `torch.linalg.det` of every 3x3 Gram matrix."""
    x, y, z = xs
    a, b = x @ y.mT, x @ z.mT
    c = (y * z).sum(-1).expand_as(a)
    one = torch.ones_like(a)
    gram = torch.stack((one, a, b, a, one, c, b, c, one), dim=-1).unflatten(-1, (3, 3))
    logits = -torch.linalg.det(gram).sqrt() / tau
    return F.cross_entropy(logits, torch.arange(len(x), device=x.device))


def direct_area(xs: Sequence[Tensor], tau: Tensor) -> Tensor:
    """TRIANGLE's area over tied negatives ``(i; j, j)`` from the edge vectors, ``(B, B, D)`` of them."""
    x, y, z = xs
    u = y[None] - x[:, None]
    v = z[None] - x[:, None]
    square = u.square().sum(-1) * v.square().sum(-1) - (u * v).sum(-1).square()
    return F.cross_entropy(-square.sqrt() / 2 / tau, torch.arange(len(x), device=x.device))


def three_matmuls(x: Tensor, y: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix products of any pairwise loss: one forward, two backward."""
    return x @ y.mT, cotangent @ y, cotangent.mT @ x


# --- the comparison before the timing -----------------------------------------------------------------------------


def tangential(gradient: Tensor, rows: Tensor) -> Tensor:
    """The part of a gradient orthogonal to its row.

    Some contenders differentiate the length of a row, others assume length 1. Normalisation removes the radial part, so
    it is not compared.
    """
    if rows.dim() < 2:
        return gradient
    return gradient - (gradient * rows).sum(-1, keepdim=True) * rows


def value_and_gradients(loss: Loss, leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients in float64, on the tangent space."""
    value = loss()
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    zeros = (torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in zip(gradients, leaves))
    parts = [tangential(gradient.double(), leaf.detach().double()) for gradient, leaf in zip(zeros, leaves)]
    return value.detach().double(), parts


def check_agreement(
    losses: Mapping[str, Loss], leaves: Sequence[Tensor], *, value_tolerance: float, gradient_tolerance: float
) -> float:
    """Raise unless all losses have the same value and gradient; returns the largest relative difference.

    The first is the reference. Gradients are compared by the norm of the difference over the norm. A
    contender that runs out of memory is skipped.
    """
    reference = None
    worst = 0.0
    for name, loss in losses.items():
        try:
            value, gradients = value_and_gradients(loss, leaves)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            continue
        if reference is None:
            reference = (name, value, gradients)
            continue
        off = _relative(value, reference[1])
        gradient_off = max(_relative(mine, theirs) for mine, theirs in zip(gradients, reference[2]))
        if not (off <= value_tolerance and gradient_off <= gradient_tolerance):  # catches NaN too
            raise BenchmarkError(
                f"`{name}` must agree with `{reference[0]}` to {value_tolerance:.0e} "
                f"(gradients {gradient_tolerance:.0e}); it is off by {off:.1e} ({gradient_off:.1e}). "
                "Nothing was timed: a wrong answer has no speed."
            )
        worst = max(worst, off, gradient_off)
    return worst


def _relative(mine: Tensor, theirs: Tensor) -> float:
    scale = theirs.norm().item()
    return (mine - theirs).norm().item() / (scale or 1.0)
