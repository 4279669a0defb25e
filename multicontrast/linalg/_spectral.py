"""How eigenvalues and eigenvectors of symmetric matrices move with the matrix: derivatives of a decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg import _symmetric3_torch

# Eigenvalues closer than this, in eps of the largest magnitude, count as one: rounding alone parts them so far.
_TIE = 4.0


def inverse_gaps(values: Tensor) -> Tensor:
    """``1 / (l_j - l_i)``, 0 on the diagonal and where the two count as one."""
    difference = values.unsqueeze(-2) - values.unsqueeze(-1)
    norm = values.detach().abs().amax(-1)[..., None, None]
    tied = difference.detach().abs() <= _TIE * torch.finfo(values.dtype).eps * norm
    return torch.where(tied, 0, 1 / torch.where(tied, 1, difference))


def spectral_backward(
    values: Tensor, vectors: Tensor, d_values: Tensor | None, d_vectors: Tensor | None
) -> Tensor | None:
    """The symmetric gradient by the matrix; made of differentiable operations, so that it has derivatives itself."""
    if d_values is None and d_vectors is None:
        return None
    if d_values is not None and d_vectors is None and not torch.is_grad_enabled():
        return _symmetric3_torch.weighted_projectors(vectors, d_values)  # nobody will differentiate it
    middle = torch.zeros_like(vectors) if d_values is None else torch.diag_embed(d_values)
    if d_vectors is not None:
        middle = middle + inverse_gaps(values) * (vectors.mT @ d_vectors)
    gradient = vectors @ middle @ vectors.mT
    return (gradient + gradient.mT) / 2


def spectral_forward(values: Tensor, vectors: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """How eigenvalues and eigenvectors move with the matrix along a symmetric direction."""
    moved = vectors.mT @ direction @ vectors
    # A copy: forward mode takes no view for the tangent of an output.
    slope = moved.diagonal(dim1=-2, dim2=-1).clone(memory_format=torch.contiguous_format)
    return slope, vectors @ (inverse_gaps(values) * moved)
