r"""Symmetric 3x3 matrices by deflation, in plain PyTorch.

The deviator ``B = A - tr(A)/3`` has the characteristic equation :math:`\eta^3 - J_2 \eta - J_3 = 0`. Of its three roots
the one with the sign of :math:`J_3` is isolated, however close the other two are, so it and its eigenvector are well
conditioned:

1. :math:`\eta = \pm r y`, :math:`r^2 = J_2 / 3`, where :math:`y \in [\sqrt 3, 2]` solves
   :math:`y^3 - 3y = |J_3| / r^3`: a cubic fit and Newton, no arc cosine;
2. the other two are :math:`-\eta/2 \pm \delta`. The matrix :math:`S = B + \eta/2` has eigenvalues
   :math:`3\eta/2, \pm\delta`, so its adjugate has :math:`-\delta^2, \pm 3\eta\delta/2` and a squared norm of
   :math:`\delta^2 (9\eta^2/2 + \delta^2)`, which gives :math:`\delta` without a cancellation that matters; the bracket
   is :math:`15 \eta^2 / 4 + J_2`;
3. the eigenvector of :math:`\eta` is the largest column of the adjugate of :math:`\eta I - B`, and an orthonormal pair
   across it turns the rest into a 2x2 problem, which is solved exactly.

The deflation is Scherzinger and Dohrmann's (CMAME 2008), the differences in the deviator Habera and Zilian's (arXiv
2111.02117), the pair that of Duff et al. (JCGT 2017). More in docs/math/symmetric-eigenproblems.md.

Everything is done in place, in rows that are contiguous over the batch: on a CPU the cost is the passes over memory and
the calls. ``torch.where`` costs as much as ten passes, so a choice is a `lerp` with a weight of 0 or 1. Out of place
the values took 1.7 times as long and the pairs 2.2 times (float32, 10,000 matrices), and the gradient of the values
would miss its required speed of 8 times LAPACK's.

Scaling by a power of two is exact and keeps every matrix from overflow and underflow, from 1e-38 to 1e38 in float32 and
denormals included. Most matrices need no scaling: where values can be read, only those whose deviator is out of range
(entries far from 1, multiples of the identity, NaN, infinity) are scaled and solved again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import power_of_two

# A cubic in z that fits y(z) on [0, 1] to 7e-5. A Newton step reduces the error to 4e-9, a second one to rounding.
START = (1.73211581, 0.33095066, -0.08214052, 0.01913906)
_C0, _C1, _C2, _C3 = (c / 2**power for power, c in enumerate(START))  # in 2 z
_NEWTON_STEPS = {torch.float32: 1, torch.float64: 2}
# Negligible beside any adjugate that matters, with a square that is a normal number.
_LEAST = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}
# The range of half the squared norm of the deviator in which the squares of the smallest differences and the fourth
# power of the largest entry are normal numbers.
_RANGE = {torch.float32: (2.0**-36, 2.0**50), torch.float64: (2.0**-440, 2.0**480)}
VALUE_ROWS, PAIR_ROWS = 14, 19  # buffers that values alone, and values with vectors, need
_BLOCK = 1 << 17  # matrices at a time on a CPU: enough to hide the cost of a call


def solve(matrix: Tensor, with_vectors: bool = True, *, can_read: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., 3)``, ascending, and orthonormal eigenvectors, the columns of ``(..., 3, 3)``.

    Args:
        matrix: ``(..., 3, 3)``, float32 or float64; the lower triangle is read.
        with_vectors: whether to compute the eigenvectors; if not, they are an empty tensor. In memory the batch is
            their last axis, because they are used entry by entry.
        can_read: whether values may be read on the host: on a CPU in eager mode.
    """
    flat = matrix.reshape(-1, 3, 3)
    count = len(flat)
    values, vectors = matrix.new_empty(matrix.shape[:-1]), _batch_last(matrix) if with_vectors else None
    value_rows, vector_rows = values.view(-1, 3), None if vectors is None else vectors.view(-1, 3, 3)
    length = _BLOCK if can_read else max(count, 1)
    scratch = flat.new_empty(PAIR_ROWS if with_vectors else VALUE_ROWS, min(length, count))
    for start in range(0, count, length):
        block = slice(start, min(start + length, count))
        rows = scratch[:, : block.stop - start]
        _solve(value_rows[block], None if vector_rows is None else vector_rows[block], flat[block], rows, can_read)
    return values, flat.new_empty(0) if vectors is None else vectors


def _batch_last(matrix: Tensor) -> Tensor:
    """An empty ``(..., 3, 3)`` whose entries are contiguous over the batch; not a view, as users may write into it."""
    *batch, row, column = range(matrix.dim())
    return torch.empty_permuted(matrix.shape, (row, column, *batch), dtype=matrix.dtype, device=matrix.device)


def _solve(values: Tensor, vectors: Tensor | None, matrix: Tensor, rows: Tensor, can_read: bool) -> None:
    if not can_read:
        _solve_scaled(values, vectors, matrix.tril(), rows)
        return
    _load(matrix, rows)
    j2 = shift_deviator(rows)
    exceptions = _exceptions(j2)
    _write_values(values, rows)
    if vectors is not None:
        _write_vectors(vectors, rows)
    if exceptions is None:
        return
    some = values.new_empty(len(exceptions), 3)
    planes = None if vectors is None else values.new_empty(3, 3, len(exceptions)).movedim(-1, 0)
    _solve_scaled(some, planes, matrix[exceptions].tril_(), rows[:, : len(exceptions)])
    values[exceptions] = some
    if vectors is not None and planes is not None:
        vectors[exceptions] = planes


def _exceptions(j2: Tensor) -> Tensor | None:
    """Indices of the matrices that need scaling; None if there are none."""
    lowest, highest = _RANGE[j2.dtype]
    if len(j2) == 0:
        return None
    smallest, largest = torch.aminmax(j2)
    if smallest > lowest and largest < highest:  # False for NaN
        return None
    return ((j2 > lowest) & (j2 < highest)).logical_not_().nonzero().squeeze(1)


def _solve_scaled(values: Tensor, vectors: Tensor | None, lower: Tensor, rows: Tensor) -> None:
    power, inverse = power_of_two(lower.abs().amax((-2, -1)))
    _load(lower.mul_(power[:, None, None]), rows)
    shift_deviator(rows)
    _write_values(values, rows)
    values.mul_(inverse[:, None])
    if vectors is not None:
        _write_vectors(vectors, rows)


def _load(matrix: Tensor, rows: Tensor) -> None:
    """Copies the lower triangle into the first six rows: the diagonal, then 10, 20, 21."""
    for row, i, j in zip(rows, (0, 1, 2, 1, 2, 2), (0, 1, 2, 0, 0, 1)):
        row.copy_(matrix[:, i, j])


def shift_deviator(rows: Tensor) -> Tensor:
    """Replaces the entries in the first six rows by those of ``S = B + eta / 2``.

    Writes the centre, half the squared norm of B, which is returned, and eta into the next three rows. ``rows`` has
    :data:`VALUE_ROWS`.
    """
    a, b, c, u, v, w, centre, j2, eta, s, t, y, z, spare, *_ = rows
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
    for _ in range(_NEWTON_STEPS[y.dtype]):
        residual = torch.sub(torch.mul(y, y, out=t), 3, out=spare).mul_(y).sub_(z)
        y.addcdiv_(residual, t.sub_(1), value=-1 / 3)
    torch.copysign(r.mul_(y), j3, out=eta)
    for row in (a, b, c):
        row.add_(eta, alpha=0.5)
    return j2


def _write_values(values: Tensor, rows: Tensor) -> None:
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


def is_positive(x: Tensor, *, out: Tensor) -> Tensor:
    """1 where ``x >= 0``, 0 elsewhere, as a number."""
    return torch.copysign(x.new_full((), 0.5), x, out=out).add_(0.5)


def isolate(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The eigenvector of eta and a right-handed orthonormal pair across it, ``(3, n)`` each.

    The vector is the largest column of the adjugate of ``eta - B = 3 eta / 2 - S``, whose diagonal has one sign.
    ``rows`` has :data:`PAIR_ROWS`, as :func:`shift_deviator` left them; the first nine stay as they are.
    """
    a, b, c, u, v, w, _, _, eta, m0, m1, m2, x, y, z, c10, c20, c21, weight = rows
    torch.mul(eta, 1.5, out=weight)
    torch.sub(weight, a, out=m0), torch.sub(weight, b, out=m1), torch.sub(weight, c, out=m2)
    c00 = torch.mul(m1, m2, out=x).addcmul_(w, w, value=-1)
    c11 = torch.mul(m0, m2, out=y).addcmul_(v, v, value=-1)
    c22 = torch.mul(m0, m1, out=z).addcmul_(u, u, value=-1)
    torch.mul(v, w, out=c10).addcmul_(u, m2)
    torch.mul(u, w, out=c20).addcmul_(v, m1)
    torch.mul(u, v, out=c21).addcmul_(w, m0)
    first = is_positive(torch.sub(c00, c11, out=weight), out=weight)
    one_of_two = is_positive(torch.maximum(c00, c11, out=m0).sub_(c22), out=m0)
    torch.lerp(c10, c00, first, out=x)
    torch.lerp(c11, c10, first, out=y)
    torch.lerp(c21, c20, first, out=m1)
    torch.lerp(c20, x, one_of_two, out=x)
    torch.lerp(c21, y, one_of_two, out=y)
    torch.lerp(c22, m1, one_of_two, out=z)
    x.add_(_LEAST[x.dtype])  # a multiple of the identity has no direction: take the first axis
    length = torch.mul(x, x, out=weight).addcmul_(y, y).addcmul_(z, z).sqrt_()
    vector, p, q = rows[12:15], rows[9:12], rows[15:18]
    complete(vector.div_(length), p, q, weight)
    return vector, p, q


def complete(vector: Tensor, p: Tensor, q: Tensor, sign: Tensor) -> None:
    """Writes ``p, q`` so that ``p, q, vector`` are a right-handed orthonormal frame, ``(3, n)`` each."""
    (x, y, z), (p0, p1, p2), (q0, q1, q2) = vector, p, q
    torch.copysign(z.new_ones(()), z, out=sign)
    scale = torch.add(sign, z, out=p0).reciprocal_().neg_()
    torch.mul(x, y, out=q0).mul_(scale)
    torch.mul(y, y, out=q1).mul_(scale).add_(sign)
    torch.neg(y, out=q2)
    torch.mul(x, x, out=p1)
    scale.mul_(p1).mul_(sign).add_(1)
    torch.mul(q0, sign, out=p1)
    torch.mul(x, sign, out=p2).neg_()


def _write_vectors(vectors: Tensor, rows: Tensor) -> None:
    a, b, c, u, v, w, _, _, eta, *_, weight = rows
    isolated, p, q = isolate(rows)
    # The 2x2 matrix of S in their plane, and its eigenvectors, in the rows of the results.
    planes = [[vectors[:, i, k] for k in range(3)] for i in range(3)]
    diagonal, off_diagonal, other, image = planes[0][0], planes[0][1], planes[0][2], planes[1][0]
    for row, (first, second, third) in enumerate(((a, u, v), (u, b, w), (v, w, c))):
        torch.mul(first, p[0], out=image).addcmul_(second, p[1]).addcmul_(third, p[2])
        if row == 0:
            torch.mul(p[0], image, out=diagonal), torch.mul(q[0], image, out=off_diagonal)
        else:
            diagonal.addcmul_(p[row], image), off_diagonal.addcmul_(q[row], image)
        torch.mul(first, q[0], out=image).addcmul_(second, q[1]).addcmul_(third, q[2])
        if row == 0:
            torch.mul(q[0], image, out=other)
        else:
            other.addcmul_(q[row], image)
    diagonal.sub_(other).mul_(0.5)
    long = torch.mul(diagonal, diagonal, out=image).addcmul_(off_diagonal, off_diagonal).sqrt_()
    long.add_(torch.abs(diagonal, out=other)).clamp_min_(_LEAST[eta.dtype])
    length = torch.mul(long, long, out=other).addcmul_(off_diagonal, off_diagonal).sqrt_()
    long.div_(length), off_diagonal.div_(length)
    upright = is_positive(diagonal, out=diagonal)
    cos, sin = torch.lerp(off_diagonal, long, upright, out=a), torch.lerp(long, off_diagonal, upright, out=b)
    top = is_positive(eta, out=weight)
    high, low = c, u
    for i, alone in enumerate(isolated):
        torch.mul(p[i], cos, out=high).addcmul_(q[i], sin)
        torch.mul(q[i], cos, out=low).addcmul_(p[i], sin, value=-1)
        torch.lerp(alone, low, top, out=planes[i][0])
        torch.lerp(low, high, top, out=planes[i][1])
        torch.lerp(high, alone, top, out=planes[i][2])


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
