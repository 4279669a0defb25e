"""Nearest proper rotation of a 2x2 or 3x3 matrix: the heart of Procrustes alignment.

The public function, the autograd glue and the choice of back end. The arithmetic is in ``_rotation_torch``, and for
Triton in ``_rotation_triton`` behind the operator of ``_rotation_operator``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multicontrast._backend import is_transformed, use_triton
from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _rotation_operator, _rotation_torch
from multicontrast.linalg._glue import fold_last, unfold_last

# On a CPU: long enough to hide the cost of several hundred short operations, short enough for a core's cache.
_CHUNK = 16384


def proper_rotation(matrix: Tensor, *, allow_reflection: bool = False) -> Tensor:
    r"""The rotation nearest to a matrix: :math:`\arg\max_{R} \langle R, K \rangle` over :math:`\det R = +1`.

    For points :math:`x_j, y_j` and :math:`K = \sum_j w_j\, y_j x_j^\top` it is the rotation that minimises
    :math:`\sum_j w_j \lVert R x_j - y_j \rVert^2` (Kabsch 1976, Umeyama 1991).

    Where the maximiser is not unique (``K`` of rank 1 or 0, a reflection with two equal smallest singular values) one
    of the maximisers is returned; ``K = 0`` gives the identity. The result is orthogonal to a few eps, with
    determinant +1 by construction; its error is a few eps times ``s1 / (s2 + d * s3)`` for singular values ``s`` and
    ``d = sign(det K)``. The gradient is analytic: exact while that ratio is below ``eps ** -0.5``, damped and always
    finite beyond. It can be taken once (no double backward).

    Args:
        matrix: ``(..., 3, 3)`` or ``(..., 2, 2)``, of any finite scale.
        allow_reflection: maximise over ``det R = -1`` as well.

    Returns:
        ``(..., D, D)`` in float32, or float64 for float64 input. NaN or infinity in a matrix gives NaN for it alone.

    Raises:
        TypeError: ``matrix`` is not a tensor of real floating-point numbers.
        ValueError: its last two sizes are not 2 and 2 or 3 and 3.

    Reference:
        Umeyama, Least-squares estimation of transformation parameters between two point patterns, TPAMI 1991;
        one-sided Jacobi: Hestenes 1958, Demmel and Veselić 1992.

    Example:
        >>> quarter_turn = torch.tensor([[0.0, -2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        >>> proper_rotation(quarter_turn)
        tensor([[ 0., -1.,  0.],
                [ 1.,  0.,  0.],
                [ 0.,  0.,  1.]])
    """
    check_floating("proper_rotation", "matrix", matrix)
    if matrix.dim() < 2 or matrix.shape[-2:] not in ((2, 2), (3, 3)):
        raise ValueError(
            three_beats(
                "`proper_rotation` needs `matrix` of shape (..., 3, 3) or (..., 2, 2)",
                describe(matrix),
                "Put the two sizes of the matrix last.",
            )
        )
    size = matrix.shape[-1]
    inner = matrix.to(compute_dtype(matrix)).reshape(-1, size, size).permute(1, 2, 0)
    chunk = _CHUNK if matrix.device.type == "cpu" else max(inner.shape[-1], 1)
    parts = [batch_last_rotation(part.contiguous(), allow_reflection) for part in torch.split(inner, chunk, -1)]
    return torch.cat(parts, -1).permute(2, 0, 1).reshape(matrix.shape)


def batch_last_rotation(matrix: Tensor, allow_reflection: bool = False) -> Tensor:
    """`proper_rotation` for callers that already hold ``(D, D, N)``, batch innermost; checks nothing, one chunk."""
    compiled = torch.compiler.is_compiling()
    if len(matrix) == 3 and (compiled or (use_triton(matrix) and not is_transformed(matrix))):
        return _rotation_operator.rotation3(matrix, allow_reflection)
    rotation: Tensor = _Rotation.apply(matrix, allow_reflection)[0]
    return rotation


class _Rotation(torch.autograd.Function):
    """The rotation ``(D, D, N)``; the axes and the scaled matrix beside it are what its derivative needs."""

    @staticmethod
    def forward(matrix: Tensor, allow_reflection: bool) -> tuple[Tensor, ...]:
        polar = _rotation_torch.polar(matrix, allow_reflection)
        return polar.rotation, polar.scaled, polar.scale, *polar.axes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        rotation, scaled, scale, *axes = ctx.saved_tensors
        return _rotation_torch.polar_backward(grad, _rotation_torch.Polar(rotation, tuple(axes), scaled, scale)), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], matrix: Tensor, allow_reflection: bool
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        (wide,) = fold_last(info.batch_size, in_dims[:1], (matrix,))
        return unfold_last(info.batch_size, _Rotation.apply(wide, allow_reflection))
