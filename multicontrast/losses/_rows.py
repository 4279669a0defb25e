"""Unit rows: normalising at any finite scale, differentiably or with the closed form of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


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


def radial_parts(grad_unit: Tensor, unit: Tensor) -> Tensor:
    """The inner product of each gradient row with its unit row, ``(B, 1)``."""
    return torch.linalg.vecdot(grad_unit, unit).unsqueeze(1)


def unit_rows_backward_(grad_unit: Tensor, unit: Tensor, inverse: Tensor, radial: Tensor) -> Tensor:
    """The gradient by the rows from that by the unit rows, in place: project off the radial part, undo the scale."""
    return grad_unit.addcmul_(unit, radial, value=-1).mul_(inverse)
