"""Eigenvalues and eigenvectors of symmetric 3x3 matrices, in place: large batches on a CPU, where passes are the cost.

The equations of :mod:`multicontrast.linalg._symmetric3_torch` without the scaling. Matrices that need it (entries far
from 1, multiples of the identity, NaN, infinity) show in the norm of the deviator; if there are any, they alone are
scaled and done again. A power of two is exact, so both roads do the same arithmetic to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import power_of_two
from multicontrast.linalg._symmetric3_torch import LEAST, NEWTON_STEPS, START

VALUE_ROWS, PAIR_ROWS = 14, 19  # rows of `scratch` that the two functions use

# Half the squared norm of the deviator, where squares of the smallest differences are still normal numbers and the
# fourth power of the largest entry is one.
_RANGE = {torch.float32: (2.0**-36, 2.0**50), torch.float64: (2.0**-440, 2.0**480)}
# The fit in 2 z.
_C0, _C1, _C2, _C3 = (c / 2**power for power, c in enumerate(START))


def eigenvalues_into(values: Tensor, matrix: Tensor, scratch: Tensor) -> None:
    """Writes the ascending eigenvalues of ``(n, 3, 3)``, lower triangle, into ``(n, 3)``.

    ``scratch`` is ``(VALUE_ROWS, n)``, contiguous rows of the same type.
    """
    _solve(values, None, matrix, scratch)


def eigenpairs_into(values: Tensor, vectors: Tensor, matrix: Tensor, scratch: Tensor) -> None:
    """The same, and writes the eigenvectors, the columns of ``(n, 3, 3)``, of which ``(3, 3, n)`` is contiguous rows.

    ``scratch`` is ``(PAIR_ROWS, n)``.
    """
    _solve(values, vectors, matrix, scratch)


def _solve(values: Tensor, vectors: Tensor | None, matrix: Tensor, scratch: Tensor) -> None:
    rows = scratch.unbind(0)
    j2 = _write_shifted_deviator(matrix, rows)
    odd = _odd_matrices(j2)
    _write_values(values, rows)
    if vectors is not None:
        _write_vectors(vectors, rows)
    if odd is not None:
        _solve_scaled(values, vectors, matrix, odd, rows)


def _odd_matrices(j2: Tensor) -> Tensor | None:
    """Indices of the matrices that need scaling; None where there are none."""
    lowest, highest = _RANGE[j2.dtype]
    if len(j2) == 0:
        return None
    smallest, largest = torch.aminmax(j2)
    if smallest > lowest and largest < highest:  # False for NaN
        return None
    return ((j2 > lowest) & (j2 < highest)).logical_not_().nonzero().squeeze(1)


def _solve_scaled(
    values: Tensor, vectors: Tensor | None, matrix: Tensor, odd: Tensor, rows: tuple[Tensor, ...]
) -> None:
    lower = matrix[odd].tril_()
    power, inverse = power_of_two(lower.abs().amax((-2, -1)))
    rows = tuple(row[: len(odd)] for row in rows)
    _write_shifted_deviator(lower.mul_(power[:, None, None]), rows)
    some = values.new_empty(len(odd), 3)
    _write_values(some, rows)
    values[odd] = some.mul_(inverse[:, None])
    if vectors is not None:
        planes = vectors.new_empty(3, 3, len(odd)).movedim(-1, 0)
        _write_vectors(planes, rows)
        vectors[odd] = planes


def _write_shifted_deviator(matrix: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
    """Fills the rows with the entries of ``S = B + eta / 2`` (three of the diagonal, three below it), the centre, half
    the squared norm of B, which is returned, and eta."""
    a, b, c, u, v, w, centre, j2, eta, s, t, y, z, spare, *_ = rows
    for row, i, j in ((a, 0, 0), (b, 1, 1), (c, 2, 2), (u, 1, 0), (v, 2, 0), (w, 2, 1)):
        row.copy_(matrix[:, i, j])
    torch.sub(a, b, out=s), torch.sub(a, c, out=t), torch.sub(b, c, out=y)
    torch.add(s, t, out=z).mul_(1 / 3)
    torch.sub(a, z, out=centre)
    torch.sub(y, s, out=b).mul_(1 / 3)
    torch.add(t, y, out=c).mul_(-1 / 3)
    a.copy_(z)
    torch.mul(u, u, out=j2).addcmul_(v, v).addcmul_(w, w)
    j2.addcmul_(a, a, value=0.5).addcmul_(b, b, value=0.5).addcmul_(c, c, value=0.5)
    # The determinant, then 2 z = |J3| / r^3 in the place of r^2.
    j3 = torch.mul(b, c, out=s).addcmul_(w, w, value=-1).mul_(a)
    j3.addcmul_(torch.mul(v, w, out=t).addcmul_(u, c, value=-1), u)
    j3.addcmul_(torch.mul(u, w, out=t).addcmul_(v, b, value=-1), v)
    r = torch.sqrt(torch.mul(j2, 1 / 3, out=t), out=eta)
    cube = t.mul_(r).clamp_min_(torch.finfo(t.dtype).smallest_normal)
    torch.div(j3, cube, out=z).abs_().clamp_max_(2)
    torch.mul(z, _C3, out=y).add_(_C2).mul_(z).add_(_C1).mul_(z).add_(_C0)
    for _ in range(NEWTON_STEPS[y.dtype]):
        residual = torch.sub(torch.mul(y, y, out=t), 3, out=spare).mul_(y).sub_(z)
        y.addcdiv_(residual, t.sub_(1), value=-1 / 3)
    torch.copysign(r.mul_(y), j3, out=eta)
    for row in (a, b, c):
        row.add_(eta, alpha=0.5)
    return j2


def _write_values(values: Tensor, rows: tuple[Tensor, ...]) -> None:
    a, b, c, u, v, w, centre, j2, eta, norm, minor, middle, low, *_ = rows
    # The squared norm of the adjugate of S, entry by entry.
    torch.mul(a, b, out=minor).addcmul_(u, u, value=-1)
    torch.mul(minor, minor, out=norm)
    for first, second, square in ((a, c, v), (b, c, w)):
        torch.mul(first, second, out=minor).addcmul_(square, square, value=-1)
        norm.addcmul_(minor, minor)
    for first, second, third, diagonal in ((u, v, w, a), (u, w, v, b), (v, w, u, c)):
        torch.mul(first, second, out=minor).addcmul_(third, diagonal, value=-1)
        norm.addcmul_(minor, minor, value=2)
    bracket = j2.addcmul_(eta, eta, value=3.75).clamp_min_(torch.finfo(eta.dtype).smallest_normal)
    delta = norm.div_(bracket).sqrt_()
    torch.mul(eta, -0.5, out=middle)
    low, high = torch.sub(middle, delta, out=low), torch.add(middle, delta, out=minor)
    torch.minimum(low, eta, out=low), torch.maximum(high, eta, out=high)
    middle.add_(torch.copysign(delta, eta, out=delta))
    for k, root in enumerate((low, middle, high)):
        torch.add(root, centre, out=values[:, k])


def _write_vectors(vectors: Tensor, rows: tuple[Tensor, ...]) -> None:
    a, b, c, u, v, w, *_, eta = rows[:9]
    m0, m1, m2, x, y, z, c10, c20, c21, weight = rows[9:]
    half = eta.new_full((), 0.5)
    # eta - B = 3 eta / 2 - S, and its adjugate: the isolated eigenvector is the column with the largest diagonal entry.
    torch.mul(eta, 1.5, out=weight)
    torch.sub(weight, a, out=m0), torch.sub(weight, b, out=m1), torch.sub(weight, c, out=m2)
    c00 = torch.mul(m1, m2, out=x).addcmul_(w, w, value=-1)
    c11 = torch.mul(m0, m2, out=y).addcmul_(v, v, value=-1)
    c22 = torch.mul(m0, m1, out=z).addcmul_(u, u, value=-1)
    torch.mul(v, w, out=c10).addcmul_(u, m2)
    torch.mul(u, w, out=c20).addcmul_(v, m1)
    torch.mul(u, v, out=c21).addcmul_(w, m0)
    first = torch.copysign(half, torch.sub(c00, c11, out=weight), out=weight).add_(0.5)
    one_of_two = torch.copysign(half, torch.maximum(c00, c11, out=m0).sub_(c22), out=m0).add_(0.5)
    torch.lerp(c10, c00, first, out=x)
    torch.lerp(c11, c10, first, out=y)
    torch.lerp(c21, c20, first, out=m1)
    torch.lerp(c20, x, one_of_two, out=x)
    torch.lerp(c21, y, one_of_two, out=y)
    torch.lerp(c22, m1, one_of_two, out=z)
    x.add_(LEAST[x.dtype])  # a multiple of the identity has no direction: take the first axis
    length = torch.mul(x, x, out=weight).addcmul_(y, y).addcmul_(z, z).sqrt_()
    x.div_(length), y.div_(length), z.div_(length)
    # An orthonormal pair across it.
    p, q = (m0, m1, m2), (c10, c20, c21)
    sign = torch.copysign(eta.new_full((), 1.0), z, out=weight)
    scale = torch.add(sign, z, out=m0).reciprocal_().neg_()
    torch.mul(x, y, out=c10).mul_(scale)
    torch.mul(y, y, out=c20).mul_(scale).add_(sign)
    torch.neg(y, out=c21)
    torch.mul(x, x, out=m1)
    scale.mul_(m1).mul_(sign).add_(1)
    torch.mul(c10, sign, out=m1)
    torch.mul(x, sign, out=m2).neg_()
    # The 2x2 matrix of S in their plane, and its eigenvectors, in the rows of the results.
    planes = [[vectors[:, i, k] for k in range(3)] for i in range(3)]
    diagonal, off_diagonal, other, image = planes[0][0], planes[0][1], planes[0][2], planes[1][0]
    for row, (first, second, third) in enumerate(((a, u, v), (u, b, w), (v, w, c))):
        torch.mul(first, m0, out=image).addcmul_(second, m1).addcmul_(third, m2)
        if row == 0:
            torch.mul(m0, image, out=diagonal), torch.mul(c10, image, out=off_diagonal)
        else:
            diagonal.addcmul_(p[row], image), off_diagonal.addcmul_(q[row], image)
        torch.mul(first, c10, out=image).addcmul_(second, c20).addcmul_(third, c21)
        if row == 0:
            torch.mul(c10, image, out=other)
        else:
            other.addcmul_(q[row], image)
    diagonal.sub_(other).mul_(0.5)
    long = torch.mul(diagonal, diagonal, out=image).addcmul_(off_diagonal, off_diagonal).sqrt_()
    long.add_(torch.abs(diagonal, out=other)).clamp_min_(LEAST[eta.dtype])
    length = torch.mul(long, long, out=other).addcmul_(off_diagonal, off_diagonal).sqrt_()
    long.div_(length), off_diagonal.div_(length)
    upright = torch.copysign(half, diagonal, out=diagonal).add_(0.5)
    cos, sin = torch.lerp(off_diagonal, long, upright, out=a), torch.lerp(long, off_diagonal, upright, out=b)
    top = torch.copysign(half, eta, out=weight).add_(0.5)
    high, low = c, u
    for i, isolated in enumerate((x, y, z)):
        torch.mul(p[i], cos, out=high).addcmul_(q[i], sin)
        torch.mul(q[i], cos, out=low).addcmul_(p[i], sin, value=-1)
        torch.lerp(isolated, low, top, out=planes[i][0])
        torch.lerp(low, high, top, out=planes[i][1])
        torch.lerp(high, isolated, top, out=planes[i][2])
