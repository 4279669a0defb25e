r"""The h-cubic as Triton kernels: largest eigenvalue of a 3x3 Gram matrix with unit diagonal, and its gradient.

With :math:`\gamma \ge m \ge |s|` the magnitudes of the three cosines, :math:`s` with the sign of their product, and
:math:`x = \lambda_{max} - 1 = \gamma + y`:

.. math:: y^3 + 3\gamma y^2 + K y - G = 0, \qquad
          K = (\gamma - m)(\gamma + m) + (\gamma - s)(\gamma + s), \qquad G = \gamma (m + s)^2.

Nothing cancels in :math:`K` and :math:`G`, so the one non-negative root is as accurate as they are, at any gap between
eigenvalues (``docs/math/h-cubic.md``). This is the cubic of ``_gram3_torch`` before the division by :math:`\gamma^3`;
here a power of two, taken from the exponent bits, does the scaling. The start needs one more step than there, but no
division: reciprocals are squares of ``rsqrt``, one instruction each, and the last step, which is Newton's, removes
their rounding.

The device functions are shared with the kernels of the losses.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch

# Elementwise and bound by memory: only wide loads and enough warps matter. A lane takes one or two loads of 16 bytes
# from each input. With the gradient, and in float64, more loads would leave no registers for further warps.
_CANDIDATES = [config(num_warps=w, BLOCK=b) for w, b in ((4, 256), (4, 512), (4, 1024), (8, 1024), (8, 2048))]
_VALUE = {
    torch.float32: Tuning(default=config(num_warps=4, BLOCK=1024), candidates=_CANDIDATES),
    torch.float64: Tuning(default=config(num_warps=4, BLOCK=512), candidates=_CANDIDATES),
}
_GRADIENT = {
    torch.float32: Tuning(default=config(num_warps=4, BLOCK=512), candidates=_CANDIDATES),
    torch.float64: Tuning(default=config(num_warps=4, BLOCK=256), candidates=_CANDIDATES),
}


@triton.jit
def power_of_two(largest):
    """``(p, 1/p)``, exact powers of two that bring ``largest`` near 1: ``largest * p`` is in [0.5, 8) when normal.

    Two bits of the exponent are masked so that both powers are normal numbers for every input. Zero stays zero;
    infinity stays infinite.
    """
    if largest.dtype == tl.float64:
        masked = largest.to(tl.int64, bitcast=True) & 0x7FC0000000000000
        power = (0x7FD0000000000000 - masked).to(tl.float64, bitcast=True)
        inverse = (0x0010000000000000 + masked).to(tl.float64, bitcast=True)
    else:
        masked = largest.to(tl.int32, bitcast=True) & 0x7E000000
        power = (0x7E800000 - masked).to(tl.float32, bitcast=True)
        inverse = (0x00800000 + masked).to(tl.float32, bitcast=True)
    return power, inverse


@triton.jit
def _sign_bit(x):
    """The sign of ``x`` as an integer: the highest bit, or 0."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & -0x8000000000000000
    else:
        bits = x.to(tl.int32, bitcast=True) & -0x80000000
    return bits


@triton.jit
def _flip(x, sign):
    """``x`` with its sign changed where the integer ``sign`` has its highest bit set."""
    return (x.to(sign.dtype, bitcast=True) ^ sign).to(x.dtype, bitcast=True)


@triton.jit
def _root(a, b, c):
    """``(y, gamma, least, odd, p, 1/p)``: root of the cubic, largest and smallest magnitude, sign of the product.

    ``y`` and ``gamma`` are in units of ``1/p``. NaN or infinity in any cosine makes ``y`` or ``gamma`` NaN.
    """
    fa, fb, fc = tl.abs(a), tl.abs(b), tl.abs(c)
    larger = tl.maximum(fa, fb, propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(fa, fb)
    gamma = tl.maximum(larger, fc, propagate_nan=tl.PropagateNan.ALL)
    middle = tl.maximum(smaller, tl.minimum(larger, fc))
    least = tl.minimum(smaller, fc)
    odd = _sign_bit(a) ^ _sign_bit(b) ^ _sign_bit(c)  # the product itself may underflow

    power, inverse = power_of_two(gamma)
    gamma, m = gamma * power, middle * power  # an infinite gamma makes the differences below NaN
    s = _flip(least * power, odd)
    # 2^-100 keeps both radicands positive and is lost in rounding beside any other value.
    k = (gamma - m) * (gamma + m) + ((gamma - s) * (gamma + s) + 7.888609052210118e-31)
    t = m + s
    g = gamma * (t * t)
    q = 3 * gamma

    # Root of q y^2 + k y - g, too large by at most 16 %, then a polynomial in (half y)^2 / slope: 2e-4.
    radicand = k * k + (4 * (q * g) + 7.888609052210118e-31)
    inverse_slope = tl.rsqrt(radicand)
    r = tl.rsqrt(k + radicand * inverse_slope)
    half = (g * r) * r
    e = half * half * inverse_slope
    y = half * (((-377.4950413469059 * e + 65.2709762794842) * e - 7.83927604906934) * e + 2)

    for _ in tl.static_range(3 if a.dtype == tl.float64 else 1):  # Newton: 1e-8, 1e-16, rounding
        inner = (y + q) * y + k
        f = inner * y - g
        r = tl.rsqrt((y + q + y) * y + inner)
        y -= (f * r) * r
    return y, gamma, least, odd, power, inverse


@triton.jit
def eigmax_excess_of(a, b, c):
    """``lambda_max - 1`` of three blocks of cosines."""
    y, gamma, _least, _odd, _power, inverse = _root(a, b, c)
    return (gamma + y) * inverse


@triton.jit
def _weight(y, gamma, cosine, power):
    """``x^2 - cosine^2`` in units of ``1/p^2``: a squared component of the top eigenvector times the sum of all."""
    size = tl.abs(cosine) * power
    return (y + (gamma - size)) * (gamma + size + y)


@triton.jit
def _total(w1, w2, w3, gamma, inverse):
    """``(total, tied, third)``: a derivative is ``2 sqrt(w_i w_j) / total``, but where tied it is ``third``.

    Where the eigenvalue is double, the subgradient of least norm is a third of the cosines' signs; at zero it is zero.
    A denormal gamma counts as zero. The comparisons are written so that NaN takes the branch that keeps it.
    """
    total = w1 + w2 + w3
    if total.dtype == tl.float64:
        null = gamma * inverse < 2.2250738585072014e-308
    else:
        null = gamma * inverse < 1.1754943508222875e-38
    tied = (total == 0) | null
    third = tl.where(null, tl.zeros_like(total), tl.full(total.shape, 1 / 3, total.dtype))
    return tl.where(tied, tl.full(total.shape, 1, total.dtype), total), tied, third


@triton.jit
def _slope(product, scale, tied, third, cosine, least, odd):
    """The derivative w.r.t. ``cosine``. It has the cosine's sign, except for the smallest cosine where abc < 0.

    If two cosines are smallest and abc < 0, both derivatives are zero, so it does not matter that both are flipped.
    """
    size = tl.where(tied, third, product * scale)
    flip = tl.where((tl.abs(cosine) == least) & (tied == 0), odd, tl.zeros_like(odd))
    return _flip(size, _sign_bit(cosine) ^ flip)


@triton.jit
def eigmax_with_gradient_of(a, b, c, ROUNDED: tl.constexpr):
    """``(x, dx/da, dx/db, dx/dc)``; the compiler leaves out what is not used.

    ``ROUNDED``: square roots and the division are correctly rounded.
    """
    y, gamma, least, odd, power, inverse = _root(a, b, c)
    # Components of the eigenvector: u_1 pairs with c, u_2 with b, u_3 with a.
    w1 = _weight(y, gamma, c, power)
    w2 = _weight(y, gamma, b, power)
    w3 = _weight(y, gamma, a, power)
    total, tied, third = _total(w1, w2, w3, gamma, inverse)
    if a.dtype == tl.float64:  # all its operations are correctly rounded
        scale = 2 / total
        ga, gb, gc = tl.sqrt(w1 * w2), tl.sqrt(w1 * w3), tl.sqrt(w2 * w3)
    elif ROUNDED:
        scale = tl.div_rn(tl.full(total.shape, 2, total.dtype), total)
        ga, gb, gc = tl.sqrt_rn(w1 * w2), tl.sqrt_rn(w1 * w3), tl.sqrt_rn(w2 * w3)
    else:
        r = tl.rsqrt(0.5 * total)
        scale = r * r
        ga, gb, gc = tl.sqrt(w1 * w2), tl.sqrt(w1 * w3), tl.sqrt(w2 * w3)
    ga = _slope(ga, scale, tied, third, a, least, odd)
    gb = _slope(gb, scale, tied, third, b, least, odd)
    gc = _slope(gc, scale, tied, third, c, least, odd)
    return (gamma + y) * inverse, ga, gb, gc


@triton.jit
def _gram3_kernel(
    a_ptr, b_ptr, c_ptr, x_ptr, ga_ptr, gb_ptr, gc_ptr,
    a_stride, b_stride, c_stride, count,
    GRADIENT: tl.constexpr, ROUNDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = i < count
    a = tl.load(a_ptr + i * a_stride, mask=inside, other=0.0)
    b = tl.load(b_ptr + i * b_stride, mask=inside, other=0.0)
    c = tl.load(c_ptr + i * c_stride, mask=inside, other=0.0)
    if GRADIENT:
        x, ga, gb, gc = eigmax_with_gradient_of(a, b, c, ROUNDED)
        tl.store(ga_ptr + i, ga, mask=inside)
        tl.store(gb_ptr + i, gb, mask=inside)
        tl.store(gc_ptr + i, gc, mask=inside)
    else:
        x = eigmax_excess_of(a, b, c)
    tl.store(x_ptr + i, x, mask=inside)


def eigmax_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1`` of cosines of one shape, type (float32 or float64) and device, with any strides."""
    return _launch(a, b, c, gradient=False, rounded=False)[0]


def eigmax_with_gradient(
    a: Tensor, b: Tensor, c: Tensor, *, correctly_rounded: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)`` with ``x = lambda_max - 1``, for the same inputs as :func:`eigmax_excess`.

    The gradient errs by at most 5.5 eps where square root and division are the device's approximate ones, by 3 eps
    with ``correctly_rounded=True``; the value's accuracy is the same in both.
    """
    x, ga, gb, gc = _launch(a, b, c, gradient=True, rounded=correctly_rounded)
    return x, ga, gb, gc


def _launch(a: Tensor, b: Tensor, c: Tensor, gradient: bool, rounded: bool) -> list[Tensor]:
    results = [torch.empty(a.shape, dtype=a.dtype, device=a.device) for _ in range(4 if gradient else 1)]
    if a.numel():
        flat = [_flat(cosine) for cosine in (a, b, c)]
        launch(
            _gram3_kernel, lambda constants: (triton.cdiv(a.numel(), constants["BLOCK"]),),
            (_GRADIENT if gradient else _VALUE)[a.dtype],
            *flat, *(results if gradient else 4 * results), *(cosine.stride(0) for cosine in flat), a.numel(),
            GRADIENT=gradient, ROUNDED=rounded,
        )  # fmt: skip
    return results


def _flat(tensor: Tensor) -> Tensor:
    """``(n,)`` in row-major order: a view if one stride describes it, otherwise a copy."""
    if tensor.numel() and all(stride == 0 or size == 1 for size, stride in zip(tensor.shape, tensor.stride())):
        return tensor.as_strided((tensor.numel(),), (0,))  # one expanded number
    return tensor.reshape(-1)
