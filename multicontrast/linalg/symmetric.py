"""Largest eigenvalue of symmetric N x N matrices, N = 2..8: the front door and its autograd glue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg._jacobi_torch import hessian_product, top_projector

_SIZES = range(2, 9)


def eigmax(A: Tensor) -> Tensor:
    r"""Largest eigenvalue of symmetric matrices ``(..., N, N)``, N = 2..8, at any scale.

    Each matrix is divided by a power of two, which is exact, and shifted by its mean diagonal; cyclic Jacobi rotations
    then run a fixed number of sweeps. A matrix of norm 1e-30 is as good as one of norm 1.

    Args:
        A: ``(..., N, N)``; the lower triangle is read, as by :func:`torch.linalg.eigvalsh`. Half precision is computed
            and returned in float32.

    Returns:
        ``(...)``. The gradient is symmetric: ``u u'`` for the unit eigenvector ``u``; where the eigenvalue is multiple
        the projector on its space over its dimension, the subgradient of least norm. Twice differentiable; the second
        derivative at a multiple eigenvalue is 0 by convention. NaN or infinity in a matrix gives NaN for it.

    Accuracy: 4 eps of the largest eigenvalue's matrix norm.

    Raises:
        TypeError: unless ``A`` is a real floating-point tensor.
        ValueError: unless its last two axes are N x N with N = 2..8.

    Example:
        >>> import torch
        >>> round(eigmax(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).item(), 6)
        3.0
    """
    check_floating("eigmax", "A", A)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.shape[-1] not in _SIZES:
        raise ValueError(
            three_beats(
                "`eigmax` needs `A` of shape (..., N, N) with N = 2..8",
                describe(A),
                "For larger matrices use `torch.linalg.eigvalsh(A)[..., -1]`.",
            )
        )
    matrix: Tensor = _ReadLower.apply(A.to(compute_dtype(A)))
    scale = _power_of_two(matrix.detach().abs().amax((-2, -1)))[..., None, None]
    matrix = matrix / scale
    shift = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    centred = matrix - torch.diag_embed(shift[..., None].expand(*shift.shape, A.shape[-1]))
    return (symmetric_eigmax(centred) + shift) * scale[..., 0, 0]


def symmetric_eigmax(matrix: Tensor) -> Tensor:
    """Largest eigenvalue of symmetric ``(..., N, N)``, differentiable twice. No checks, no shift, no symmetrising."""
    return _Eigmax.apply(matrix)[0]


class _Eigmax(torch.autograd.Function):
    """Value and gradient together. The gradient is an output, so that it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, ...]:
        return top_projector(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[1:])
        ctx.save_for_forward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dg: Tensor | None, *_: None) -> Tensor | None:
        projector, spectrum, vectors = ctx.saved_tensors
        grad = None if dx is None else dx[..., None, None] * projector
        if dg is None:
            return grad
        second = hessian_product(spectrum, vectors, dg)
        return second if grad is None else grad + second

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        projector, spectrum, vectors = ctx.saved_tensors
        return (projector * tangent).sum((-2, -1)), hessian_product(spectrum, vectors, tangent), None, None


class _ReadLower(torch.autograd.Function):
    """The symmetric matrix with this lower triangle. Derivatives pass as they are: entries ``ij`` and ``ji`` of a
    symmetric matrix move together, and each has half of the slope."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        lower = matrix.tril()
        return lower + matrix.tril(-1).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return (tangent + tangent.mT) / 2


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two at or below ``largest``, whose reciprocal is a normal number too; 1 for 0, NaN and infinity."""
    exponent = torch.frexp(largest).exponent - 1
    bound = 126 if largest.dtype == torch.float32 else 1022
    power = torch.ldexp(torch.ones_like(largest), exponent.clamp(-bound, bound - 1))
    return torch.where((largest > 0) & largest.isfinite(), power, 1)
