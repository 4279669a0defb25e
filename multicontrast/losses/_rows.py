"""Unit rows: normalising at any finite scale, differentiably or with the closed form of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 16  # entries of rows at a time, which stay in cache from one operation to the next


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` divided by their length; differentiable. A zero row stays zero and has the gradient 0.

    Each row is first divided by its largest entry, so that no square overflows or vanishes. That entry is a constant
    for the gradient: unit rows do not depend on the scale.
    """
    scale = x.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.where(scale == 0, 1, scale))  # NaN stays
    x = x / scale
    length = x.square().sum(dim=1, keepdim=True)
    nonzero = ~(length == 0)
    return torch.where(nonzero, x / torch.where(nonzero, length, 1).sqrt(), 0 * x)


def unit_rows_with_inverse(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and the inverse of their lengths ``(B, 1)``, without a graph, in two passes over ``x``.

    Lengths whose squares leave the comfortable range take the careful way of :func:`unit_rows`.
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    finfo = torch.finfo(x.dtype)
    if bool(((length > finfo.tiny**0.25) & (length < finfo.max**0.25)).all()):
        inverse = length.reciprocal()
        return x * inverse, inverse
    unit = unit_rows(x)
    scale = x.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale == 0, 1, scale)
    inverse = (1 / torch.linalg.vector_norm(x / scale, dim=1, keepdim=True)) / scale
    inverse = torch.where(unit.abs().amax(1, keepdim=True) == 0, 0, inverse.clamp(max=finfo.max))
    return unit, inverse


def dot(x: Tensor, y: Tensor) -> float:
    """The sum of products of two tensors of one shape."""
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))


def row_products(x: Tensor, y: Tensor) -> float:
    """The same for many rows, some at a time: the sums are added in double precision."""
    step = max(1, _CHUNK // x.shape[1])
    return sum(dot(x[start : start + step], y[start : start + step]) for start in range(0, len(x), step))


def unit_rows_backward_(grad_unit: Tensor, unit: Tensor, inverse: Tensor) -> float:
    """The gradient by the rows from that by the unit rows, in place: project off the radial part, undo the scale.

    Returns the sum of the radial parts.
    """
    size, dim = grad_unit.shape
    step = max(1, _CHUNK // dim)
    radial = grad_unit.new_empty(size, 1)
    scratch = grad_unit.new_empty(min(step, size), dim)
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        grad, row, part = grad_unit[rows], unit[rows], radial[rows]
        torch.sum(torch.mul(grad, row, out=scratch[: len(row)]), 1, keepdim=True, out=part)
        grad.addcmul_(row, part, value=-1).mul_(inverse[rows])
    return float(radial.sum())
