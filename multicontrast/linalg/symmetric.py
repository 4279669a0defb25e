"""Largest eigenvalue of symmetric N x N matrices, N = 2..8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import use_triton
from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _jacobi_torch, _symmetric3_torch, _symmetric_operator
from multicontrast.linalg._glue import batch_first, blocks, is_eager_cpu, refuse_nested_forward_mode
from multicontrast.linalg._gram3_torch import power_of_two

# Eigenvalues closer than this, in eps of the largest magnitude, count as one: so far does rounding part equal ones. Not
# more, since the mean over two projectors is a subgradient only to half their distance.
_TIE = 2.0
_LAPACK_FROM = {torch.float32: 7, torch.float64: 5}  # N, on a CPU
_BLOCK = 16384  # matrices at a time on a CPU: their rows stay in the cache


def eigmax(A: Tensor) -> Tensor:  # the name of the contract
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

    >>> import torch
    >>> eigmax(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    tensor(3.)
    """
    check_floating("eigmax", "A", A)
    if A.dim() < 2 or A.shape[-1] != A.shape[-2] or not 2 <= A.shape[-1] <= 8:
        remedy = "For larger matrices use `torch.linalg.eigvalsh(A)[..., -1]`."
        raise ValueError(three_beats("`eigmax` needs `A` of shape (..., N, N) with N = 2..8", describe(A), remedy))
    return symmetric_eigmax(A.to(compute_dtype(A)))


def symmetric_eigmax(matrix: Tensor) -> Tensor:
    """The same without checks, for float32 and float64."""
    function = _TracedEigmax if torch.compiler.is_compiling() else _Eigmax
    value: Tensor = function.apply(matrix)[0]
    return value


def evaluate(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(largest eigenvalue, gradient, distances, eigenvectors)`` of ``(..., N, N)``; no autograd.

    The distances ``(..., N)`` are those of all eigenvalues from the largest, 0 for those that count as equal to it;
    the eigenvectors are the columns of ``(..., N, N)``.
    """
    *batch, n, _ = matrix.shape
    flat = matrix.reshape(-1, n, n)
    # Memory of their own: autograd does not let users write into views that were made inside a function.
    value, gradient, distances, vectors = (matrix.new_empty((*batch, *shape)) for shape in ((), (n, n), (n,), (n, n)))
    wholes = (value.view(-1), gradient.view(-1, n, n), distances.view(-1, n), vectors.view(-1, n, n))
    length = len(flat) if torch.compiler.is_compiling() else _BLOCK
    for block in blocks(len(flat), length, matrix.device):
        for whole, part in zip(wholes, _evaluate(flat[block])):
            whole[block] = part
    return value, gradient, distances, vectors


def _evaluate(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    symmetric = matrix.tril() + matrix.tril(-1).mT
    largest = symmetric.abs().amax((-2, -1))
    power, inverse = power_of_two(largest)
    symmetric = symmetric * power[:, None, None]
    shift = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)
    symmetric.diagonal(dim1=-2, dim2=-1).sub_(shift[:, None])
    _, vectors = _solver(symmetric)(symmetric)
    # The solver leaves some eps in its eigenvalues; Rayleigh quotients with the matrix itself take them out.
    spectrum = ((symmetric @ vectors) * vectors).sum(-2) / vectors.square().sum(-2)
    distances = spectrum.amax(-1, keepdim=True) - spectrum
    tied = distances <= _TIE * torch.finfo(matrix.dtype).eps * spectrum.abs().amax(-1, keepdim=True)
    weights = tied.to(matrix.dtype)
    gradient = (vectors * weights[:, None, :]) @ vectors.mT
    gradient = gradient / gradient.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    value = (gradient * symmetric).sum((-2, -1))
    poison = largest * 0
    distances = torch.where(tied, 0, distances) * inverse[:, None] + poison[:, None]
    return (value + shift) * inverse + poison, gradient + poison[:, None, None], distances, vectors


def _solver(matrix: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Deflation for N = 3, Jacobi for the others; as an operator for Triton and for the compiler."""
    three = matrix.shape[-1] == 3
    if matrix.shape[-1] >= _LAPACK_FROM[matrix.dtype] and is_eager_cpu(matrix) and not use_triton(matrix):
        return _lapack_eigenpairs
    if use_triton(matrix) or torch.compiler.is_compiling():
        return _symmetric_operator.symmetric3_eigenpairs if three else _symmetric_operator.jacobi_eigenpairs
    return _symmetric3_torch.eigenpairs if three else _jacobi_torch.eigenpairs


def _lapack_eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The same by LAPACK, which on a CPU is faster for the larger N; it would raise for NaN and infinity."""
    values, vectors = torch.linalg.eigh(matrix.nan_to_num(0, 0, 0))
    return values, vectors


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
    w = vectors @ (weight.unsqueeze(-1) * (vectors.mT @ (symmetric @ u)))
    return w @ u.mT + u @ w.mT


class _TracedEigmax(torch.autograd.Function):
    """Value and gradient together. The gradient is an output, so that it can be differentiated again."""

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return evaluate(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[1:])
        ctx.save_for_forward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dg: Tensor | None, *_: None) -> Tensor | None:
        gradient, distances, vectors = ctx.saved_tensors
        first = None if dx is None else dx[..., None, None] * gradient
        if dg is None:
            return first
        second = _hessian_product(distances, vectors, dg)
        return second if first is None else first + second


class _Eigmax(_TracedEigmax):
    """The same with the rules that ``torch.compile`` does not read: forward mode and ``vmap``."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_nested_forward_mode("eigmax")
        gradient, distances, vectors = ctx.saved_tensors
        return (gradient * tangent).sum((-2, -1)), _hessian_product(distances, vectors, tangent), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], matrix: Tensor) -> tuple[Any, Any]:
        return _Eigmax.apply(*batch_first(info.batch_size, in_dims, (matrix,))), (0, 0, 0, 0)
