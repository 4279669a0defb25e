r"""The h-cubic in place: the hot path of the losses on a CPU, where the cost is the number of passes over a block.

The equations of :mod:`multicontrast.linalg._gram3_torch` (docs/math/h-cubic) in sixty passes, without a mask or an
allocation; blocks of 32K to 128K elements are best. Cells that it is not made for (zeros, denormals, NaN, infinity, and
ties of all three magnitudes with a negative product) leave the root as NaN or tiny; if there are any, they alone are
done by the careful form. Looking for them brings one number to the host, so this is no road for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import NEWTON_STEPS, SECANT, eigmax_excess, eigmax_with_gradient

SCRATCH_ROWS = 8

Triple = tuple[Tensor, Tensor, Tensor]

# Below these, squares of differences between cosines would leave the normal numbers.
_SMALLEST = {torch.float32: 2.0**-26, torch.float64: 2.0**-420}


def eigmax_with_gradient_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1``, in a row of ``scratch``; ``a, b, c`` become its derivatives.

    Args:
        a, b, c: cosines of one shape, contiguous, float32 or float64; overwritten.
        scratch: ``(SCRATCH_ROWS, *shape)`` of the same type; overwritten.

    Accuracy and conventions are those of :func:`multicontrast.linalg._gram3_torch.eigmax_with_gradient`.
    """
    rows = scratch.unbind(0)
    eigmax_with_gradient_into(rows[0], (a, b, c), (a, b, c), rows[1:])
    return rows[0]


def eigmax_excess_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1`` alone, in a row of ``scratch``; ``a, b, c`` are left as they are."""
    rows = scratch.unbind(0)
    eigmax_excess_into(rows[0], (a, b, c), rows[1:])
    return rows[0]


def eigmax_with_gradient_into(x: Tensor, gradient: Triple, cosines: Triple, rows: tuple[Tensor, ...]) -> None:
    """The same into ``x`` and ``gradient``, which may be the cosines' own memory; ``rows`` has one row less."""
    gamma, e, w, *free = _root(*cosines, x, rows)
    odd = _odd_cells(x)
    careful = _careful_cells(cosines, odd, x) if odd is not None else ()
    _write_reciprocal(gamma, e, w, free[0])
    for over, g in zip(_numerators(*cosines, gamma, e, *free), gradient):
        torch.mul(over, w, out=g)
    if odd is not None:
        for whole, part in zip((x, *gradient), careful):
            whole[odd] = part


def eigmax_with_pullback(cosines: Triple, scratch: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """``lambda_max - 1`` and a function that maps a weight for each cell to weight x derivative by each cosine.

    Both live in ``scratch`` ``(SCRATCH_ROWS, *shape)``. The cosines are only read, and may be of any shapes that
    broadcast to that one; the weights may be the value's own memory. The pullback works once.
    """
    x, *rows = scratch.unbind(0)
    gamma, e, w, *free = _root(*cosines, x, tuple(rows))
    odd = _odd_cells(x)
    careful = _careful_cells(cosines, odd, x) if odd is not None else ()
    if odd is not None:
        x[odd] = careful[0]

    def pullback(weights: Tensor) -> list[Tensor]:
        _write_reciprocal(gamma, e, w, free[0])
        w.mul_(weights)
        results = [over.mul_(w) for over in _numerators(*cosines, gamma, e, *free)]
        if odd is not None:
            for whole, part in zip(results, careful[1:]):
                whole[odd] = part * weights[odd]
        return results

    return x, pullback


def _careful_cells(cosines: Triple, odd: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    a, b, c = (cosine.expand(x.shape)[odd] for cosine in cosines)
    return eigmax_with_gradient(a, b, c)


def _write_reciprocal(gamma: Tensor, e: Tensor, w: Tensor, spare: Tensor) -> None:
    """``k gamma`` in ``w`` becomes 1 / (3 x^2 - s), the inverse of a sum of positive terms."""
    w.addcmul_(e, torch.add(gamma, e, out=spare), value=12).reciprocal_()


def _numerators(
    a: Tensor, b: Tensor, c: Tensor, gamma: Tensor, e: Tensor, p: Tensor, q: Tensor, r: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``2 (a x + b c)`` and so on, in the rows of gamma, q and p."""
    # 2 (gamma c + a b) = (a + c)(gamma + b) - (a - c)(gamma - b), which cancels nothing that matters; then x for gamma.
    torch.add(a, c, out=p)
    p.mul_(torch.add(gamma, b, out=q))
    p.addcmul_(torch.sub(a, c, out=q), torch.sub(gamma, b, out=r), value=-1)
    p.addcmul_(c, e, value=4)
    # The same for a and b, which share their two products.
    product, difference = torch.add(gamma, c, out=q), torch.sub(gamma, c, out=r)
    product.mul_(torch.add(a, b, out=s))
    torch.sub(a, b, out=s)
    numerator = torch.addcmul(product, s, difference, out=gamma)
    product.addcmul_(s, difference, value=-1)
    numerator.addcmul_(a, e, value=4)
    product.addcmul_(b, e, value=4)
    return numerator, product, p


def eigmax_excess_into(x: Tensor, cosines: Triple, rows: tuple[Tensor, ...]) -> None:
    """``lambda_max - 1`` into ``x``; ``rows`` as for :func:`eigmax_with_gradient_into`."""
    a, b, c = cosines
    _root(a, b, c, x, rows)
    odd = _odd_cells(x)
    if odd is not None:
        x[odd] = eigmax_excess(*(cosine.expand(x.shape)[odd] for cosine in cosines))


def _odd_cells(x: Tensor) -> tuple[Tensor, ...] | None:
    """The index of the cells that need the careful form; None when there are none."""
    smallest = _SMALLEST[x.dtype]
    if x.numel() == 0 or x.amin() > smallest:  # False for NaN
        return None
    return (x > smallest).logical_not_().nonzero(as_tuple=True)


def _root(a: Tensor, b: Tensor, c: Tensor, x: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Writes ``x``; returns ``(gamma, e, k gamma)`` as in ``_gram3_torch`` and four rows that are free."""
    r0, r1, r2, r3, r4, r5, r6 = rows
    # Cosines of a smaller shape (of all triplets of a batch, say) are broadcast where they meet the others.
    size_a, size_b, size_c = (
        torch.abs(z, out=row) if z.shape == x.shape else z.abs() for z, row in ((a, r0), (b, r1), (c, r2))
    )
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
    square = torch.mul(e, ratio, out=x)
    root.add_(square, alpha=SECANT[0]).add_(ratio.mul_(square), alpha=SECANT[1])
    e.addcdiv_(square.mul_(e), root, value=-4)
    for _ in range(NEWTON_STEPS[a.dtype]):
        ratio = torch.div(e, gamma, out=r6)
        curve = torch.addcmul(e, e, ratio, out=r6)
        chord = torch.add(k, curve, alpha=4, out=r4).add_(e, alpha=2)
        residual = torch.addcmul(t_squared, chord, e, value=-2, out=r4)
        e.addcdiv_(residual, torch.add(k, curve, alpha=12, out=r6), value=0.5)
    torch.add(gamma, e, alpha=2, out=x)
    return gamma, e, k_gamma, r0, r3, r4, r6
