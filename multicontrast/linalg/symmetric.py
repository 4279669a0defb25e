"""Eigenvalues and eigenvectors of symmetric matrices: all of 3 x 3, and the largest of N x N, N = 2..8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _jacobi_torch, _symmetric3_torch
from multicontrast.linalg._gram3_torch import power_of_two
from multicontrast.linalg._operation import Operation, Results

# Eigenvalues closer than this, in eps of the largest magnitude, count as equal, because rounding separates equal ones
# by as much. For the largest alone the limit is lower: the mean of two projectors is a subgradient only to within half
# the distance between their eigenvalues.
_TIE, _TIE_OF_LARGEST = 4.0, 2.0
_BLOCK = 1 << 17  # entries at a time on a CPU: they stay in the cache

Solver = Callable[[Tensor], tuple[Tensor, Tensor]]


def eigvalsh3(A: Tensor) -> Tensor:  # `A` as in `torch.linalg`
    r"""Eigenvalues of symmetric ``(..., 3, 3)``, ascending: a more accurate and faster :func:`torch.linalg.eigvalsh`.

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


def eigmax(A: Tensor) -> Tensor:  # `A` as in `torch.linalg`
    r"""Largest eigenvalue of symmetric ``(..., N, N)``, N = 2..8, at any scale.

    Args:
        A: the lower triangle is read, as by :func:`torch.linalg.eigvalsh`. Half precision is computed and returned in
            float32.
    Returns: ``(...)``.
    Accuracy: 3 eps of the norm (observed), from 1e-38 to 1e38 in float32: each matrix is divided by a power of two,
        which is exact, and shifted by its mean diagonal.
        The gradient is symmetric, ``u u'`` for the unit eigenvector ``u``, as :func:`torch.linalg.eigvalsh`'s; where
        the eigenvalue is multiple (to 2 eps of the norm) it is the projector on its space over its dimension, the
        subgradient of least norm. Differentiable twice, in reverse and forward mode; at a multiple eigenvalue the
        second derivative is 0 by convention. NaN or infinity in a matrix gives NaN for it.
    Raises: TypeError unless ``A`` is a real floating-point tensor; ValueError unless its last two axes are N x N.
    Reference: cyclic Jacobi, for N = 3 deflation; docs/math/symmetric-eigenproblems.

    >>> eigmax(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    tensor(3.)
    """
    check_floating("eigmax", "A", A)
    if A.dim() < 2 or A.shape[-1] != A.shape[-2] or not 2 <= A.shape[-1] <= 8:
        remedy = "For larger matrices use `torch.linalg.eigvalsh(A)[..., -1]`."
        raise ValueError(three_beats("`eigmax` needs `A` of shape (..., N, N) with N = 2..8", describe(A), remedy))
    return EIGMAX.value(A.to(compute_dtype(A)))


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

    def plain(self, alone: bool, can_read: bool, matrix: Tensor) -> Tensor | Results:
        values, vectors = _symmetric3_torch.solve(matrix, not alone, can_read=can_read)
        return values if alone else (values, vectors)

    def triton(self, alone: bool, matrix: Tensor) -> Tensor | Results:
        from multicontrast.linalg import _symmetric3_triton

        return _symmetric3_triton.eigvalsh3(matrix) if alone else _symmetric3_triton.eigh3(matrix)

    def fake(self, matrix: Tensor) -> Results:
        return matrix.new_empty(matrix.shape[:-1]), matrix.new_empty(matrix.shape)

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
        # A copy, because forward mode accepts no view as the tangent of an output.
        slope = moved.diagonal(dim1=-2, dim2=-1).clone(memory_format=torch.contiguous_format)
        return slope, product(vectors, _inverse_gaps(values) * moved)


def _inverse_gaps(values: Tensor) -> Tensor:
    """``1 / (l_j - l_i)``, 0 on the diagonal and where the two count as equal."""
    difference = values.unsqueeze(-2) - values.unsqueeze(-1)
    norm = values.detach().abs().amax(-1)[..., None, None]
    tied = difference.detach().abs() <= _TIE * torch.finfo(values.dtype).eps * norm
    return torch.where(tied, 0, 1 / torch.where(tied, 1, difference))


class _Eigmax(Operation):
    """Largest eigenvalue ``(...)``; its gradient ``(..., N, N)``, which is a result so that it can be differentiated
    again; the distances ``(..., N)`` of all eigenvalues from it, 0 for those that count as equal; and the eigenvectors,
    the columns of ``(..., N, N)``."""

    function = "eigmax"
    name = "symmetric_eigmax"
    results = 4
    constants = 2
    saved_results = slice(1, None)

    def plain(self, alone: bool, can_read: bool, matrix: Tensor) -> Results:
        n = matrix.shape[-1]
        solver: Solver = _lapack if can_read and n > 3 else _jacobi_torch.eigenpairs
        if n == 3:
            solver = partial(_symmetric3_torch.solve, can_read=can_read)
        if n == 2 or not can_read:
            return _evaluate(matrix, solver)
        found = [_evaluate(batch_last(part), solver) for part in matrix.reshape(-1, n, n).split(max(_BLOCK // n**2, 1))]
        results = self.fake(matrix)
        for result, parts in zip(results, zip(*found)):
            torch.cat(parts, out=result.view(-1, *parts[0].shape[1:]))
        return results

    def triton(self, alone: bool, matrix: Tensor) -> Results:
        from multicontrast.linalg import _jacobi_triton, _symmetric3_triton

        return _evaluate(matrix, _symmetric3_triton.eigh3 if matrix.shape[-1] == 3 else _jacobi_triton.jacobi)

    def fake(self, matrix: Tensor) -> Results:
        *batch, n, _ = matrix.shape
        return tuple(matrix.new_empty((*batch, *shape)) for shape in ((), (n, n), (n,), (n, n)))

    def backward(self, residuals: tuple[Any, ...], *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient, distances, vectors), (dx, direction, *_) = residuals, cotangents
        first = None if dx is None else dx[..., None, None] * gradient
        if direction is None:
            return (first,)
        second = _hessian_product(distances, vectors, direction)
        return (second if first is None else first + second,)

    def forward_mode(self, residuals: tuple[Any, ...], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient, distances, vectors), (tangent,) = residuals, tangents
        assert tangent is not None  # the only argument
        return (gradient * tangent).sum((-2, -1)), _hessian_product(distances, vectors, tangent), None, None


def _evaluate(matrix: Tensor, solver: Solver) -> Results:
    """The four results from the eigenpairs of the matrix, scaled and less its mean diagonal."""
    lower = torch.ones(matrix.shape[-2:], dtype=torch.bool, device=matrix.device).tril()
    symmetric = torch.where(lower, matrix, matrix.mT)
    largest = symmetric.abs().amax((-2, -1))
    power, inverse = power_of_two(largest)
    symmetric = symmetric * power[..., None, None]
    shift = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)
    symmetric.diagonal(dim1=-2, dim2=-1).sub_(shift[..., None])
    _, vectors = solver(symmetric)
    # The solver's eigenvalues err by some eps; Rayleigh quotients with the matrix itself are more accurate.
    spectrum = (product(symmetric, vectors) * vectors).sum(-2) / vectors.square().sum(-2)
    distances = spectrum.amax(-1, keepdim=True) - spectrum
    tied = distances <= _TIE_OF_LARGEST * torch.finfo(matrix.dtype).eps * spectrum.abs().amax(-1, keepdim=True)
    gradient = product(vectors * tied.to(matrix.dtype).unsqueeze(-2), vectors.mT)
    gradient = gradient / gradient.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    value = (gradient * symmetric).sum((-2, -1))
    poison = largest * 0
    distances = torch.where(tied, 0, distances) * inverse[..., None] + poison[..., None]
    return (value + shift) * inverse + poison, gradient + poison[..., None, None], distances, vectors


def _lapack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """For N > 3 on a CPU. For N = 4 it is a hundred times as fast as Jacobi in plain PyTorch for four matrices, and
    half as fast for 10,000.

    It would raise for NaN and infinity.
    """
    values, vectors = torch.linalg.eigh(matrix.nan_to_num(0, 0, 0))
    return values, batch_last(vectors)


def _hessian_product(distances: Tensor, vectors: Tensor, direction: Tensor) -> Tensor:
    """The Hessian of the largest eigenvalue times the symmetric part of ``direction``; 0 where it is multiple.

    The top eigenvector ``u`` moves by ``w = sum_i v_i (v_i . V u) / (top - l_i)`` over the other pairs, so ``u u'``
    moves by ``w u' + u w'``.
    """
    apart = distances > 0
    simple = apart.sum(-1, keepdim=True) == distances.shape[-1] - 1
    weight = torch.where(apart & simple, 1 / torch.where(apart, distances, 1), 0)
    index = distances.argmin(-1, keepdim=True).unsqueeze(-1)
    u = torch.take_along_dim(vectors, index, -1)  # (..., N, 1)
    symmetric = (direction + direction.mT) / 2
    w = product(vectors, weight.unsqueeze(-1) * product(vectors.mT, product(symmetric, u)))
    return w * u.mT + u * w.mT


EIGENPAIRS, EIGMAX = _Eigenpairs(), _Eigmax()


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of small matrices, in full precision regardless of autocast and the settings for TF32."""
    total = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        total = torch.addcmul(total, a[..., :, k : k + 1], b[..., k : k + 1, :])
    return total


def batch_last(matrices: Tensor) -> Tensor:
    """``(n, N, M)`` with each entry contiguous over the batch, for CPU code that works entry by entry."""
    return matrices.permute(1, 2, 0).contiguous().permute(2, 0, 1)
