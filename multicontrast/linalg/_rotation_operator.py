"""The nearest rotation of 3x3 matrices as an operator: ``multicontrast::rotation3`` and its backward.

One node for ``torch.compile`` and ``torch.export``: plain PyTorch on a CPU, Triton on a GPU or wherever
``MULTICONTRAST_BACKEND=triton`` asks for it. Matrices are ``(3, 3, N)``, batch innermost, float32 or float64. The
derivative can be taken once.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import run_kernel, use_triton
from multicontrast.linalg import _rotation_torch as plain


@torch.library.custom_op(
    "multicontrast::rotation3",
    mutates_args=(),
    schema="(Tensor matrix, bool allow_reflection) -> Tensor",
)
def rotation3(matrix: Tensor, allow_reflection: bool) -> Tensor:
    if use_triton(matrix):
        from multicontrast.linalg import _rotation_triton

        return run_kernel(_rotation_triton.rotation3, _plain, matrix, allow_reflection)
    return _plain(matrix, allow_reflection)


def _plain(matrix: Tensor, allow_reflection: bool) -> Tensor:
    return plain.polar(matrix, allow_reflection).rotation.contiguous()


@rotation3.register_fake
def _fake(matrix: Tensor, allow_reflection: bool) -> Tensor:
    return matrix.new_empty(matrix.shape)


@torch.library.custom_op(
    "multicontrast::rotation3_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor matrix, bool allow_reflection) -> Tensor",
)
def rotation3_backward(grad: Tensor, matrix: Tensor, allow_reflection: bool) -> Tensor:
    """The gradient by the matrices from that by their rotations; the rotations are computed again."""
    if use_triton(matrix):
        from multicontrast.linalg import _rotation_triton

        return run_kernel(_rotation_triton.rotation3_backward, _plain_backward, grad, matrix, allow_reflection)
    return _plain_backward(grad, matrix, allow_reflection)


def _plain_backward(grad: Tensor, matrix: Tensor, allow_reflection: bool) -> Tensor:
    return plain.polar_backward(grad, plain.polar(matrix, allow_reflection)).contiguous()


@rotation3_backward.register_fake
def _backward_fake(grad: Tensor, matrix: Tensor, allow_reflection: bool) -> Tensor:
    return matrix.new_empty(matrix.shape)


def _save(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
    matrix, ctx.allow_reflection = inputs
    ctx.save_for_backward(matrix)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (matrix,) = ctx.saved_tensors
    return rotation3_backward(grad, matrix, ctx.allow_reflection), None


rotation3.register_autograd(_differentiate, setup_context=_save)


def _batched(operator: Any) -> Any:
    """The ``vmap`` rule: the mapped axis joins the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        *matrices, allow_reflection = arguments
        size = info.batch_size
        wide = [
            (m.expand(size, *m.shape) if dim is None else m.movedim(dim, 0)).movedim(0, -2).reshape(3, 3, -1)
            for m, dim in zip(matrices, in_dims)
        ]
        return operator(*wide, allow_reflection).unflatten(-1, (size, -1)), 2

    return rule


rotation3.register_vmap(_batched(rotation3))
rotation3_backward.register_vmap(_batched(rotation3_backward))
