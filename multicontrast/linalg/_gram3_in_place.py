r"""The h-cubic in place, for the losses and for large batches on a CPU, where passes over a block are the cost.

It computes the equations of :mod:`multicontrast.linalg._gram3_torch` in some fifty-five passes, without a mask or an
allocation. Out of place the exact loss misses its required speed by far and the cyclic trimodal loss by little (the
rows "eigenvalue out of place" of ``benchmarks/results/losses.csv``). Only the gradient is computed differently, which
saves passes: it comes from the eigenvector, by two quotients,

.. math:: \sigma = \frac{u_2 + u_3}{u_1} = \frac{a + b}{x - c},
          \qquad \tau = \frac{u_2 - u_3}{u_1} = \frac{a - b}{x + c},

.. math:: (g_a, g_b, g_c) = \big(\sigma + \tau,\ \sigma - \tau,\ (\sigma^2 - \tau^2) / 2\big)
          \big/ \big(1 + (\sigma^2 + \tau^2) / 2\big).

These formulas fail for some elements: zeros, denormals, NaN, infinity, ties of all three magnitudes with a negative
product, :math:`u_1 = 0`. Such elements show as a very small root or as infinity or NaN, and are computed again by
``_gram3_torch``. Finding them reads numbers on the host, so a GPU does not use this form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import NEWTON_STEPS, SECANT, eigmax_excess, eigmax_with_gradient

SCRATCH_ROWS = 8

Triple = tuple[Tensor, Tensor, Tensor]

# Roots for which all products of four cosines, and of small differences between them, are normal numbers.
_RANGE = {torch.float32: (2.0**-19, 2.0**28), torch.float64: (2.0**-220, 2.0**240)}


def eigmax_excess_into(x: Tensor, cosines: Triple, rows: tuple[Tensor, ...]) -> None:
    """Writes ``lambda_max - 1`` into ``x``; ``rows`` are as for :func:`eigmax_with_gradient_into`."""
    a, b, c = cosines
    _root(a, b, c, x, rows)
    exceptions = _exceptions(x, None)
    if exceptions is not None:
        x[exceptions] = eigmax_excess(*(cosine.expand(x.shape)[exceptions] for cosine in cosines))


def eigmax_with_gradient_into(x: Tensor, gradient: Triple, cosines: Triple, rows: tuple[Tensor, ...]) -> None:
    """Writes ``lambda_max - 1`` into ``x`` and its derivatives into ``gradient``.

    All tensors have one shape and type, float32 or float64. ``gradient`` may be the cosines' own memory; ``rows`` are
    ``SCRATCH_ROWS - 1`` contiguous buffers. Accuracy and conventions are those of ``_gram3_torch``.
    """
    ratios = _value_and_ratios(x, cosines, rows)
    _differentiate(gradient, ratios, ratios.length.reciprocal_(), ratios.recomputed)


def eigmax_with_pullback(cosines: Triple, scratch: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """``lambda_max - 1`` and a function that maps a weight for each element to weight x derivative w.r.t. each cosine.

    Both live in ``scratch`` ``(SCRATCH_ROWS, *shape)``. The cosines are only read, and may be of any shapes that
    broadcast to that one; the weights may be the value's own memory. The pullback works once.
    """
    x, *rows = scratch.unbind(0)
    ratios = _value_and_ratios(x, cosines, tuple(rows))

    def pullback(weights: Tensor) -> list[Tensor]:
        results = (ratios.free[2], ratios.free[0], ratios.first)
        share = torch.div(weights, ratios.length, out=ratios.length)
        recomputed = [part * weights[ratios.exceptions] for part in ratios.recomputed]
        _differentiate(results, ratios, share, recomputed)
        return list(results)

    return x, pullback


class _Ratios(NamedTuple):
    """The top eigenvector of each element, and the derivatives of the exceptions."""

    first: Tensor  # (u_2 + u_3) / u_1
    second: Tensor  # (u_2 - u_3) / u_1
    length: Tensor  # 1 / u_1^2
    free: Triple  # rows that may be overwritten
    exceptions: tuple[Tensor, ...] | None  # index of the exceptions; None where there are none
    recomputed: Sequence[Tensor]  # their derivatives w.r.t. a, b and c


def _value_and_ratios(x: Tensor, cosines: Triple, rows: tuple[Tensor, ...]) -> _Ratios:
    """Writes ``x``, and the ratios into ``rows``."""
    a, b, c = cosines
    gamma, e, r0, r1, r2, r3, r4 = _root(a, b, c, x, rows)
    # x + c and x - c: add gamma first, because those sums are exact where they are small.
    plus = torch.add(gamma, c, out=r0).add_(e, alpha=2)
    minus = torch.sub(gamma, c, out=r1).add_(e, alpha=2)
    first = torch.add(a, b, out=r2).div_(minus)
    second = torch.sub(a, b, out=r3).div_(plus)
    length = torch.addcmul(x.new_ones(()), first, first, value=0.5, out=r4).addcmul_(second, second, value=0.5)
    exceptions = _exceptions(x, length)
    recomputed: Sequence[Tensor] = ()
    if exceptions is not None:
        x[exceptions], *recomputed = eigmax_with_gradient(*(cosine.expand(x.shape)[exceptions] for cosine in cosines))
    return _Ratios(first, second, length, (r0, r1, gamma), exceptions, recomputed)


def _differentiate(results: Triple, ratios: _Ratios, share: Tensor, recomputed: Sequence[Tensor]) -> None:
    """``share`` times ``(first + second, first - second, (first^2 - second^2) / 2)``, and what was ``recomputed``.

    The second result may be the memory of the first free row, and the third that of ``ratios.first``.
    """
    by_a, by_b, by_c = results
    first, second, (spare, other, _) = ratios.first, ratios.second, ratios.free
    torch.mul(first, share, out=spare)
    torch.mul(second, share, out=other)
    torch.addcmul(first.new_zeros(()), first, spare, value=0.5, out=by_c).addcmul_(second, other, value=-0.5)
    torch.add(spare, other, out=by_a)
    torch.sub(spare, other, out=by_b)
    for whole, part in zip(results, recomputed):
        whole[ratios.exceptions] = part


def _exceptions(x: Tensor, length: Tensor | None) -> tuple[Tensor, ...] | None:
    """The index of the elements for which the formulas fail; None when there are none."""
    smallest, largest = _RANGE[x.dtype]
    if x.numel() == 0:
        return None
    low, high = x.aminmax()
    longest = 0 if length is None else length.amax().item()
    if low.item() > smallest and high.item() < largest and longest < math.inf:  # False for NaN
        return None
    fine = (x > smallest) & (x < largest)
    if length is not None:
        fine &= length < torch.inf
    return fine.logical_not_().nonzero(as_tuple=True)


def _root(a: Tensor, b: Tensor, c: Tensor, x: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Writes ``x``; returns ``(gamma, e)`` as in ``_gram3_torch`` and five rows that are free."""
    r0, r1, r2, r3, r4, r5, r6 = rows
    # Cosines of smaller shapes (those of all triplets of a batch) are broadcast only where they are combined.
    size_a, size_b, size_c = (
        torch.abs(z, out=row) if z.shape == x.shape else z.abs() for z, row in ((a, r0), (b, r1), (c, r2))
    )
    larger, low = torch.maximum(size_a, size_b, out=r3), torch.minimum(size_a, size_b, out=r0)
    gamma, middle = torch.maximum(larger, size_c, out=r1), torch.minimum(larger, size_c, out=r2)
    # t = middle +- low; the product of the three keeps its sign even where it underflows.
    if a.numel() < x.numel() and b.numel() < x.numel() and c.numel() < x.numel():
        sign = torch.mul(a.sign(), b.sign(), out=r3).mul_(c.sign())
        t = torch.addcmul(middle, low, sign, out=r3)
    else:
        t = torch.copysign(low, torch.mul(a, b, out=r3).mul_(c), out=r3).add_(middle)
    # k = (gamma - middle)(gamma + middle) + (gamma - low)(gamma + low): differences first, because they are exact.
    difference = torch.sub(gamma, middle, out=r4)
    k = middle.add_(gamma).mul_(difference)
    difference = torch.sub(gamma, low, out=r4)
    k.addcmul_(low.add_(gamma), difference)
    # 8 e^3 + 12 gamma e^2 + 2 k e = g, for x = gamma + 2 e. First without e^3.
    g = t.mul_(t).mul_(gamma)
    root = torch.mul(k, k, out=r4).addcmul_(gamma, g, value=12).sqrt_()
    e = torch.add(k, root, out=r5)
    torch.div(g, e, out=e)
    # One step of a secant that is fitted to the whole range, then Newton.
    cube = torch.mul(e, e, out=x)
    root.add_(cube, alpha=SECANT[0])
    cube.mul_(e)
    root.add_(torch.div(cube, gamma, out=r6), alpha=SECANT[1])
    e.addcdiv_(cube, root, value=-4)
    for _ in range(NEWTON_STEPS[a.dtype]):
        inner = torch.addcmul(k, e, torch.add(e, gamma, alpha=1.5, out=r6), value=4, out=r4)
        residual = torch.addcmul(g, inner, e, value=-2, out=x)
        inner.addcmul_(e, torch.add(e, gamma, alpha=0.75, out=r6), value=8)
        e.addcdiv_(residual, inner, value=0.5)
    torch.add(gamma, e, alpha=2, out=x)
    return gamma, e, r0, r2, r3, r4, r6
