"""Symmetric eigenproblems as operators of PyTorch: one name for plain PyTorch and the Triton kernels.

``multicontrast::symmetric3_eigenvalues``, ``symmetric3_eigenpairs`` (deflation) and ``jacobi_eigenpairs``: one node
each for ``torch.compile`` and ``torch.export``, plain PyTorch on a CPU, Triton on a GPU or wherever
``MULTICONTRAST_BACKEND=triton`` asks for it. Differentiable, as often as one likes, by the formulas of ``symmetric3``.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import run_kernel, use_triton
from multicontrast.linalg import _jacobi_torch, _symmetric3_torch
from multicontrast.linalg._spectral import spectral_backward

Pairs = tuple[Tensor, Tensor]


@torch.library.custom_op(
    "multicontrast::symmetric3_eigenvalues", mutates_args=(), device_types="cpu", schema="(Tensor matrix) -> Tensor"
)
def symmetric3_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues ``(..., 3)``, ascending, of ``(..., 3, 3)``, float32 or float64; the lower triangle is read."""
    return _eigenvalues_cuda(matrix) if use_triton(matrix) else _plain_eigenvalues(matrix)


def _plain_eigenvalues(matrix: Tensor) -> Tensor:
    return _symmetric3_torch.eigenvalues(matrix).contiguous()


@symmetric3_eigenvalues.register_kernel("cuda")
def _eigenvalues_cuda(matrix: Tensor) -> Tensor:
    from multicontrast.linalg import _symmetric3_triton

    return run_kernel(_symmetric3_triton.eigvalsh3, _plain_eigenvalues, matrix)


@symmetric3_eigenvalues.register_fake
def _eigenvalues_fake(matrix: Tensor) -> Tensor:
    return matrix.new_empty(matrix.shape[:-1])


@torch.library.custom_op(
    "multicontrast::symmetric3_eigenpairs",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor matrix) -> (Tensor, Tensor)",
)
def symmetric3_eigenpairs(matrix: Tensor) -> Pairs:
    """The same and orthonormal eigenvectors, the columns of ``(..., 3, 3)``."""
    return _eigenpairs_cuda(matrix) if use_triton(matrix) else _plain_eigenpairs(matrix)


def _plain_eigenpairs(matrix: Tensor) -> Pairs:
    values, vectors = _symmetric3_torch.eigenpairs(matrix)
    return values.contiguous(), vectors.contiguous()


@symmetric3_eigenpairs.register_kernel("cuda")
def _eigenpairs_cuda(matrix: Tensor) -> Pairs:
    from multicontrast.linalg import _symmetric3_triton

    return run_kernel(_symmetric3_triton.eigh3, _plain_eigenpairs, matrix)


@torch.library.custom_op(
    "multicontrast::jacobi_eigenpairs",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor matrix) -> (Tensor, Tensor)",
)
def jacobi_eigenpairs(matrix: Tensor) -> Pairs:
    """Eigenvalues ``(..., N)``, in no order, and orthonormal eigenvectors, the columns, of ``(..., N, N)``, N = 2..8.

    The lower triangle is read; plain PyTorch wants entries of order 1.
    """
    return _jacobi_cuda(matrix) if use_triton(matrix) else _plain_jacobi(matrix)


def _plain_jacobi(matrix: Tensor) -> Pairs:
    n = matrix.shape[-1]
    symmetric = matrix.tril() + matrix.tril(-1).mT
    values, vectors = _jacobi_torch.eigenpairs(symmetric.reshape(-1, n, n))
    return values.reshape(matrix.shape[:-1]).contiguous(), vectors.reshape(matrix.shape).contiguous()


@jacobi_eigenpairs.register_kernel("cuda")
def _jacobi_cuda(matrix: Tensor) -> Pairs:
    from multicontrast.linalg import _jacobi_triton

    return run_kernel(_jacobi_triton.jacobi, _plain_jacobi, matrix)


@symmetric3_eigenpairs.register_fake
@jacobi_eigenpairs.register_fake
def _pairs_fake(matrix: Tensor) -> Pairs:
    return matrix.new_empty(matrix.shape[:-1]), matrix.new_empty(matrix.shape)


def _save_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_values(ctx: Any, d_values: Tensor) -> Tensor:
    (matrix,) = ctx.saved_tensors
    _, vectors = symmetric3_eigenpairs(matrix)
    return (vectors * d_values.unsqueeze(-2)) @ vectors.mT


def _save_output(ctx: Any, inputs: tuple[Tensor], output: Pairs) -> None:
    ctx.save_for_backward(*output)


def _differentiate_pairs(ctx: Any, d_values: Tensor, d_vectors: Tensor) -> Tensor | None:
    values, vectors = ctx.saved_tensors
    return spectral_backward(values, vectors, d_values, d_vectors)


symmetric3_eigenvalues.register_autograd(_differentiate_values, setup_context=_save_input)
symmetric3_eigenpairs.register_autograd(_differentiate_pairs, setup_context=_save_output)
jacobi_eigenpairs.register_autograd(_differentiate_pairs, setup_context=_save_output)


def _batched(operator: Any) -> Any:
    """The ``vmap`` rule of an operator that takes any leading axes as a batch."""

    def rule(info: Any, in_dims: tuple[int | None], matrix: Tensor) -> tuple[Any, Any]:
        dim = in_dims[0]
        assert dim is not None  # the only input is the mapped one
        result = operator(matrix.movedim(dim, 0))
        return result, 0 if isinstance(result, Tensor) else (0, 0)

    return rule


for _operator in (symmetric3_eigenvalues, symmetric3_eigenpairs, jacobi_eigenpairs):
    _operator.register_vmap(_batched(_operator))
