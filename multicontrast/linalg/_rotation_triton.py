r"""The nearest proper rotation of 3x3 matrices as a Triton kernel: one-sided Jacobi, a matrix for each lane.

Rotations of pairs of columns make the columns of ``K`` orthogonal: :math:`K V = U \Sigma`. The two longest give
:math:`u_1, u_2`, and :math:`K^\top u_i` the :math:`v_i`; third vectors are cross products, so
:math:`R = \sum_i u_i v_i^\top` has the determinant +1 by construction. The same steps as ``_rotation_torch``; the
derivative is derived there too, and computes the rotation again instead of reading it. Angles may be approximate, for
what one rotation leaves the next one takes; lengths of unit vectors are corrected by a step of Newton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two
from multicontrast.linalg._symmetric3_triton import inverse_root, reciprocal

# Cyclic rotations of column pairs after which nothing changes, as in `_rotation_torch`: four rounds of three, and one
# more in float64.
_ROUNDS = {torch.float32: 4, torch.float64: 5}

_TUNING = Tuning(
    default=config(num_warps=4, BLOCK=128),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((2, 64), (4, 128), (4, 256), (8, 256))],
)


@triton.jit
def _dot(a0, a1, a2, b0, b1, b2):
    return a0 * b0 + a1 * b1 + a2 * b2


@triton.jit
def _cross(a0, a1, a2, b0, b1, b2):
    return a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0


@triton.jit
def _largest_of(largest, a, b):
    """The largest magnitude; NaN if one is."""
    largest = tl.maximum(largest, tl.abs(a), propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(largest, tl.abs(b), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _turn(p0, p1, p2, q0, q1, q2, TINY: tl.constexpr):
    """Two columns made orthogonal, by the smaller of the angles that do."""
    inner = _dot(p0, p1, p2, q0, q1, q2)
    difference = _dot(q0, q1, q2, q0, q1, q2) - _dot(p0, p1, p2, p0, p1, p2)
    twice = 2 * inner
    root = tl.sqrt(difference * difference + twice * twice)
    tangent = twice * reciprocal(tl.abs(difference) + root + TINY)  # 0 / 0 is too small to matter
    tangent = tl.where(difference < 0, -tangent, tangent)
    cos = inverse_root(1 + tangent * tangent)
    sin = tangent * cos
    return (
        cos * p0 - sin * q0, cos * p1 - sin * q1, cos * p2 - sin * q2,
        sin * p0 + cos * q0, sin * p1 + cos * q1, sin * p2 + cos * q2,
    )  # fmt: skip


@triton.jit
def _longer_first(p0, p1, p2, q0, q1, q2):
    swap = _dot(p0, p1, p2, p0, p1, p2) < _dot(q0, q1, q2, q0, q1, q2)
    return (
        tl.where(swap, q0, p0), tl.where(swap, q1, p1), tl.where(swap, q2, p2),
        tl.where(swap, p0, q0), tl.where(swap, p1, q1), tl.where(swap, p2, q2),
    )  # fmt: skip


@triton.jit
def _unit_beside(x0, x1, x2, square, limit, n0, n1, n2):
    """``x`` over its length; where its square is not above the limit, some unit vector normal to the unit ``n``."""
    lost = square <= limit
    inverse = inverse_root(tl.where(lost, 1.0, square))
    # Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017.
    a = -n0 * reciprocal(1 + tl.abs(n2))
    sign = tl.where(n2 < 0, -1.0, 1.0).to(n2.dtype)
    return (
        tl.where(lost, 1 + a * n0, x0 * inverse), tl.where(lost, a * n1, x1 * inverse),
        tl.where(lost, -sign * n0, x2 * inverse),
    )  # fmt: skip


@triton.jit
def _rotation3_kernel(
    matrix_ptr, grad_ptr, result_ptr,
    row_stride, column_stride, stride, grad_row_stride, grad_column_stride, grad_stride, count,
    REFLECTION: tl.constexpr, GRADIENT: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = lane < count
    pointer = matrix_ptr + lane * stride
    k00 = tl.load(pointer, mask=inside, other=0.0)
    k01 = tl.load(pointer + column_stride, mask=inside, other=0.0)
    k02 = tl.load(pointer + 2 * column_stride, mask=inside, other=0.0)
    pointer += row_stride
    k10 = tl.load(pointer, mask=inside, other=0.0)
    k11 = tl.load(pointer + column_stride, mask=inside, other=0.0)
    k12 = tl.load(pointer + 2 * column_stride, mask=inside, other=0.0)
    pointer += row_stride
    k20 = tl.load(pointer, mask=inside, other=0.0)
    k21 = tl.load(pointer + column_stride, mask=inside, other=0.0)
    k22 = tl.load(pointer + 2 * column_stride, mask=inside, other=0.0)

    # Denormal beside numbers of about 1; the noise of a column that should be zero: 4 eps, squared.
    TINY: tl.constexpr = 2.2250738585072014e-308 if k00.dtype == tl.float64 else 1.1754943508222875e-38
    NOISE: tl.constexpr = 7.888609052210118e-31 if k00.dtype == tl.float64 else 2.2737367544323206e-13
    LIMIT: tl.constexpr = 1.4901161193847656e-08 if k00.dtype == tl.float64 else 3.4526698300124393e-04  # sqrt(eps)
    largest = _largest_of(tl.abs(k00), k01, k02)
    largest = _largest_of(_largest_of(largest, k10, k11), k12, k20)
    largest = _largest_of(largest, k21, k22)
    poison = largest * 0
    empty = largest == 0
    power, _inverse = power_of_two(largest)
    k00, k01, k02 = tl.where(empty, 1.0, k00 * power), k01 * power, k02 * power  # K = 0: as for the identity
    k10, k11, k12 = k10 * power, tl.where(empty, 1.0, k11 * power), k12 * power
    k20, k21, k22 = k20 * power, k21 * power, tl.where(empty, 1.0, k22 * power)

    p0, p1, p2, q0, q1, q2, r0, r1, r2 = k00, k10, k20, k01, k11, k21, k02, k12, k22
    for _ in range(ROUNDS):
        p0, p1, p2, q0, q1, q2 = _turn(p0, p1, p2, q0, q1, q2, TINY)
        p0, p1, p2, r0, r1, r2 = _turn(p0, p1, p2, r0, r1, r2, TINY)
        q0, q1, q2, r0, r1, r2 = _turn(q0, q1, q2, r0, r1, r2, TINY)
    p0, p1, p2, q0, q1, q2 = _longer_first(p0, p1, p2, q0, q1, q2)
    p0, p1, p2, r0, r1, r2 = _longer_first(p0, p1, p2, r0, r1, r2)
    q0, q1, q2, r0, r1, r2 = _longer_first(q0, q1, q2, r0, r1, r2)

    square = _dot(p0, p1, p2, p0, p1, p2)
    inverse = inverse_root(square)
    p0, p1, p2 = p0 * inverse, p1 * inverse, p2 * inverse
    q0, q1, q2 = _unit_beside(q0, q1, q2, _dot(q0, q1, q2, q0, q1, q2), NOISE * square, p0, p1, p2)
    r0, r1, r2 = _cross(p0, p1, p2, q0, q1, q2)
    # u are p, q, r; v come as x, y, z from what the transpose makes of u.
    x0, x1, x2 = _dot(k00, k10, k20, p0, p1, p2), _dot(k01, k11, k21, p0, p1, p2), _dot(k02, k12, k22, p0, p1, p2)
    square = _dot(x0, x1, x2, x0, x1, x2)
    inverse = inverse_root(square)
    x0, x1, x2 = x0 * inverse, x1 * inverse, x2 * inverse
    y0, y1, y2 = _dot(k00, k10, k20, q0, q1, q2), _dot(k01, k11, k21, q0, q1, q2), _dot(k02, k12, k22, q0, q1, q2)
    along = _dot(x0, x1, x2, y0, y1, y2)
    y0, y1, y2 = y0 - x0 * along, y1 - x1 * along, y2 - x2 * along
    y0, y1, y2 = _unit_beside(y0, y1, y2, _dot(y0, y1, y2, y0, y1, y2), NOISE * square, x0, x1, x2)
    z0, z1, z2 = _cross(x0, x1, x2, y0, y1, y2)
    if REFLECTION:
        w0, w1, w2 = _dot(k00, k01, k02, z0, z1, z2), _dot(k10, k11, k12, z0, z1, z2), _dot(k20, k21, k22, z0, z1, z2)
        mirror = _dot(r0, r1, r2, w0, w1, w2) < 0
        r0, r1, r2 = tl.where(mirror, -r0, r0), tl.where(mirror, -r1, r1), tl.where(mirror, -r2, r2)

    m00, m01, m02 = p0 * x0 + q0 * y0 + r0 * z0, p0 * x1 + q0 * y1 + r0 * z1, p0 * x2 + q0 * y2 + r0 * z2
    m10, m11, m12 = p1 * x0 + q1 * y0 + r1 * z0, p1 * x1 + q1 * y1 + r1 * z1, p1 * x2 + q1 * y2 + r1 * z2
    m20, m21, m22 = p2 * x0 + q2 * y0 + r2 * z0, p2 * x1 + q2 * y1 + r2 * z1, p2 * x2 + q2 * y2 + r2 * z2
    if GRADIENT:
        pointer = grad_ptr + lane * grad_stride
        g00 = tl.load(pointer, mask=inside, other=0.0)
        g01 = tl.load(pointer + grad_column_stride, mask=inside, other=0.0)
        g02 = tl.load(pointer + 2 * grad_column_stride, mask=inside, other=0.0)
        pointer += grad_row_stride
        g10 = tl.load(pointer, mask=inside, other=0.0)
        g11 = tl.load(pointer + grad_column_stride, mask=inside, other=0.0)
        g12 = tl.load(pointer + 2 * grad_column_stride, mask=inside, other=0.0)
        pointer += grad_row_stride
        g20 = tl.load(pointer, mask=inside, other=0.0)
        g21 = tl.load(pointer + grad_column_stride, mask=inside, other=0.0)
        g22 = tl.load(pointer + 2 * grad_column_stride, mask=inside, other=0.0)
        # vee(R^T G - G^T R)
        t0 = _dot(m02, m12, m22, g01, g11, g21) - _dot(m01, m11, m21, g02, g12, g22)
        t1 = _dot(m00, m10, m20, g02, g12, g22) - _dot(m02, m12, m22, g00, g10, g20)
        t2 = _dot(m01, m11, m21, g00, g10, g20) - _dot(m00, m10, m20, g01, g11, g21)
        # Singular values u . K v; the last is negative where R is not the nearest of both signs.
        s1 = _dot(
            p0, p1, p2,
            _dot(k00, k01, k02, x0, x1, x2), _dot(k10, k11, k12, x0, x1, x2), _dot(k20, k21, k22, x0, x1, x2),
        )  # fmt: skip
        s2 = _dot(
            q0, q1, q2,
            _dot(k00, k01, k02, y0, y1, y2), _dot(k10, k11, k12, y0, y1, y2), _dot(k20, k21, k22, y0, y1, y2),
        )  # fmt: skip
        s3 = _dot(
            r0, r1, r2,
            _dot(k00, k01, k02, z0, z1, z2), _dot(k10, k11, k12, z0, z1, z2), _dot(k20, k21, k22, z0, z1, z2),
        )  # fmt: skip
        # The inverse of each gap, which falls to 0 below the limit: of 1 in units of the largest entry, or the trace.
        limit = LIMIT * tl.maximum(s1 + s2 + s3, tl.where(empty, 1.0, largest * power))
        h1, h2, h3 = s2 + s3, s1 + s3, s1 + s2
        i1, i2, i3 = (
            reciprocal(tl.maximum(h1, limit)), reciprocal(tl.maximum(h2, limit)), reciprocal(tl.maximum(h3, limit))
        )  # fmt: skip
        scale = tl.where(empty, 0.0, power)
        i1, i2, i3 = h1 * i1 * i1 * scale, h2 * i2 * i2 * scale, h3 * i3 * i3 * scale
        i1 *= _dot(x0, x1, x2, t0, t1, t2)
        i2 *= _dot(y0, y1, y2, t0, t1, t2)
        i3 *= _dot(z0, z1, z2, t0, t1, t2)
        z0, z1, z2 = x0 * i1 + y0 * i2 + z0 * i3, x1 * i1 + y1 * i2 + z1 * i3, x2 * i1 + y2 * i2 + z2 * i3
        # R [z]x
        n00, n01, n02 = m01 * z2 - m02 * z1, m02 * z0 - m00 * z2, m00 * z1 - m01 * z0
        n10, n11, n12 = m11 * z2 - m12 * z1, m12 * z0 - m10 * z2, m10 * z1 - m11 * z0
        m20, m21, m22 = m21 * z2 - m22 * z1, m22 * z0 - m20 * z2, m20 * z1 - m21 * z0
        m00, m01, m02, m10, m11, m12 = n00, n01, n02, n10, n11, n12

    result_ptr += lane
    tl.store(result_ptr, m00 + poison, mask=inside)
    tl.store(result_ptr + count, m01 + poison, mask=inside)
    tl.store(result_ptr + 2 * count, m02 + poison, mask=inside)
    tl.store(result_ptr + 3 * count, m10 + poison, mask=inside)
    tl.store(result_ptr + 4 * count, m11 + poison, mask=inside)
    tl.store(result_ptr + 5 * count, m12 + poison, mask=inside)
    tl.store(result_ptr + 6 * count, m20 + poison, mask=inside)
    tl.store(result_ptr + 7 * count, m21 + poison, mask=inside)
    tl.store(result_ptr + 8 * count, m22 + poison, mask=inside)


def rounds(dtype: torch.dtype) -> int:
    """How often all pairs of columns are turned."""
    return _ROUNDS[dtype]


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
            REFLECTION=allow_reflection, GRADIENT=gradient, ROUNDS=rounds(matrix.dtype),
        )  # fmt: skip
    return result
