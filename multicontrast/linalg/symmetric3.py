"""Eigenvalues and eigenvectors of general symmetric 3x3 matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import use_triton
from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _symmetric3_in_place, _symmetric3_torch, _symmetric_operator
from multicontrast.linalg._glue import batch_first, blocks, is_differentiated, is_eager_cpu, refuse_nested_forward_mode
from multicontrast.linalg._spectral import inverse_gaps, spectral_backward

_BLOCK = 1 << 17  # matrices at a time on a CPU: enough to hide the cost of a call


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
    matrix = _prepare("eigvalsh3", A)
    if torch.compiler.is_compiling():
        # An operator that the compiler takes as it is: inlining the formulas costs it minutes.
        return _symmetric_operator.symmetric3_eigenvalues(matrix)
    values: Tensor = _Eigh3.apply(matrix)[0] if is_differentiated(matrix) else _Eigvalsh3.apply(matrix)
    return values


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
    matrix = _prepare("eigh3", A)
    if torch.compiler.is_compiling():
        return _symmetric_operator.symmetric3_eigenpairs(matrix)
    values, vectors = _Eigh3.apply(matrix)
    return values, vectors


def _prepare(operation: str, matrix: Tensor) -> Tensor:
    check_floating(operation, "A", matrix)
    if matrix.dim() < 2 or matrix.shape[-2:] != (3, 3):
        remedy = "For other sizes use `torch.linalg.eigh`, or `eigmax` for the largest eigenvalue."
        raise ValueError(three_beats(f"`{operation}` needs `A` of shape (..., 3, 3)", describe(matrix), remedy))
    return matrix.to(compute_dtype(matrix))


# Back ends -----------------------------------------------------------------------------------------------------------


def evaluate_values(matrix: Tensor) -> Tensor:
    """Eigenvalues ``(..., 3)`` by the best back end for this tensor; no autograd."""
    if use_triton(matrix):
        return _symmetric_operator.symmetric3_eigenvalues(matrix)
    if not is_eager_cpu(matrix):
        return _symmetric3_torch.eigenvalues(matrix)
    flat, values = matrix.reshape(-1, 3, 3), torch.empty(matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    scratch = matrix.new_empty(_symmetric3_in_place.VALUE_ROWS, min(_BLOCK, len(flat)))
    for block in blocks(len(flat), _BLOCK, matrix.device):
        rows = scratch[:, : block.stop - block.start]
        _symmetric3_in_place.eigenvalues_into(values.view(-1, 3)[block], flat[block], rows)
    return values


def evaluate_pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., 3)`` and eigenvectors ``(..., 3, 3)``; no autograd.

    In memory the batch is the last axis of the eigenvectors: what is done with them is done entry by entry.
    """
    if use_triton(matrix):
        return _symmetric_operator.symmetric3_eigenpairs(matrix)
    if not is_eager_cpu(matrix):
        return _symmetric3_torch.eigenpairs(matrix)
    flat, values, vectors = matrix.reshape(-1, 3, 3), matrix.new_empty(matrix.shape[:-1]), _batch_last(matrix)
    scratch = matrix.new_empty(_symmetric3_in_place.PAIR_ROWS, min(_BLOCK, len(flat)))
    for block in blocks(len(flat), _BLOCK, matrix.device):
        rows = scratch[:, : block.stop - block.start]
        results = values.view(-1, 3)[block], vectors.view(-1, 3, 3)[block]
        _symmetric3_in_place.eigenpairs_into(*results, flat[block], rows)
    return values, vectors


def _batch_last(matrix: Tensor) -> Tensor:
    """An empty ``(..., 3, 3)`` whose entries are contiguous over the batch."""
    batch = matrix.shape[:-2]
    count = math.prod(batch)
    strides = torch.empty(batch, device="meta").stride()
    return torch.empty_strided(matrix.shape, (*strides, 3 * count, count), dtype=matrix.dtype, device=matrix.device)


# Autograd ------------------------------------------------------------------------------------------------------------


class _Eigh3(torch.autograd.Function):
    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = evaluate_pairs(matrix)
        return values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_values: Tensor | None, d_vectors: Tensor | None) -> Tensor | None:
        values, vectors = ctx.saved_tensors
        return spectral_backward(values, vectors, d_values, d_vectors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        refuse_nested_forward_mode("eigh3")
        values, vectors = ctx.saved_tensors
        moved = vectors.mT @ ((tangent + tangent.mT) / 2) @ vectors
        return moved.diagonal(dim1=-2, dim2=-1).clone(memory_format=torch.contiguous_format), vectors @ (
            inverse_gaps(values) * moved
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], matrix: Tensor) -> tuple[Any, Any]:
        return _Eigh3.apply(*batch_first(info.batch_size, in_dims, (matrix,))), (0, 0)


class _Eigvalsh3(torch.autograd.Function):
    """The values for those who ask for no derivative; a function only so that ``vmap`` can see through it."""

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return evaluate_values(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], matrix: Tensor) -> tuple[Any, Any]:
        return _Eigvalsh3.apply(*batch_first(info.batch_size, in_dims, (matrix,))), 0
