r"""The h-cubic in place: the hot path of the losses on a CPU, where the cost is the number of passes over a block.

The equations of :mod:`multicontrast.linalg._gram3_torch` (docs/math/h-cubic) in sixty passes, without a mask or an
allocation; blocks of 32K to 128K elements are best. Cells that it is not made for (zeros, denormals, NaN, infinity, and
ties of all three magnitudes with a negative product) leave the root as NaN or tiny; if there are any, they alone are
done by the careful form. Looking for them brings one number to the host, so this is no road for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import NEWTON_STEPS, SECANT, eigmax_excess, eigmax_with_gradient

SCRATCH_ROWS = 8

# Below these, squares of differences between cosines would leave the normal numbers.
_SMALLEST = {torch.float32: 2.0**-26, torch.float64: 2.0**-420}


def eigmax_with_gradient_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1``, in a row of ``scratch``; ``a, b, c`` become its derivatives.

    Args:
        a, b, c: cosines of one shape, contiguous, float32 or float64; overwritten.
        scratch: ``(SCRATCH_ROWS, *shape)`` of the same type; overwritten.

    Accuracy and conventions are those of :func:`multicontrast.linalg._gram3_torch.eigmax_with_gradient`.
    """
    if a.numel() == 0:
        return scratch[0]
    x, gamma, e, w, p, q, r, _ = _root(a, b, c, scratch)
    odd = _odd_cells(x)
    if odd is not None:
        careful = eigmax_with_gradient(a[odd], b[odd], c[odd])
    # w = 3 x^2 - s, a sum of positive terms.
    torch.add(gamma, e, out=p)
    w.addcmul_(e, p, value=12).reciprocal_()
    # 2 (gamma c + a b) = (a + c)(gamma + b) - (a - c)(gamma - b), which cancels nothing that matters; then x for gamma.
    torch.add(a, c, out=p)
    p.mul_(torch.add(gamma, b, out=q))
    p.addcmul_(torch.sub(a, c, out=q), torch.sub(gamma, b, out=r), value=-1)
    p.addcmul_(c, e, value=4)
    # The same for a and b, which share their two products; c lends its buffer.
    product, difference = torch.add(gamma, c, out=q), torch.sub(gamma, c, out=r)
    product.mul_(torch.add(a, b, out=c))
    torch.sub(a, b, out=c)
    numerator = torch.addcmul(product, c, difference, out=gamma)
    product.addcmul_(c, difference, value=-1)
    numerator.addcmul_(a, e, value=4)
    product.addcmul_(b, e, value=4)
    torch.mul(numerator, w, out=a)
    torch.mul(product, w, out=b)
    torch.mul(p, w, out=c)
    if odd is not None:
        for whole, part in zip((x, a, b, c), careful):
            whole[odd] = part
    return x


def eigmax_excess_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1`` alone, in a row of ``scratch``; ``a, b, c`` are left as they are."""
    if a.numel() == 0:
        return scratch[0]
    x, *_ = _root(a, b, c, scratch)
    odd = _odd_cells(x)
    if odd is not None:
        x[odd] = eigmax_excess(a[odd], b[odd], c[odd])
    return x


def _odd_cells(x: Tensor) -> tuple[Tensor, ...] | None:
    """The index of the cells that need the careful form; None when there are none."""
    smallest = _SMALLEST[x.dtype]
    if x.amin() > smallest:  # False for NaN
        return None
    return (x > smallest).logical_not_().nonzero(as_tuple=True)


def _root(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> tuple[Tensor, ...]:
    """The rows ``(x, gamma, e, k, ...)``: ``x = gamma + 2 e`` and ``k`` as in ``_gram3_torch``; four rows are free."""
    r0, r1, r2, r3, r4, r5, r6, r7 = scratch.unbind(0)
    size_a, size_b, size_c = torch.abs(a, out=r0), torch.abs(b, out=r1), torch.abs(c, out=r2)
    larger, low = torch.maximum(size_a, size_b, out=r3), torch.minimum(size_a, size_b, out=r0)
    gamma, middle = torch.maximum(larger, size_c, out=r1), torch.minimum(larger, size_c, out=r2)
    # t = middle +- low; the product of the three keeps its sign even where it underflows.
    sign = torch.mul(a, b, out=r3).mul_(c)
    t = torch.copysign(low, sign, out=r3).add_(middle)
    # k gamma = (gamma - middle)(gamma + middle) + (gamma - low)(gamma + low): differences first, they are exact.
    difference = torch.sub(gamma, middle, out=r4)
    k_gamma = middle.add_(gamma).mul_(difference)
    difference = torch.sub(gamma, low, out=r4)
    k_gamma.addcmul_(low.add_(gamma), difference)
    k = torch.div(k_gamma, gamma, out=r0)
    t_squared = t.mul_(t)
    root = torch.mul(k, k, out=r4).add_(t_squared, alpha=12).sqrt_()
    e = torch.add(k, root, out=r5)
    torch.div(t_squared, e, out=e)
    # One step of a secant fitted to the whole range, then Newton.
    ratio = torch.div(e, gamma, out=r6)
    square = torch.mul(e, ratio, out=r7)
    root.add_(square, alpha=SECANT[0]).add_(ratio.mul_(square), alpha=SECANT[1])
    e.addcdiv_(square.mul_(e), root, value=-4)
    for step in range(NEWTON_STEPS[a.dtype]):
        last = step + 1 == NEWTON_STEPS[a.dtype]
        torch.div(e, gamma, out=r6)
        curve = torch.addcmul(e, e, r6, out=r6)
        chord = torch.add(k, curve, alpha=4, out=r4).add_(e, alpha=2)
        residual = torch.addcmul(t_squared, chord, e, value=-2, out=r3 if last else r7)
        slope = torch.add(k, curve, alpha=12, out=r0 if last else r4)
        e.addcdiv_(residual, slope, value=0.5)
    return torch.add(gamma, e, alpha=2, out=r0), gamma, e, k_gamma, r3, r4, r6, r7
