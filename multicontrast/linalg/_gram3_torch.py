r"""The h-cubic in plain PyTorch: the largest eigenvalue of a 3x3 Gram matrix with unit diagonal, and its derivatives.

For cosines :math:`a, b, c` the matrix is ``[[1, a, b], [a, 1, c], [b, c, 1]]`` and :math:`x = \lambda_{max} - 1` is the
largest root of :math:`x^3 - s x - 2abc`, :math:`s = a^2 + b^2 + c^2`. Measured from the largest magnitude,
:math:`x = \gamma (1 + h)`, the cubic becomes

.. math:: h^3 + 3h^2 + kh - g = 0, \qquad k, g \ge 0,

whose coefficients and single non-negative root keep all their digits, however close a double root is. The gradient is
:math:`2 (ax + bc) / (3x^2 - s)` and so on, with numerator and denominator written as sums in which nothing cancels. The
derivation and the errors are in ``docs/math/h-cubic.md``.

These functions work out of place and without branches on values, so ``torch.compile`` can fuse them and they run on any
device. Inputs have one shape, type (float32 or float64) and device; nothing is checked and nothing is differentiated.
``_gram3_in_place.py`` does the same in place, for the losses' blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._backend import is_transformed

# The first step from the start h0, the root of the cubic without h^3: h0 - h0^3 / (r + 4 c0 z + 4 c1 z h0 / 2), where
# z = h0^2 / 4 and r is the root of the discriminant in h0. The fitted step errs by at most 9e-5 for all k and g that
# occur. A Newton step reduces the error to 5e-9, a second one to rounding.
SECANT = (4 * 2.70762551, -4 * 0.76873623)
NEWTON_STEPS = {torch.float32: 1, torch.float64: 2}

# Integer type, mask of the exponent without its two lowest bits, and the two constants that give the powers' exponents.
_EXPONENT = {
    torch.float32: (torch.int32, 0x7E000000, 0x7E800000, 0x00800000),
    torch.float64: (torch.int64, 0x7FC0000000000000, 0x7FD0000000000000, 0x0010000000000000),
}
_MAPS_NO_VIEWS = torch.__version__ < "2.13"  # until then `vmap` has no rule for `view(dtype)`: pytorch#180727


def power_of_two(largest: Tensor) -> tuple[Tensor, Tensor]:
    """``(p, 1/p)``: exact powers of two with ``largest * p`` in [0.5, 8), or less where ``largest`` is denormal.

    Both are normal numbers for every input. Scaling by them costs no accuracy, and the formulas then neither overflow
    nor underflow.
    """
    if _MAPS_NO_VIEWS and is_transformed():
        return _power_of_two_by_table(largest)  # only here: a compiler would turn it into a loop over single numbers
    integer, mask, high, low = _EXPONENT[largest.dtype]
    exponent = largest.view(integer) & mask
    return (high - exponent).view(largest.dtype), (low + exponent).view(largest.dtype)


def _power_of_two_by_table(largest: Tensor) -> tuple[Tensor, Tensor]:
    """The same bits without viewing floats as integers."""
    bias = 127 if largest.dtype == torch.float32 else 1023
    steps = range(2 * (bias + 1) // 4)
    powers = largest.new_tensor([2.0 ** (bias - 1 - 4 * k) for k in steps])
    inverses = largest.new_tensor([2.0 ** (4 * k - bias + 1) for k in steps])
    exponent = torch.frexp(largest.detach()).exponent.long() - 1 + bias
    exponent = torch.where(largest == 0, 0, exponent)  # as in the bits of 0
    step = (exponent.clamp(0, 2 * bias + 1) // 4).reshape(-1)
    return powers.index_select(0, step).reshape(largest.shape), inverses.index_select(0, step).reshape(largest.shape)


def _scaled(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cosines times a power of two; that power, its inverse, and 0, or NaN where a cosine is not finite."""
    largest = torch.maximum(torch.maximum(a.abs(), b.abs()), c.abs())
    power, inverse = power_of_two(largest)
    return a * power, b * power, c * power, power, inverse, largest * 0


def to_one_scale(*blocks: Tensor) -> tuple[list[Tensor], Tensor]:
    """Blocks of cosines times one power of two, for formulas that do not scale each triplet, and its inverse.

    Cosines that are more than 2^30 times (float64: 2^200 times) smaller than the largest become 0. The products that
    give them have larger rounding errors.
    """
    finite = [torch.where(block.isfinite(), block.detach().abs(), 0).amax() for block in blocks]
    power, inverse = power_of_two(torch.stack(finite).amax())
    least = 2.0**-30 if blocks[0].dtype == torch.float32 else 2.0**-200
    scaled = [block * power for block in blocks]
    return [torch.where(block.abs() < least, 0, block) for block in scaled], inverse


def _root(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(gamma, e, gamma^2 k)`` of scaled cosines, with ``x = gamma + 2 e``; ``e = gamma h / 2`` saves operations.

    In terms of ``e`` the cubic, times gamma^3, is ``8 e^3 + 12 gamma e^2 + 2 (gamma^2 k) e - gamma t^2``. Only the
    fitted step divides by gamma.
    """
    tiny = torch.finfo(a.dtype).smallest_normal  # prevents 0 / 0 at exact ties; negligible elsewhere
    size_a, size_b, size_c = a.abs(), b.abs(), c.abs()
    larger, low = torch.maximum(size_a, size_b), torch.minimum(size_a, size_b)
    gamma = torch.maximum(larger, size_c)
    middle = torch.minimum(larger, size_c)  # `middle` and `low` are the two smaller magnitudes, in either order
    # The sign of abc from the signs alone: the product keeps it even where it underflows.
    t = middle + torch.copysign(low, a * b * c)
    # Differences first, because they are exact where the magnitudes are close.
    k = (gamma - middle) * (gamma + middle) + (gamma - low) * (gamma + low)
    g = gamma * (t * t)
    root = torch.sqrt(k * k + 12 * (gamma * g))
    e = g / (k + root).clamp_min(tiny)
    square = e * e
    cube = square * e
    e = e - 4 * cube / (root + SECANT[0] * square + SECANT[1] * (cube / gamma.clamp_min(tiny))).clamp_min(tiny)
    for _ in range(NEWTON_STEPS[a.dtype]):
        inner = k + 4 * e * (e + 1.5 * gamma)
        e = e + 0.5 * (g - 2 * e * inner) / (inner + 8 * e * (e + 0.75 * gamma)).clamp_min(tiny)
    return gamma, e, k


def eigmax_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``: accurate *relative to itself*, however small the cosines (1.1 eps observed)."""
    a, b, c, _, inverse, poison = _scaled(a, b, c)
    return eigmax_excess_at_one_scale(a, b, c) * inverse + poison


def eigmax_excess_at_one_scale(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same for cosines from :func:`to_one_scale`."""
    gamma, e, _ = _root(a, b, c)
    return gamma + 2 * e


def eigmax_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)`` with ``x = lambda_max - 1``.

    The gradient is accurate to 3 eps at every gap; where the largest eigenvalue is double it is the subgradient of
    least norm, at zero it is zero. NaN or infinity in any cosine makes all four NaN.
    """
    a, b, c, _, inverse, poison = _scaled(a, b, c)
    x, ga, gb, gc = eigmax_with_gradient_at_one_scale(a, b, c)
    return x * inverse + poison, ga + poison, gb + poison, gc + poison


def eigmax_with_gradient_at_one_scale(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for cosines from :func:`to_one_scale`."""
    gamma, e, k = _root(a, b, c)
    return gamma + 2 * e, *_gradient(a, b, c, gamma, e, _denominator(gamma, e, k))


def _denominator(gamma: Tensor, e: Tensor, k: Tensor) -> Tensor:
    """``3 x^2 - s``, a sum of terms that are not negative; zero only where the eigenvalue is multiple."""
    return k + 12 * e * (gamma + e)


def _gradient(
    a: Tensor, b: Tensor, c: Tensor, gamma: Tensor, e: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # 2 (a gamma + bc) = (a + b)(gamma + c) + (a - b)(gamma - c): near a double root each product has a small factor
    # that is an exact difference, where a gamma + bc would cancel. The rest of x follows: x = gamma + 2 e.
    # Where all magnitudes are equal and abc < 0, numerators and denominator are 0. There half the projector on the
    # double eigenvalue's plane gives derivatives of 1/3 with the cosines' signs.
    multiple = denominator == 0
    rest = torch.where(multiple, 1, 4 * e)
    share = 1 / torch.where(multiple, 3 * gamma, denominator).clamp_min(torch.finfo(gamma.dtype).smallest_normal)
    plus, minus = (a + b) * (gamma + c), (a - b) * (gamma - c)
    over_c = (a + c) * (gamma + b) - (a - c) * (gamma - b) + c * rest
    return (plus + minus + a * rest) * share, (plus - minus + b * rest) * share, over_c * share


def eigmax_hessian_product(
    a: Tensor, b: Tensor, c: Tensor, va: Tensor, vb: Tensor, vc: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The Hessian of ``lambda_max`` times the direction ``(va, vb, vc)``; zero where the eigenvalue is multiple.

    With the projector ``P = u u'`` on the top eigenvector and ``V`` the symmetric matrix of the direction, ``P`` moves
    by ``Z + Z'``, ``Z = (x I - B)^+ V P``, and the pseudo-inverse of a 3x3 matrix of rank 2 needs no decomposition:
    ``(x I - B)^+ = (2 x I + B)(I - P) / (3 x^2 - s)``.
    """
    a, b, c, power, _, poison = _scaled(a, b, c)
    gamma, e, k = _root(a, b, c)
    denominator = _denominator(gamma, e, k)
    multiple = denominator == 0
    safe = torch.where(multiple, 1, denominator)
    ga, gb, gc = _gradient(a, b, c, gamma, e, denominator)
    rest = 4 * e * (gamma + e)  # x^2 - gamma^2
    p1, p2, p3 = (((gamma - z) * (gamma + z) + rest) / safe for z in (c, b, a))  # the projector's diagonal
    pa, pb, pc = ga / 2, gb / 2, gc / 2  # and its other entries
    # The columns of V P, less their part along u.
    columns = []
    for q1, q2, q3 in (
        (va * pa + vb * pb, va * p1 + vc * pb, vb * p1 + vc * pa),
        (va * p2 + vb * pc, va * pa + vc * pc, vb * pa + vc * p2),
        (va * pc + vb * p3, va * pb + vc * p3, vb * pb + vc * pc),
    ):
        columns.append(
            (
                q1 - (p1 * q1 + pa * q2 + pb * q3),
                q2 - (pa * q1 + p2 * q2 + pc * q3),
                q3 - (pb * q1 + pc * q2 + p3 * q3),
            )
        )
    (_, y21, y31), (y12, _, y32), (y13, y23, _) = columns
    (y11, _, _), (_, y22, _), (_, _, y33) = columns
    trace = 2 * (gamma + 2 * e)
    # Each cosine collects two off-diagonal entries of (2 x I + B) Y.
    over_a = trace * (y12 + y21) + a * (y22 + y11) + b * y32 + c * y31
    over_b = trace * (y13 + y31) + b * (y33 + y11) + a * y23 + c * y21
    over_c = trace * (y23 + y32) + c * (y33 + y22) + a * y13 + b * y12
    scale = torch.where(multiple, 0, 2 * power / safe)
    return over_a * scale + poison, over_b * scale + poison, over_c * scale + poison
