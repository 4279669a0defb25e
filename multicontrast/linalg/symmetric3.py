"""Eigenvalues and eigenvectors of general symmetric 3x3 matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _symmetric3_torch
from multicontrast.linalg._glue import product
from multicontrast.linalg._operation import Operation, Results

# Eigenvalues closer than this, in eps of the largest magnitude, count as one: rounding alone parts them so far.
_TIE = 4.0


def eigvalsh3(A: Tensor) -> Tensor:  # the name of the contract
    r"""Eigenvalues of symmetric ``(..., 3, 3)``, ascending: as :func:`torch.linalg.eigvalsh`, closer and faster.

    Args:
        A: the lower triangle is read. Half precision is computed and returned in float32.
    Returns: ``(..., 3)``.
    Accuracy: 3 eps of the norm for all three (observed), from 1e-38 to 1e38 in float32, denormals included.
        The gradient is symmetric, ``V diag(g) V'`` with orthonormal ``V``: right at multiple eigenvalues for every
        symmetric function of them. Differentiable twice, in reverse and forward mode; eigenvalues closer than 4 eps of
        the norm count as one in derivatives of the eigenvectors, which are 0 there by convention. NaN or infinity in
        a matrix gives NaN for it.
    Raises: TypeError unless ``A`` is a real floating-point tensor; ValueError unless its last two axes are 3 x 3.
    Reference: deflation of the isolated eigenvalue; docs/math/symmetric-eigenproblems.

    >>> import torch
    >>> eigvalsh3(torch.ones(3, 3))
    tensor([0., 0., 3.])
    """
    return EIGENPAIRS.value(_prepare("eigvalsh3", A))


def eigh3(A: Tensor) -> tuple[Tensor, Tensor]:
    r"""Eigenvalues and orthonormal eigenvectors of symmetric ``(..., 3, 3)``, as :func:`torch.linalg.eigh`.

    Args:
        A: the lower triangle is read. Half precision is computed and returned in float32.
    Returns: eigenvalues ``(..., 3)``, ascending, and eigenvectors ``(..., 3, 3)``, the
        columns; the sign of each is arbitrary, and at a multiple eigenvalue the basis of its space.
    Accuracy: the norm of an eigenvector is 1 to 2 eps; its Rayleigh quotient is the eigenvalue to 1 eps of the norm at
        every gap; its angle is wrong by 3 eps times norm over gap (observed maxima). Derivatives as for
        :func:`eigvalsh3`.
    Raises: TypeError unless ``A`` is a real floating-point tensor; ValueError unless its last two axes are 3 x 3.
    Reference: docs/math/symmetric-eigenproblems.
    """
    values, vectors = EIGENPAIRS(_prepare("eigh3", A))
    return values, vectors


def _prepare(operation: str, matrix: Tensor) -> Tensor:
    check_floating(operation, "A", matrix)
    if matrix.dim() < 2 or matrix.shape[-2:] != (3, 3):
        remedy = "For other sizes use `torch.linalg.eigh`, or `eigmax` for the largest eigenvalue."
        raise ValueError(three_beats(f"`{operation}` needs `A` of shape (..., 3, 3)", describe(matrix), remedy))
    return matrix.to(compute_dtype(matrix))


class _Eigenpairs(Operation):
    """Eigenvalues ``(..., 3)``, ascending, and eigenvectors, the columns of ``(..., 3, 3)``."""

    function = "eigh3"
    name = "symmetric3_eigenpairs"
    value_name = "symmetric3_eigenvalues"
    results = 2

    def plain(self, alone: bool, matrix: Tensor) -> Tensor | Results:
        return self._solve(alone, matrix, may_look=False)

    def on_cpu(self, alone: bool, matrix: Tensor) -> Tensor | Results:
        return self._solve(alone, matrix, may_look=True)

    @staticmethod
    def _solve(alone: bool, matrix: Tensor, may_look: bool) -> Tensor | Results:
        values, vectors = _symmetric3_torch.solve(matrix, not alone, may_look=may_look)
        return values if alone else (values, vectors)

    def triton(self, alone: bool, matrix: Tensor) -> Tensor | Results:
        from multicontrast.linalg import _symmetric3_triton

        return _symmetric3_triton.eigvalsh3(matrix) if alone else _symmetric3_triton.eigh3(matrix)

    def fake(self, matrix: Tensor) -> Results:
        return matrix.new_empty(matrix.shape[:-1]), matrix.new_empty(matrix.shape)

    def residuals(self, inputs: tuple[Any, ...], results: Results) -> Results:
        return results

    def backward(self, residuals: tuple[Any, ...], *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (values, vectors), (d_values, d_vectors) = residuals, cotangents
        if d_values is not None and d_vectors is None and not torch.is_grad_enabled():
            return (_symmetric3_torch.weighted_projectors(vectors, d_values),)  # no second derivative is needed
        middle = torch.zeros_like(vectors) if d_values is None else torch.diag_embed(d_values)
        if d_vectors is not None:
            middle = middle + _inverse_gaps(values) * product(vectors.mT, d_vectors)
        gradient = product(product(vectors, middle), vectors.mT)
        return ((gradient + gradient.mT) / 2,)

    def forward_mode(self, residuals: tuple[Any, ...], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (values, vectors), (tangent,) = residuals, tangents
        assert tangent is not None  # the only argument
        moved = product(product(vectors.mT, (tangent + tangent.mT) / 2), vectors)
        # A copy: forward mode takes no view for the tangent of an output.
        slope = moved.diagonal(dim1=-2, dim2=-1).clone(memory_format=torch.contiguous_format)
        return slope, product(vectors, _inverse_gaps(values) * moved)


def _inverse_gaps(values: Tensor) -> Tensor:
    """``1 / (l_j - l_i)``, 0 on the diagonal and where the two count as one."""
    difference = values.unsqueeze(-2) - values.unsqueeze(-1)
    norm = values.detach().abs().amax(-1)[..., None, None]
    tied = difference.detach().abs() <= _TIE * torch.finfo(values.dtype).eps * norm
    return torch.where(tied, 0, 1 / torch.where(tied, 1, difference))


EIGENPAIRS = _Eigenpairs()
