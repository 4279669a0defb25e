"""Nearest proper rotation of a 2x2 or 3x3 matrix: the heart of Procrustes alignment."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multicontrast._checks import check_flag, check_floating, compute_dtype, describe, three_beats
from multicontrast.linalg import _rotation_torch
from multicontrast.linalg._operation import Operation, Results


def proper_rotation(matrix: Tensor, *, allow_reflection: bool = False) -> Tensor:
    r"""The rotation nearest to a matrix: :math:`\arg\max_{R} \langle R, K \rangle` over :math:`\det R = +1`.

    For points :math:`x_j, y_j` and :math:`K = \sum_j w_j\, y_j x_j^\top` it is the rotation that minimises
    :math:`\sum_j w_j \lVert R x_j - y_j \rVert^2` (Kabsch 1976; Umeyama, TPAMI 1991). Where the maximiser is not unique
    (``K`` of rank 1 or 0, a reflection with two equal smallest singular values) one of the maximisers is returned;
    ``K = 0`` gives the identity.

    Args:
        matrix: ``(..., 3, 3)`` or ``(..., 2, 2)``, of any finite scale.
        allow_reflection: maximise over ``det R = -1`` as well.
    Returns: ``(..., D, D)`` in float32, or float64 for float64 input. NaN or infinity in a matrix gives NaN for it.
    Accuracy: orthogonal to a few eps, with determinant +1 by construction; the error is a few eps times
        ``s1 / (s2 + d * s3)`` for singular values ``s`` and ``d = sign(det K)``. The gradient is analytic: exact while
        that ratio is below ``eps ** -0.5``, damped and always finite beyond. It can be taken once (no double backward).
    Raises: TypeError unless ``matrix`` is a real floating-point tensor and ``allow_reflection`` a bool; ValueError
        unless the last two axes are 2 x 2 or 3 x 3.
    Reference: deflation of the isolated eigenvalue: Scherzinger and Dohrmann, CMAME 2008.

    >>> quarter_turn = torch.tensor([[0.0, -2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    >>> proper_rotation(quarter_turn)
    tensor([[ 0., -1.,  0.],
            [ 1.,  0.,  0.],
            [ 0.,  0.,  1.]])
    """
    reflect = check_flag("proper_rotation", "allow_reflection", allow_reflection)
    check_floating("proper_rotation", "matrix", matrix)
    if matrix.dim() < 2 or matrix.shape[-2:] not in ((2, 2), (3, 3)):
        needed = "`proper_rotation` needs `matrix` of shape (..., 3, 3) or (..., 2, 2)"
        raise ValueError(three_beats(needed, describe(matrix), "Put the two sizes of the matrix last."))
    size = matrix.shape[-1]
    inner = matrix.to(compute_dtype(matrix)).reshape(-1, size, size).permute(1, 2, 0)
    return batch_last_rotation(inner.contiguous(), reflect).permute(2, 0, 1).reshape(matrix.shape)


def batch_last_rotation(matrix: Tensor, allow_reflection: bool = False) -> Tensor:
    """`proper_rotation` for callers that already hold ``(D, D, N)``, batch innermost; checks nothing."""
    return ROTATION.value(matrix, allow_reflection)


class _RotationBackward(Operation):
    """The gradient w.r.t. the matrices, from that w.r.t. their rotations."""

    function = "proper_rotation"
    name = "rotation_backward"
    arguments = "Tensor grad, Tensor matrix, Tensor rotation, bool allow_reflection"
    batch_last = True
    saved_results = slice(0)

    def plain(self, alone: bool, can_read: bool, grad: Tensor, matrix: Tensor, rotation: Tensor, _: bool) -> Tensor:
        return _rotation_torch.backward(grad, matrix, rotation, can_read)

    def triton(self, alone: bool, grad: Tensor, matrix: Tensor, rotation: Tensor, allow_reflection: bool) -> Tensor:
        from multicontrast.linalg import _rotation_triton

        if len(matrix) == 2:
            return _rotation_torch.backward(grad, matrix, rotation, can_read=False)
        return _rotation_triton.rotation3_backward(grad, matrix, allow_reflection)

    def fake(self, grad: Tensor, *_: Any) -> Results:
        return (grad.new_empty(grad.shape),)


class _Rotation(Operation):
    """The rotations ``(D, D, N)`` of matrices ``(D, D, N)``; differentiable once."""

    function = "proper_rotation"
    name = "rotation"
    arguments = "Tensor matrix, bool allow_reflection"
    batch_last = True
    saved_inputs = 1

    def plain(self, alone: bool, can_read: bool, matrix: Tensor, allow_reflection: bool) -> Tensor:
        return _rotation_torch.nearest(matrix, allow_reflection)

    def triton(self, alone: bool, matrix: Tensor, allow_reflection: bool) -> Tensor:
        from multicontrast.linalg import _rotation_triton

        if len(matrix) == 2:
            return _rotation_torch.nearest(matrix, allow_reflection)
        return _rotation_triton.rotation3(matrix, allow_reflection)

    def fake(self, matrix: Tensor, *_: Any) -> Results:
        return (matrix.new_empty(matrix.shape),)

    def backward(self, residuals: tuple[Any, ...], *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        matrix, rotation, allow_reflection = residuals
        return (BACKWARD(cotangents[0], matrix, rotation, allow_reflection),)


BACKWARD = _RotationBackward()
ROTATION = _Rotation()
