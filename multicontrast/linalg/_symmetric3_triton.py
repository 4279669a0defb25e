r"""Symmetric 3x3 matrices by deflation as a Triton kernel: all eigenvalues, and an orthonormal set of eigenvectors.

The same steps as ``_symmetric3_torch``, which derives them, without a division: reciprocals and inverse roots are the
device's approximate ones, corrected by one step of Newton where it matters.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two
from multicontrast.linalg._symmetric3_torch import START

_C0, _C1, _C2, _C3 = (tl.constexpr(c) for c in START)
# One matrix for each thread: it lives in registers.
_TUNING = Tuning(
    default=config(num_warps=4, BLOCK=128),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((4, 128), (4, 256), (8, 256), (8, 512))],
)


@triton.jit
def larger(largest, a, b, c):
    """The largest of ``largest`` and the magnitudes of three numbers; NaN if one is NaN."""
    largest = tl.maximum(largest, tl.abs(a), propagate_nan=tl.PropagateNan.ALL)
    largest = tl.maximum(largest, tl.abs(b), propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(largest, tl.abs(c), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def third(x):
    """``x / 3``; a float32 division would be approximate and slow."""
    if x.dtype == tl.float64:
        y = x / 3
    else:
        y = x * 0.3333333432674408
    return y


@triton.jit
def root(x):
    """``sqrt(x)`` for ``x > 0``, nearly correctly rounded."""
    r = tl.rsqrt(x)
    y = x * r
    return y + 0.5 * r * (x - y * y)


@triton.jit
def inverse_root(x):
    """``1 / sqrt(x)`` for ``x > 0``, within an ulp."""
    r = tl.rsqrt(x)
    return r + 0.5 * r * (1 - (x * r) * r)


@triton.jit
def reciprocal(x):
    """``1 / x`` for ``x > 0`` that is no power of two near the limits, within an ulp."""
    r = tl.rsqrt(x)
    r = r * r
    return r + r * (1 - x * r)


@triton.jit
def _isolated_root(b00, b11, b22, b10, b20, b21, TINY: tl.constexpr):
    """``eta``, the isolated eigenvalue of a traceless matrix: the largest, or the smallest, by the sign of det."""
    j2 = b10 * b10 + b20 * b20 + b21 * b21 + 0.5 * (b00 * b00 + b11 * b11 + b22 * b22)
    j3 = (
        b00 * (b11 * b22 - b21 * b21)
        + b10 * (b20 * b21 - b10 * b22)
        + b20 * (b10 * b21 - b20 * b11)
    )  # fmt: skip
    square = third(j2) + TINY  # a multiple of the identity has J2 = 0
    inverse = inverse_root(square)
    z = tl.minimum(0.5 * tl.abs(j3) * inverse * inverse * inverse, 1.0)
    # 2 cos(acos(z) / 3), from sqrt(3) to 2: a cubic good to 7e-5, then Newton on y^3 - 3y - 2z.
    y = ((_C3 * z + _C2) * z + _C1) * z + _C0
    for _ in tl.static_range(2 if z.dtype == tl.float64 else 1):
        y2 = y * y
        y -= ((y2 - 3) * y - 2 * z) * reciprocal(3 * y2 - 3)
    y *= root(square)
    return tl.where(j3 < 0, -y, y)


@triton.jit
def _isolated_vector(m0, m1, m2, b10, b20, b21, TINY: tl.constexpr):
    """The unit vector in the kernel of ``eta I - B`` with diagonal ``m``: the largest column of the adjugate."""
    c00, c11, c22 = m1 * m2 - b21 * b21, m0 * m2 - b20 * b20, m0 * m1 - b10 * b10
    c10, c20, c21 = b20 * b21 + b10 * m2, b10 * b21 + b20 * m1, b10 * b20 + b21 * m0
    first = tl.abs(c00) >= tl.abs(c11)
    x, y, z = tl.where(first, c00, c10), tl.where(first, c10, c11), tl.where(first, c20, c21)
    last = tl.abs(c22) > tl.maximum(tl.abs(c00), tl.abs(c11))
    x, y, z = tl.where(last, c20, x), tl.where(last, c21, y), tl.where(last, c22, z)
    square = x * x + y * y + z * z
    null = square < TINY  # a multiple of the identity, to rounding: any vector will do
    inverse = inverse_root(tl.where(null, 1.0, square))
    return tl.where(null, 1.0, x * inverse), tl.where(null, 0.0, y * inverse), tl.where(null, 0.0, z * inverse)


@triton.jit
def frame(x, y, z):
    """``p, q`` so that ``p, q, (x, y, z)`` are a right-handed orthonormal frame, without a branch.

    Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017.
    """
    sign = tl.where(z < 0, -1.0, 1.0).to(z.dtype)
    a = -sign * reciprocal(1 + tl.abs(z))
    b = x * y * a
    return 1 + sign * x * x * a, sign * b, -sign * x, b, sign + y * y * a, -y


@triton.jit
def isolate(b00, b11, b22, b10, b20, b21):
    """``(eta, v, p, q)`` of a traceless matrix: the isolated eigenvalue, its vector, and a frame across that."""
    # 2^-1000 or 2^-120: negligible beside numbers of about 1, and far above the range that is flushed to zero.
    TINY: tl.constexpr = 9.332636185032189e-302 if b00.dtype == tl.float64 else 7.52316384526264e-37
    eta = _isolated_root(b00, b11, b22, b10, b20, b21, TINY)
    x, y, z = _isolated_vector(eta - b00, eta - b11, eta - b22, b10, b20, b21, TINY)
    p0, p1, p2, q0, q1, q2 = frame(x, y, z)
    return eta, x, y, z, p0, p1, p2, q0, q1, q2


@triton.jit
def deviator(a00, a11, a22):
    """The diagonal less its mean, from differences; unlike ``a00 - mean`` these are exact where entries are close."""
    d0, d1, d2 = a00 - a11, a00 - a22, a11 - a22
    return third(d0 + d1), third(d2 - d0), -third(d1 + d2)


@triton.jit
def eigenpairs_of(a00, a11, a22, a10, a20, a21):
    """Eigenvalues, ascending, then the entries of the matrix whose columns are their vectors, row by row."""
    largest = larger(larger(tl.abs(a00), a00, a11, a22), a10, a20, a21)
    poison = largest * 0
    power, inverse = power_of_two(largest)
    a00, a11, a22 = a00 * power, a11 * power, a22 * power
    centre = third(a00 + a11 + a22) + poison
    b00, b11, b22 = deviator(a00, a11, a22)
    b10, b20, b21 = a10 * power, a20 * power, a21 * power
    # Scale the deviator again: it may be tiny beside the identity's part, and its eigenvectors matter all the same.
    power, unit = power_of_two(larger(larger(tl.abs(b00), b00, b11, b22), b10, b20, b21))
    b00, b11, b22, b10, b20, b21 = b00 * power, b11 * power, b22 * power, b10 * power, b20 * power, b21 * power
    eta, x, y, z, p0, p1, p2, q0, q1, q2 = isolate(b00, b11, b22, b10, b20, b21)

    # [[d, e], [e, -d]] in the plane, with eigenvalues +-delta. In the plane B + eta / 2 is as small as the gap between
    # the two other eigenvalues, -eta / 2 +- delta, and so are the rounding errors of its products.
    TINY: tl.constexpr = 9.332636185032189e-302 if a00.dtype == tl.float64 else 7.52316384526264e-37
    s00, s11, s22 = b00 + 0.5 * eta, b11 + 0.5 * eta, b22 + 0.5 * eta
    i0, i1, i2 = s00 * p0 + b10 * p1 + b20 * p2, b10 * p0 + s11 * p1 + b21 * p2, b20 * p0 + b21 * p1 + s22 * p2
    k0, k1, k2 = s00 * q0 + b10 * q1 + b20 * q2, b10 * q0 + s11 * q1 + b21 * q2, b20 * q0 + b21 * q1 + s22 * q2
    d = 0.5 * ((p0 * i0 + p1 * i1 + p2 * i2) - (q0 * k0 + q1 * k1 + q2 * k2))
    e = q0 * i0 + q1 * i1 + q2 * i2
    delta = root(d * d + e * e + TINY)
    top = eta >= 0  # the isolated eigenvalue is the largest
    low, high, eta = (-0.5 * eta - delta) * unit, (-0.5 * eta + delta) * unit, eta * unit
    first = (centre + tl.where(top, low, eta)) * inverse
    second = (centre + tl.where(top, high, low)) * inverse
    last = (centre + tl.where(top, eta, high)) * inverse

    # The upper eigenvector of [[d, e], [e, -d]], from the row that does not cancel.
    cos, sin = tl.where(d >= 0, delta + d, e), tl.where(d >= 0, e, delta - d)
    square = cos * cos + sin * sin
    null = square < TINY
    scale = inverse_root(tl.where(null, 1.0, square))
    cos, sin = tl.where(null, 1.0, cos * scale) + poison, tl.where(null, 0.0, sin * scale)
    h0, h1, h2 = cos * p0 + sin * q0, cos * p1 + sin * q1, cos * p2 + sin * q2
    l0, l1, l2 = cos * q0 - sin * p0, cos * q1 - sin * p1, cos * q2 - sin * p2
    scale = 1.5 - 0.5 * (h0 * h0 + h1 * h1 + h2 * h2)  # corrects the rounding error of the length
    h0, h1, h2 = h0 * scale, h1 * scale, h2 * scale
    scale = 1.5 - 0.5 * (l0 * l0 + l1 * l1 + l2 * l2)
    l0, l1, l2 = l0 * scale, l1 * scale, l2 * scale
    x, y, z = x + poison, y + poison, z + poison
    return (
        first, second, last,
        tl.where(top, l0, x), tl.where(top, h0, l0), tl.where(top, x, h0),
        tl.where(top, l1, y), tl.where(top, h1, l1), tl.where(top, y, h1),
        tl.where(top, l2, z), tl.where(top, h2, l2), tl.where(top, z, h2),
    )  # fmt: skip


@triton.jit
def load3(pointer, row_stride, column_stride, inside):
    """The entries of 3x3 matrices, row by row."""
    row1, row2 = pointer + row_stride, pointer + 2 * row_stride
    return (
        tl.load(pointer, mask=inside, other=0.0), tl.load(pointer + column_stride, mask=inside, other=0.0),
        tl.load(pointer + 2 * column_stride, mask=inside, other=0.0),
        tl.load(row1, mask=inside, other=0.0), tl.load(row1 + column_stride, mask=inside, other=0.0),
        tl.load(row1 + 2 * column_stride, mask=inside, other=0.0),
        tl.load(row2, mask=inside, other=0.0), tl.load(row2 + column_stride, mask=inside, other=0.0),
        tl.load(row2 + 2 * column_stride, mask=inside, other=0.0),
    )  # fmt: skip


@triton.jit
def store3(pointer, stride, m00, m01, m02, m10, m11, m12, m20, m21, m22, inside):
    """Nine entries, ``stride`` apart."""
    tl.store(pointer, m00, mask=inside)
    tl.store(pointer + stride, m01, mask=inside)
    tl.store(pointer + 2 * stride, m02, mask=inside)
    tl.store(pointer + 3 * stride, m10, mask=inside)
    tl.store(pointer + 4 * stride, m11, mask=inside)
    tl.store(pointer + 5 * stride, m12, mask=inside)
    tl.store(pointer + 6 * stride, m20, mask=inside)
    tl.store(pointer + 7 * stride, m21, mask=inside)
    tl.store(pointer + 8 * stride, m22, mask=inside)


@triton.jit
def _symmetric3_kernel(
    matrix_ptr, values_ptr, vectors_ptr, stride, row_stride, column_stride, count,
    VECTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = i < count
    # The upper triangle is not used, so the compiler leaves out its loads, as it does vectors that are not stored.
    a00, _a01, _a02, a10, a11, _a12, a20, a21, a22 = load3(matrix_ptr + i * stride, row_stride, column_stride, inside)
    l0, l1, l2, v00, v01, v02, v10, v11, v12, v20, v21, v22 = eigenpairs_of(a00, a11, a22, a10, a20, a21)
    values_ptr += 3 * i
    tl.store(values_ptr, l0, mask=inside)
    tl.store(values_ptr + 1, l1, mask=inside)
    tl.store(values_ptr + 2, l2, mask=inside)
    if VECTORS:
        store3(vectors_ptr + 9 * i, 1, v00, v01, v02, v10, v11, v12, v20, v21, v22, inside)


def eigvalsh3(matrix: Tensor) -> Tensor:
    """Eigenvalues ``(..., 3)``, ascending, of symmetric ``(..., 3, 3)``, float32 or float64; lower triangle read.

    Within 3 eps of the norm; NaN or infinity in the lower triangle makes all three NaN.
    """
    return _launch(matrix, vectors=False)[0]


def eigh3(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., 3)``, ascending, and eigenvectors, the columns of ``(..., 3, 3)``."""
    return _launch(matrix, vectors=True)


def _launch(matrix: Tensor, vectors: bool) -> tuple[Tensor, Tensor]:
    flat = matrix.reshape(-1, 3, 3)
    values = torch.empty(matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    basis = torch.empty(matrix.shape if vectors else 0, dtype=matrix.dtype, device=matrix.device)
    if len(flat):
        launch(
            _symmetric3_kernel, lambda constants: (triton.cdiv(len(flat), constants["BLOCK"]),), _TUNING,
            flat, values, basis, *flat.stride(), len(flat), VECTORS=vectors,
        )  # fmt: skip
    return values, basis
