r"""The nearest proper rotation of 3x3 matrices as a Triton kernel, a matrix for each lane.

The same steps as ``_rotation_torch``, which derives them and the gradient: one pair of singular vectors is split off by
the deflation of ``_symmetric3_triton``, and the rest turns in a plane. The gradient computes the rotation again instead
of reading it. Reciprocal square roots are corrected by a step of Newton where lengths and angles depend on them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two
from multicontrast.linalg._symmetric3_triton import (
    deviator,
    eigenpairs_of,
    frame,
    inverse_root,
    isolate,
    larger,
    load3,
    reciprocal,
    store3,
)

_TUNING = Tuning(
    default=config(num_warps=4, BLOCK=128),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((2, 64), (4, 128), (4, 256), (8, 256))],
)


@triton.jit
def _dot(a0, a1, a2, b0, b1, b2):
    return a0 * b0 + a1 * b1 + a2 * b2


@triton.jit
def _image(k00, k01, k02, k10, k11, k12, k20, k21, k22, x, y, z):
    """``K (x, y, z)``."""
    return _dot(k00, k01, k02, x, y, z), _dot(k10, k11, k12, x, y, z), _dot(k20, k21, k22, x, y, z)


@triton.jit
def _nearest(k00, k01, k02, k10, k11, k12, k20, k21, k22, REFLECTION: tl.constexpr):
    """The rotation's entries, row by row, for entries of about 1, not all 0."""
    # K'K, and its isolated eigenvector v with a frame a, b across it.
    b00, b11, b22 = deviator(
        _dot(k00, k10, k20, k00, k10, k20), _dot(k01, k11, k21, k01, k11, k21), _dot(k02, k12, k22, k02, k12, k22)
    )
    b10, b20 = _dot(k01, k11, k21, k00, k10, k20), _dot(k02, k12, k22, k00, k10, k20)
    b21 = _dot(k02, k12, k22, k01, k11, k21)
    eta, v0, v1, v2, a0, a1, a2, b0, b1, b2 = isolate(b00, b11, b22, b10, b20, b21)
    w0, w1, w2 = _image(k00, k01, k02, k10, k11, k12, k20, k21, k22, v0, v1, v2)
    x0, x1, x2 = _image(k00, k01, k02, k10, k11, k12, k20, k21, k22, a0, a1, a2)
    y0, y1, y2 = _image(k00, k01, k02, k10, k11, k12, k20, k21, k22, b0, b1, b2)
    # u is along K v, or across K a and K b where K v may be 0; c, d complete it.
    top = eta >= 0
    u0 = tl.where(top, w0, x1 * y2 - x2 * y1)
    u1 = tl.where(top, w1, x2 * y0 - x0 * y2)
    u2 = tl.where(top, w2, x0 * y1 - x1 * y0)
    scale = inverse_root(_dot(u0, u1, u2, u0, u1, u2))
    u0, u1, u2 = u0 * scale, u1 * scale, u2 * scale
    c0, c1, c2, d0, d1, d2 = frame(u0, u1, u2)
    ca, da = _dot(c0, c1, c2, x0, x1, x2), _dot(d0, d1, d2, x0, x1, x2)
    cb, db = _dot(c0, c1, c2, y0, y1, y2), _dot(d0, d1, d2, y0, y1, y2)
    if REFLECTION:
        direct = (ca + db) * (ca + db) + (da - cb) * (da - cb)
        mirrored = (ca - db) * (ca - db) + (da + cb) * (da + cb) > direct
        cb, db = tl.where(mirrored, -cb, cb), tl.where(mirrored, -db, db)
        b0, b1, b2 = tl.where(mirrored, -b0, b0), tl.where(mirrored, -b1, b1), tl.where(mirrored, -b2, b2)
        against = _dot(u0, u1, u2, w0, w1, w2) < 0
        v0, v1, v2 = tl.where(against, -v0, v0), tl.where(against, -v1, v1), tl.where(against, -v2, v2)
    cos, sin = ca + db, da - cb
    square = cos * cos + sin * sin
    # (eps / 8)^2: the angle is 0 where all angles are equally good.
    LOST: tl.constexpr = 7.703719777548943e-34 if k00.dtype == tl.float64 else 2.220446049250313e-16
    lost = square <= LOST
    scale = inverse_root(tl.where(lost, 1.0, square))
    cos, sin = tl.where(lost, 1.0, cos * scale), tl.where(lost, 0.0, sin * scale)
    x0, x1, x2 = cos * c0 + sin * d0, cos * c1 + sin * d1, cos * c2 + sin * d2
    y0, y1, y2 = cos * d0 - sin * c0, cos * d1 - sin * c1, cos * d2 - sin * c2
    return (
        u0 * v0 + x0 * a0 + y0 * b0, u0 * v1 + x0 * a1 + y0 * b1, u0 * v2 + x0 * a2 + y0 * b2,
        u1 * v0 + x1 * a0 + y1 * b0, u1 * v1 + x1 * a1 + y1 * b1, u1 * v2 + x1 * a2 + y1 * b2,
        u2 * v0 + x2 * a0 + y2 * b0, u2 * v1 + x2 * a1 + y2 * b1, u2 * v2 + x2 * a2 + y2 * b2,
    )  # fmt: skip


@triton.jit
def _rotation3_kernel(
    matrix_ptr, grad_ptr, result_ptr,
    row_stride, column_stride, stride, grad_row_stride, grad_column_stride, grad_stride, count,
    REFLECTION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = lane < count
    k00, k01, k02, k10, k11, k12, k20, k21, k22 = load3(matrix_ptr + lane * stride, row_stride, column_stride, inside)
    largest = larger(larger(larger(tl.abs(k00), k01, k02, k10), k11, k12, k20), k21, k22, k00)
    poison = largest * 0
    empty = largest == 0
    power, _inverse = power_of_two(largest)
    k00, k01, k02 = tl.where(empty, 1.0, k00 * power), k01 * power, k02 * power  # K = 0: as for the identity
    k10, k11, k12 = k10 * power, tl.where(empty, 1.0, k11 * power), k12 * power
    k20, k21, k22 = k20 * power, k21 * power, tl.where(empty, 1.0, k22 * power)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = _nearest(k00, k01, k02, k10, k11, k12, k20, k21, k22, REFLECTION)
    if GRADIENT:
        g00, g01, g02, g10, g11, g12, g20, g21, g22 = load3(
            grad_ptr + lane * grad_stride, grad_row_stride, grad_column_stride, inside
        )
        # vee(R^T G - G^T R)
        t0 = _dot(m02, m12, m22, g01, g11, g21) - _dot(m01, m11, m21, g02, g12, g22)
        t1 = _dot(m00, m10, m20, g02, g12, g22) - _dot(m02, m12, m22, g00, g10, g20)
        t2 = _dot(m01, m11, m21, g00, g10, g20) - _dot(m00, m10, m20, g01, g11, g21)
        s0, s1, s2, x0, y0, z0, x1, y1, z1, x2, y2, z2 = eigenpairs_of(  # of H = R^T K
            _dot(m00, m10, m20, k00, k10, k20), _dot(m01, m11, m21, k01, k11, k21), _dot(m02, m12, m22, k02, k12, k22),
            _dot(m01, m11, m21, k00, k10, k20), _dot(m02, m12, m22, k00, k10, k20), _dot(m02, m12, m22, k01, k11, k21),
        )  # fmt: skip
        # The inverse of each gap, which falls to 0 below the limit: sqrt(eps) times the trace of H or the largest entry
        # of K, whichever is larger.
        ROOT_OF_EPS: tl.constexpr = 1.4901161193847656e-08 if k00.dtype == tl.float64 else 3.4526698300124393e-04
        limit = ROOT_OF_EPS * tl.maximum(s0 + s1 + s2, tl.where(empty, 1.0, largest * power))
        scale = tl.where(empty, 0.0, power)
        i0 = reciprocal(tl.maximum(s1 + s2, limit))
        i1 = reciprocal(tl.maximum(s0 + s2, limit))
        i2 = reciprocal(tl.maximum(s0 + s1, limit))
        i0 = (s1 + s2) * i0 * i0 * scale * _dot(x0, x1, x2, t0, t1, t2)
        i1 = (s0 + s2) * i1 * i1 * scale * _dot(y0, y1, y2, t0, t1, t2)
        i2 = (s0 + s1) * i2 * i2 * scale * _dot(z0, z1, z2, t0, t1, t2)
        z0, z1, z2 = x0 * i0 + y0 * i1 + z0 * i2, x1 * i0 + y1 * i1 + z1 * i2, x2 * i0 + y2 * i1 + z2 * i2
        # R [z]x
        m00, m01, m02 = m01 * z2 - m02 * z1, m02 * z0 - m00 * z2, m00 * z1 - m01 * z0
        m10, m11, m12 = m11 * z2 - m12 * z1, m12 * z0 - m10 * z2, m10 * z1 - m11 * z0
        m20, m21, m22 = m21 * z2 - m22 * z1, m22 * z0 - m20 * z2, m20 * z1 - m21 * z0
    store3(
        result_ptr + lane, count, m00 + poison, m01 + poison, m02 + poison, m10 + poison, m11 + poison, m12 + poison,
        m20 + poison, m21 + poison, m22 + poison, inside,
    )  # fmt: skip


def rotation3(matrix: Tensor, allow_reflection: bool = False) -> Tensor:
    """The nearest rotation ``(3, 3, N)`` of ``(3, 3, N)`` matrices, batch innermost; float32 or float64, any strides.

    With ``allow_reflection`` the nearest orthogonal matrix of either sign. NaN or infinity in a matrix gives NaN for it
    alone, ``K = 0`` the identity.
    """
    return _launch(matrix, matrix, allow_reflection, gradient=False)


def rotation3_backward(grad: Tensor, matrix: Tensor, allow_reflection: bool = False) -> Tensor:
    """The gradient ``(3, 3, N)`` by the matrices from that by their rotations, damped where the rotation jumps."""
    return _launch(matrix, grad, allow_reflection, gradient=True)


def _launch(matrix: Tensor, grad: Tensor, allow_reflection: bool, gradient: bool) -> Tensor:
    count = matrix.shape[-1]
    result = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    if count:
        launch(
            _rotation3_kernel, lambda constants: (triton.cdiv(count, constants["BLOCK"]),), _TUNING,
            matrix, grad, result, *matrix.stride(), *grad.stride(), count,
            REFLECTION=allow_reflection, GRADIENT=gradient,
        )  # fmt: skip
    return result
