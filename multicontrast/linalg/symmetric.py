"""Largest eigenvalue of symmetric N x N matrices, N = 2..8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast.linalg._jacobi_torch import hessian_product, top_projector


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
