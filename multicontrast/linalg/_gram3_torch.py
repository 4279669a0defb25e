r"""The h-cubic in plain PyTorch: largest eigenvalue of a 3x3 Gram matrix with unit diagonal, and its gradient.

For cosines :math:`a, b, c` the matrix is ``[[1, a, b], [a, 1, c], [b, c, 1]]`` and :math:`x = \lambda_{max} - 1` is the
largest root of :math:`x^3 - (a^2+b^2+c^2)\,x - 2abc`. With :math:`x = \gamma(1 + h)`, :math:`\gamma` the largest of the
three magnitudes, that cubic becomes

.. math:: h^3 + 3h^2 + kh - g = 0, \qquad k, g \ge 0,

whose coefficients and single non-negative root lose no digits, however near a double root is. The derivation, the
gradient and the errors are in ``docs/math/h-cubic.md``.

Two forms. Out of place and free of branches, for ``vmap``, ``torch.compile`` and any device; and in place, for the
losses' blocks, where the cost on a CPU is the number of passes over the block. Inputs of one shape, type (float32 or
float64) and device; nothing is checked here and nothing is known of autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCRATCH_ROWS = 8  # rows of `scratch` that the functions in place may use


def _largest_root(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(gamma, h, k, ea, eb, ec, odd)``: scale, root and coefficient of the cubic, relative distances of the
    magnitudes from the largest, and whether ``abc`` is negative."""
    fa, fb, fc = a.abs(), b.abs(), c.abs()
    larger, smaller = torch.maximum(fa, fb), torch.minimum(fa, fb)
    gamma = torch.maximum(larger, fc)
    middle = torch.minimum(larger, fc)  # one of the two lesser magnitudes; `smaller` is the other
    normal = gamma >= torch.finfo(a.dtype).smallest_normal
    inverse = torch.where(normal, 1 / torch.where(normal, gamma, 1), 0)
    # Subtract before scaling: the differences are exact where they are small.
    ea, eb, ec = (gamma - fa) * inverse, (gamma - fb) * inverse, (gamma - fc) * inverse
    # The signs alone decide, since the product itself may underflow.
    odd = torch.signbit(a) ^ torch.signbit(b) ^ torch.signbit(c)
    t = (middle + torch.where(odd, -smaller, smaller)) * inverse
    g = t * t
    # One of the three terms is exactly zero, so their order does not matter to the last bit.
    k = ea * (2 - ea) + eb * (2 - eb) + ec * (2 - ec)
    denominator = k + torch.sqrt(k * k + 12 * g)
    h = torch.where(denominator > 0, 2 * g / torch.where(denominator > 0, denominator, 1), 0)
    for _ in range(2 if a.dtype == torch.float32 else 3):  # Halley, from above: 16 %, 5e-4, 2e-10, rounding
        f = ((h + 3) * h + k) * h - g
        slope = (3 * h + 6) * h + k
        d = slope * slope - f * (3 * h + 3)
        h = torch.clamp_min(h - torch.where(d > 0, f * slope / torch.where(d > 0, d, 1), 0), 0)
    return gamma, h, k, ea, eb, ec, odd


def _poison(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Zero; NaN where an input is infinite or NaN. Maxima drop NaN on some devices."""
    return (a + b + c) * 0


def eigmax_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``: accurate *relative to itself*, however small the cosines (1.3 eps observed)."""
    gamma, h, *_ = _largest_root(a, b, c)
    return gamma + gamma * h + _poison(a, b, c)


def eigmax_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)`` with ``x = lambda_max - 1``.

    The gradient is accurate to 3 eps at every gap; where the largest eigenvalue is double it is the subgradient of
    least norm, at zero it is zero. NaN or infinity in any cosine makes all four NaN.
    """
    gamma, h, _, ea, eb, ec, odd = _largest_root(a, b, c)
    poison = _poison(a, b, c)
    x = gamma + gamma * h + poison
    # Squared components of the top eigenvector, times their sum: u1 pairs with c, u2 with b, u3 with a.
    w1, w2, w3 = (h + ec) * (2 + h - ec), (h + eb) * (2 + h - eb), (h + ea) * (2 + h - ea)
    total = w1 + w2 + w3
    simple = total > 0
    scale = torch.where(simple, 2 / torch.where(simple, total, 1), 0)
    third = torch.where(simple | (gamma < torch.finfo(a.dtype).smallest_normal), 0, torch.full_like(total, 1 / 3))
    r1, r2, r3 = w1.sqrt(), w2.sqrt(), w3.sqrt()
    # A gradient has the sign of its cosine, but where abc < 0 the smallest (the first, at a tie) is flipped.
    fa, fb, fc = a.abs(), b.abs(), c.abs()
    a_least = (fa <= fb) & (fa <= fc)
    b_least = ~a_least & (fb <= fc)
    flip_a, flip_b, flip_c = simple & odd & a_least, simple & odd & b_least, simple & odd & ~a_least & ~b_least
    ga = torch.where(torch.signbit(a) ^ flip_a, -1, 1) * (r1 * r2 * scale + third) + poison
    gb = torch.where(torch.signbit(b) ^ flip_b, -1, 1) * (r1 * r3 * scale + third) + poison
    gc = torch.where(torch.signbit(c) ^ flip_c, -1, 1) * (r2 * r3 * scale + third) + poison
    return x, ga, gb, gc


def eigmax_hessian_product(
    a: Tensor, b: Tensor, c: Tensor, va: Tensor, vb: Tensor, vc: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The Hessian of ``lambda_max`` times the direction ``(va, vb, vc)``; zero where the eigenvalue is multiple.

    With the top eigenvector ``u`` and ``V`` the symmetric matrix of the direction, the eigenvector moves by
    ``(x I - B)^+ V u``, and the pseudo-inverse of a 3x3 matrix of rank 2 needs no decomposition:
    ``(tr(M) (I - u u') - M) / (sum of its principal minors)``.
    """
    gamma, h, _, ea, eb, ec, odd = _largest_root(a, b, c)
    w1, w2, w3 = (h + ec) * (2 + h - ec), (h + eb) * (2 + h - eb), (h + ea) * (2 + h - ea)
    total = w1 + w2 + w3
    simple = total > 0
    inverse = torch.where(simple, 1 / torch.where(simple, total, 1), 0)
    normal = gamma >= torch.finfo(a.dtype).smallest_normal
    safe = torch.where(normal, gamma, 1)
    fa, fb, fc = a.abs(), b.abs(), c.abs()
    a_least = (fa <= fb) & (fa <= fc)
    b_least = ~a_least & (fb <= fc)
    u1 = (w1 * inverse).sqrt()
    u2 = torch.where(torch.signbit(a) ^ (odd & a_least), -1, 1) * (w2 * inverse).sqrt()
    u3 = torch.where(torch.signbit(b) ^ (odd & b_least), -1, 1) * (w3 * inverse).sqrt()
    q1, q2, q3 = va * u2 + vb * u3, va * u1 + vc * u3, vb * u1 + vc * u2
    along = u1 * q1 + u2 * q2 + u3 * q3
    q1, q2, q3 = q1 - along * u1, q2 - along * u2, q3 - along * u3
    # Everything in units of gamma: B / gamma, x / gamma = 1 + h.
    ra, rb, rc = a / safe, b / safe, c / safe
    trace = 2 * (1 + h)
    scale = 2 * inverse / safe
    p1 = (trace * q1 + ra * q2 + rb * q3) * scale
    p2 = (ra * q1 + trace * q2 + rc * q3) * scale
    p3 = (rb * q1 + rc * q2 + trace * q3) * scale
    poison = _poison(a, b, c)
    return p1 * u2 + u1 * p2 + poison, p1 * u3 + u1 * p3 + poison, p2 * u3 + u2 * p3 + poison


def eigmax_with_gradient_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1``, in one of the rows of ``scratch``; ``a, b, c`` become its derivatives.

    Args:
        a, b, c: ``(n,)`` contiguous cosines, float32 or float64; overwritten by the gradient.
        scratch: ``(SCRATCH_ROWS, n)`` of the same type, contiguous rows; overwritten.

    Accuracy and conventions are those of :func:`eigmax_with_gradient`.
    """
    x, ga, gb, gc = eigmax_with_gradient(a, b, c)
    a.copy_(ga)
    b.copy_(gb)
    c.copy_(gc)
    return scratch[0].copy_(x)


def eigmax_excess_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1``, in one of the rows of ``scratch``; ``a, b, c`` are spoiled."""
    return scratch[0].copy_(eigmax_excess(a, b, c))
