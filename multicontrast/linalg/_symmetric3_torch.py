r"""Symmetric 3x3 matrices by deflation, in plain PyTorch.

The deviator ``B = A - tr(A)/3`` has the characteristic equation :math:`\eta^3 - J_2 \eta - J_3 = 0`. Of its three roots
the one with the sign of :math:`J_3` is isolated, however close the other two are, so it and its eigenvector are well
conditioned:

1. :math:`\eta = \pm r y`, :math:`r^2 = J_2 / 3`, where :math:`y \in [\sqrt 3, 2]` solves
   :math:`y^3 - 3y = |J_3| / r^3`: a cubic fit and Newton, no arc cosine;
2. the other two are :math:`-\eta/2 \pm \delta`. The matrix :math:`S = B + \eta/2` has eigenvalues
   :math:`3\eta/2, \pm\delta`, so the norm of its adjugate gives :math:`\delta` without a cancellation that matters;
3. the eigenvector of :math:`\eta` is the largest column of the adjugate of :math:`\eta I - B`, and an orthonormal pair
   across it turns the rest into a 2x2 problem, which is solved exactly.

Matrices are scaled by a power of two first, which is exact, so that nothing overflows or underflows from 1e-38 to 1e38
(float32), denormals included. The deflation is Scherzinger and Dohrmann's (CMAME 2008), the differences in the deviator
Habera and Zilian's (arXiv 2111.02117), the pair that of Duff et al. (JCGT 2017). More in
docs/math/symmetric-eigenproblems.md.

Nothing is checked here and nothing is known of autograd. No branch on values, and no mask where a sign will do: on a
CPU ``torch.where`` costs as much as ten other operations. The same in place, for large batches on a CPU, is in
``_symmetric3_in_place.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import power_of_two

# y(z) on [0, 1] to 7e-5; Newton then leaves 4e-9, and a second step rounding.
START = (1.73211581, 0.33095066, -0.08214052, 0.01913906)
NEWTON_STEPS = {torch.float32: 1, torch.float64: 2}
# Far below rounding beside any adjugate that matters, with a square that is a normal number.
LEAST = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

Vector = tuple[Tensor, Tensor, Tensor]


Entries = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # 00, 11, 22, 10, 20, 21


class _Scaled(NamedTuple):
    centre: Tensor
    deviator: Entries
    inverse: Tensor  # of the power of two


def _scale(matrix: Tensor) -> _Scaled:
    """Centre and deviator of the lower triangle of ``(..., 3, 3)``, times a power of two."""
    # Strided entries cost a CPU three times as much: read each once.
    entries = [matrix[..., i, j].contiguous() for i, j in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))]
    largest = entries[0].abs()
    for entry in entries[1:]:
        largest = torch.maximum(largest, entry.abs())
    power, inverse = power_of_two(largest)
    a00, a11, a22, a10, a20, a21 = (entry * power for entry in entries)
    # From differences of the diagonal: exact where its entries are close, as a00 - mean is not.
    d0, d1, d2 = a00 - a11, a00 - a22, a11 - a22
    deviator = ((d0 + d1).mul_(1 / 3), (d2 - d0).mul_(1 / 3), (d1 + d2).mul_(-1 / 3), a10, a20, a21)
    return _Scaled(a00 - deviator[0], deviator, inverse)


def _dot(x: Vector, y: Vector) -> Tensor:
    return (x[0] * y[0]).addcmul_(x[1], y[1]).addcmul_(x[2], y[2])


def _select(weight: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    """``one`` where the weight is 1, ``zero`` where it is 0; exact, and far cheaper on a CPU than a mask."""
    return torch.lerp(zero, one, weight)


def _is_positive(x: Tensor) -> Tensor:
    """1 where ``x >= 0``, 0 elsewhere, as a number."""
    return torch.copysign(x.new_full((), 0.5), x).add_(0.5)


def _isolated_root(b00: Tensor, b11: Tensor, b22: Tensor, b10: Tensor, b20: Tensor, b21: Tensor) -> Tensor:
    """The eigenvalue of the deviator that no other comes near: the one with the sign of its determinant."""
    tiny = torch.finfo(b00.dtype).smallest_normal
    third = _j2(b00, b11, b22, b10, b20, b21).mul_(1 / 3)
    j3 = (b11 * b22).addcmul_(b21, b21, value=-1).mul_(b00)
    j3.addcmul_((b20 * b21).addcmul_(b10, b22, value=-1), b10).addcmul_((b10 * b21).addcmul_(b20, b11, value=-1), b20)
    r = third.sqrt()
    z = j3.abs().mul_(0.5).div_(third.mul_(r).clamp_min_(tiny)).clamp_max_(1)
    y = (z * START[3]).add_(START[2]).mul_(z).add_(START[1]).mul_(z).add_(START[0])
    for _ in range(NEWTON_STEPS[y.dtype]):
        square = y * y
        residual = (square - 3).mul_(y).sub_(z, alpha=2)
        y.addcdiv_(residual, square.sub_(1), value=-1 / 3)
    return torch.copysign(y.mul_(r), j3)


def _j2(b00: Tensor, b11: Tensor, b22: Tensor, b10: Tensor, b20: Tensor, b21: Tensor) -> Tensor:
    """Half the squared Frobenius norm."""
    diagonal, rest = (b00, b11, b22), (b10, b20, b21)
    return _dot(rest, rest).add_(_dot(diagonal, diagonal), alpha=0.5)


def _half_difference(
    eta: Tensor, b00: Tensor, b11: Tensor, b22: Tensor, b10: Tensor, b20: Tensor, b21: Tensor
) -> Tensor:
    r"""The delta of the other two eigenvalues, :math:`-\eta/2 \pm \delta`.

    The adjugate of :math:`S = B + \eta/2` has eigenvalues :math:`-\delta^2, \pm 3\eta\delta/2`, hence a squared norm of
    :math:`\delta^2 (9\eta^2/2 + \delta^2)`; the bracket is :math:`15 \eta^2 / 4 + J_2`.
    """
    tiny = torch.finfo(eta.dtype).smallest_normal
    s00, s11, s22 = (entry.add(eta, alpha=0.5) for entry in (b00, b11, b22))
    minors = ((s11 * s22).addcmul_(b21, b21, value=-1), (s00 * s22).addcmul_(b20, b20, value=-1))
    diagonal = (*minors, (s00 * s11).addcmul_(b10, b10, value=-1))
    rest = ((b20 * b21).addcmul_(b10, s22, value=-1), (b10 * b21).addcmul_(b20, s11, value=-1))
    off_diagonal = (*rest, (b10 * b20).addcmul_(b21, s00, value=-1))
    norm = _dot(diagonal, diagonal).add_(_dot(off_diagonal, off_diagonal), alpha=2)
    return norm.div_(_j2(b00, b11, b22, b10, b20, b21).addcmul_(eta, eta, value=3.75).clamp_min_(tiny)).sqrt_()


def _isolated_vector(m0: Tensor, m1: Tensor, m2: Tensor, b10: Tensor, b20: Tensor, b21: Tensor) -> Vector:
    """The unit vector in the kernel of ``eta I - B``, whose diagonal is ``m``: the largest column of the adjugate."""
    c00 = (m1 * m2).addcmul_(b21, b21, value=-1)
    c11 = (m0 * m2).addcmul_(b20, b20, value=-1)
    c22 = (m0 * m1).addcmul_(b10, b10, value=-1)
    c10 = (b20 * b21).addcmul_(b10, m2)
    c20 = (b10 * b21).addcmul_(b20, m1)
    c21 = (b10 * b20).addcmul_(b21, m0)
    # All three diagonal entries have one sign, so the largest magnitude is the largest entry.
    first = _is_positive(c00 - c11)
    column = (_select(first, c00, c10), _select(first, c10, c11), _select(first, c20, c21))
    first = _is_positive(torch.maximum(c00, c11).sub_(c22))
    x, y, z = (_select(first, one, zero) for one, zero in zip(column, (c20, c21, c22)))
    x.add_(LEAST[x.dtype])  # a multiple of the identity has no direction: take the first axis
    length = _dot((x, y, z), (x, y, z)).sqrt_()
    return x.div_(length), y.div_(length), z.div_(length)


def _frame(x: Tensor, y: Tensor, z: Tensor) -> tuple[Vector, Vector]:
    """Two unit vectors that complete ``(x, y, z)`` to an orthonormal frame, without a branch."""
    sign = torch.copysign(torch.ones_like(z), z)
    a = (sign + z).reciprocal_().neg_()
    b = x * y * a
    p = ((x * x).mul_(a).mul_(sign).add_(1), sign * b, x.mul(sign).neg_())
    q = (b, (y * y).mul_(a).add_(sign), -y)
    return p, q


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues ``(..., 3)``, ascending, of symmetric ``(..., 3, 3)``; the lower triangle is read."""
    scaled = _scale(matrix)
    eta = _isolated_root(*scaled.deviator)
    roots = _ordered(eta, _half_difference(eta, *scaled.deviator))
    return torch.stack([root.add_(scaled.centre).mul_(scaled.inverse) for root in roots], -1)


def _ordered(eta: Tensor, delta: Tensor) -> Vector:
    """The eigenvalues of the deviator, ascending."""
    middle = eta * -0.5
    low = torch.minimum(eta, middle - delta)
    high = torch.maximum(eta, middle + delta)
    return low, middle.add_(torch.copysign(delta, eta)), high


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., 3)``, ascending, and orthonormal eigenvectors, the columns of ``(..., 3, 3)``.

    Each entry of the eigenvectors is contiguous over the batch, for the elementwise operations that follow.
    """
    scaled = _scale(matrix)
    b00, b11, b22, b10, b20, b21 = scaled.deviator
    eta = _isolated_root(b00, b11, b22, b10, b20, b21)
    roots = _ordered(eta, _half_difference(eta, b00, b11, b22, b10, b20, b21))
    values = torch.stack([root.add_(scaled.centre).mul_(scaled.inverse) for root in roots], -1)
    vector = _isolated_vector(eta - b00, eta - b11, eta - b22, b10, b20, b21)
    p, q = _frame(*vector)
    # B + eta / 2 is as small across the vector as the two eigenvalues are close, and so are its products' roundings.
    s00, s11, s22 = (entry.add(eta, alpha=0.5) for entry in (b00, b11, b22))
    image_p, image_q = ((_dot((s00, b10, b20), x), _dot((b10, s11, b21), x), _dot((b20, b21, s22), x)) for x in (p, q))
    low, high = _rotated(p, q, _dot(p, image_p).sub_(_dot(q, image_q)).mul_(0.5), _dot(q, image_p))
    top = _is_positive(eta)
    rows = [
        torch.stack([_select(top, one, zero) for one, zero in zip(above, below)])
        for above, below in zip(zip(low, high, vector), zip(vector, low, high))
    ]
    return values, torch.stack(rows).movedim((0, 1), (-2, -1))


def weighted_projectors(vectors: Tensor, weights: Tensor) -> Tensor:
    """``V diag(w) V'`` for ``(..., 3, 3)`` and ``(..., 3)``, entry by entry: far cheaper than batched products."""
    v = [[vectors[..., i, k] for k in range(3)] for i in range(3)]
    w = [weights[..., k].contiguous() for k in range(3)]
    scaled = [[entry * weight for entry, weight in zip(row, w)] for row in v]
    entry = {
        (i, j): (scaled[i][0] * v[j][0]).addcmul_(scaled[i][1], v[j][1]).addcmul_(scaled[i][2], v[j][2])
        for i, j in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))
    }
    flat = torch.stack([entry[max(i, j), min(i, j)] for i in range(3) for j in range(3)], -1)
    return flat.view(*flat.shape[:-1], 3, 3)


def _rotated(p: Vector, q: Vector, diagonal: Tensor, off_diagonal: Tensor) -> tuple[Vector, Vector]:
    """The eigenvectors of ``[[d, o], [o, -d]]`` in the plane of p and q, lower eigenvalue first."""
    delta = (diagonal * diagonal).addcmul_(off_diagonal, off_diagonal).sqrt_()
    # (|d| + delta, o), or its mirror image where d < 0: nothing cancels.
    long = delta.add_(diagonal.abs()).clamp_min_(LEAST[delta.dtype])
    length = (long * long).addcmul_(off_diagonal, off_diagonal).sqrt_()
    long, short = long.div_(length), off_diagonal / length
    upright = _is_positive(diagonal)
    cos, sin = _select(upright, long, short), _select(upright, short, long)
    high = (cos * p[0] + sin * q[0], cos * p[1] + sin * q[1], cos * p[2] + sin * q[2])
    low = (cos * q[0] - sin * p[0], cos * q[1] - sin * p[1], cos * q[2] - sin * p[2])
    return low, high
