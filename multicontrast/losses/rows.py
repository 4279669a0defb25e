"""Unit rows: normalising at any finite scale, differentiably or with the closed form of its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 17  # entries at a time, which stay in cache from one operation to the next


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x``, along its last axis, divided by their length; differentiable. A zero row stays zero and has the
    gradient 0.

    Each row is first divided by its largest entry, so that no square overflows or vanishes. That entry is a constant
    for the gradient: unit rows do not depend on the scale.
    """
    scale = x.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.where(scale == 0, 1, scale))  # NaN stays
    x = x / scale
    length = x.square().sum(dim=-1, keepdim=True)
    nonzero = ~(length == 0)
    return torch.where(nonzero, x / torch.where(nonzero, length, 1).sqrt(), 0 * x)


def lengths_to_undo(embeddings: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], bool]:
    """Rows to multiply in place of unit rows, the inverse of their lengths ``(B, 1)``, and whether the products are
    still to be scaled by both inverses. No graph.

    Products of the embeddings themselves, scaled, need no copy of them and fewer passes while there are no more rows
    than columns. Otherwise, and for lengths whose squares leave the comfortable range, the rows are unit rows.
    """
    size, dim = embeddings[0].shape
    finfo = torch.finfo(embeddings[0].dtype)
    lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in embeddings]
    shortest, longest = torch.aminmax(torch.cat(lengths))
    if shortest.item() > finfo.tiny**0.25 and longest.item() < finfo.max**0.25:  # False for NaN
        inverses = [length.reciprocal_() for length in lengths]
        if size <= dim:
            return list(embeddings), inverses, True
        return [x * inverse for x, inverse in zip(embeddings, inverses)], inverses, False
    units = [unit_rows(x) for x in embeddings]
    return units, [_inverse_length(x, unit) for x, unit in zip(embeddings, units)], False


def _inverse_length(x: Tensor, unit: Tensor) -> Tensor:
    """Inverse lengths ``(B, 1)`` at any finite scale; 0 for zero rows, whose gradient is 0."""
    scale = x.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale == 0, 1, scale)
    inverse = (1 / torch.linalg.vector_norm(x / scale, dim=1, keepdim=True)) / scale
    return torch.where(unit.abs().amax(1, keepdim=True) == 0, 0, inverse.clamp(max=torch.finfo(x.dtype).max))


def scale_products_(products: Tensor, left: Tensor, right: Tensor) -> None:
    """Multiply rows by ``left`` ``(B, 1)`` and columns by ``right`` ``(B, 1)``, in place."""
    columns = right.mT
    step = max(1, _CHUNK // products.shape[1])
    for rows, factor in _chunks(step, products, left):
        rows.mul_(factor).mul_(columns)


def _chunks(step: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Rows of each tensor, ``step`` at a time; splitting costs more than all the rest of a small batch."""
    return [tensors] if tensors[0].shape[0] <= step else zip(*(x.split(step) for x in tensors))


def dot(x: Tensor, y: Tensor) -> float:
    """The sum of products of two tensors of one shape."""
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))


def row_products(x: Tensor, y: Tensor) -> float:
    """The same for many rows, some at a time: the sums are added in double precision."""
    step = max(1, _CHUNK // x.shape[1])
    return sum(dot(x[start : start + step], y[start : start + step]) for start in range(0, len(x), step))


def undo_lengths_backward_(grad: Tensor, rows: Tensor, inverse: Tensor, scaled: bool, factor: float) -> float:
    """``factor`` times the gradient by the embeddings, from that by the rows of :func:`lengths_to_undo`, in place:
    project off the radial part, undo the scale.

    Returns the sum of the radial parts.
    """
    step = max(1, _CHUNK // grad.shape[1])
    radial = grad.new_empty(len(grad), 1)
    scratch = torch.empty_like(grad[:step])
    for part, by_row, row, inverse_length in _chunks(step, radial, grad, rows, inverse):
        torch.sum(torch.mul(by_row, row, out=scratch[: len(row)]), 1, keepdim=True, out=part)
        if scaled:  # of a row x of length l the unit row is x / l, and the products are scaled by 1 / l already
            by_row.addcmul_(row, inverse_length.square().mul_(part), value=-1)
            if factor != 1:
                by_row.mul_(factor)
        else:
            by_row.addcmul_(row, part, value=-1).mul_(inverse_length * factor)
    return float(radial.sum())
