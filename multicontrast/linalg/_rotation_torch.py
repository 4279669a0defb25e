r"""Nearest proper rotation of small matrices, in plain PyTorch, without iteration.

Matrices are ``(D, D, N)``: each scalar of the algorithm is a contiguous vector over the batch. Every step is in place,
because on a CPU the cost is passes over memory and the calls that start them. There is no LAPACK, no branch on data and
no host synchronisation. NaN in a matrix affects its own result only.

For :math:`K = U \Sigma V^\top` of size 3 one pair of singular vectors :math:`u, v` is split off, and what is left of
:math:`K` turns in a plane, where the best angle has a closed form:

1. :math:`v` is the eigenvector of :math:`K^\top K` whose eigenvalue lies furthest from the other two. The deflation of
   ``_symmetric3_torch`` finds an isolated eigenvector to rounding. Where all eigenvalues are equal any vector will do.
2. :math:`a, b` complete :math:`v` to a right-handed frame. Where its eigenvalue is the largest,
   :math:`u = K v / |K v|`. Where it is the least, :math:`K v` may be 0 or point either way, and
   :math:`u = K a \times K b / |K a \times K b|`. Neither norm is small.
3. :math:`c, d` complete :math:`u`. The rotation maps :math:`v` to :math:`u`, and turns the plane by the angle whose
   cosine and sine are proportional to :math:`c \cdot K a + d \cdot K b` and :math:`d \cdot K a - c \cdot K b`.

The frames are right-handed, so the determinant is +1 by construction. Where a reflection is allowed, :math:`u` changes
its sign if that makes :math:`u \cdot K v` positive, and the plane is mirrored if that leaves more of :math:`K` in it.

Squaring :math:`K` costs digits of :math:`v`. This leaves a coupling of a few eps of the norm between the plane and its
normal, as if :math:`K` had been rounded. A choice is written as a `lerp` with a weight of 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast.linalg import _symmetric3_torch


def nearest(matrix: Tensor, allow_reflection: bool) -> Tensor:
    """The nearest rotations ``(D, D, N)``, D = 2 or 3; with ``allow_reflection`` the nearest orthogonal matrices.

    Args:
        matrix: float32 or float64, of any scale. NaN or infinity in a matrix gives NaN for it; 0 gives the identity.
    """
    scale, empty = _scale(matrix)
    scaled = matrix / scale  # NaN and infinity remain and make the whole result NaN
    scaled.diagonal().add_(empty[:, None])
    return _nearest2(scaled, allow_reflection) if len(matrix) == 2 else _nearest3(scaled, allow_reflection)


def backward(grad: Tensor, matrix: Tensor, rotation: Tensor, can_read: bool) -> Tensor:
    r"""Gradient for ``K`` from the gradient ``G`` for its rotation ``R``, damped where ``R`` jumps.

    ``K = R H`` with ``H`` symmetric gives :math:`dR = R\,[\omega]_\times` and
    :math:`(\operatorname{tr}(H) I - H)\,\omega = \operatorname{vee}(R^T dK - dK^T R)`. Hence
    :math:`\partial L/\partial K = R\,[z]_\times` with :math:`z = (\operatorname{tr}(H) I - H)^{-1}
    \operatorname{vee}(R^T G - G^T R)`. An eigenvalue ``a`` of that operator is inverted exactly while
    :math:`a \ge \delta = \sqrt\epsilon \max(1, \operatorname{tr} H)`. Below that, two rotations are about equally good
    and the derivative is nearly undefined; there the inverse falls linearly to 0: ``a / delta**2``. So the result is
    always finite, and at most ``1 / delta`` times the incoming gradient. At ``K = 0`` it is 0.

    ``can_read`` is passed to :func:`multicontrast.linalg._symmetric3_torch.solve`, which finds the eigenvectors of
    ``H``.
    """
    scale, empty = _scale(matrix)
    turned, stretch = _transposed_product(rotation, grad), _transposed_product(rotation, matrix / scale)
    if len(rotation) == 2:
        trace = stretch[0, 0] + stretch[1, 1]
        z = (turned[1, 0] - turned[0, 1]) * _damped_inverse(trace, trace, scale, empty)
        return torch.stack((rotation[:, 1] * z, rotation[:, 0] * -z), 1)
    values, vectors = _symmetric3_torch.solve(stretch.permute(2, 0, 1), can_read=can_read)
    values, axes = values.mT, vectors.permute(2, 1, 0)  # (3, N), (3, 3, N): axis i in row i
    twist = torch.stack((turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]))
    trace = values.sum(0)
    gaps = torch.stack((values[1] + values[2], values[0] + values[2], values[0] + values[1]))
    inverse = _damped_inverse(gaps, trace, scale, empty)
    z = (axes * ((axes * twist).sum(1) * inverse)[:, None]).sum(0)
    r1, r2, r3 = rotation.unbind(1)
    return torch.stack((r2 * z[2] - r3 * z[1], r3 * z[0] - r1 * z[2], r1 * z[1] - r2 * z[0]), 1)


def _scale(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each matrix, or 1 where that is 0; and whether it is 0."""
    scale = matrix.abs().amax((0, 1))
    empty = scale == 0
    return torch.where(empty, 1.0, scale), empty


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """``A' B`` of ``(D, D, N)``."""
    total = a[0][:, None] * b[0]
    for row, other in zip(a[1:], b[1:]):
        total.addcmul_(row[:, None], other)
    return total


def _damped_inverse(eigenvalues: Tensor, trace: Tensor, scale: Tensor, empty: Tensor) -> Tensor:
    limit = torch.finfo(trace.dtype).eps ** 0.5 * trace.clamp_min(1)
    inverse = eigenvalues / torch.maximum(eigenvalues, limit).square() / scale
    return torch.where(empty, 0.0, inverse)


def _nearest2(scaled: Tensor, allow_reflection: bool) -> Tensor:
    (a, b), (c, d) = scaled[0], scaled[1]
    cosine, sine, det = a + d, c - b, torch.ones_like(a)
    if allow_reflection:
        mirrored_cosine, mirrored_sine = a - d, c + b
        mirror = mirrored_cosine.square() + mirrored_sine.square() > cosine.square() + sine.square()
        cosine, sine = torch.where(mirror, mirrored_cosine, cosine), torch.where(mirror, mirrored_sine, sine)
        det = torch.where(mirror, -det, det)
    radius = torch.sqrt(cosine.square() + sine.square())  # tr H
    cosine = torch.where(radius == 0, 1.0, cosine / torch.where(radius == 0, 1.0, radius))
    sine = sine / torch.where(radius == 0, 1.0, radius)
    return torch.stack((torch.stack((cosine, -sine * det)), torch.stack((sine, cosine * det))))


def _nearest3(scaled: Tensor, allow_reflection: bool) -> Tensor:
    rotation, image = torch.empty_like(scaled), torch.empty_like(scaled)
    scratch = scaled.new_empty(_symmetric3_torch.PAIR_ROWS, scaled.shape[-1])
    _write_gram(scaled, scratch)
    _symmetric3_torch.shift_deviator(scratch)
    frame = v, a, b = _symmetric3_torch.isolate(scratch)
    rows = scratch[:9].unbind(0)
    top = _symmetric3_torch.is_positive(rows[8], out=rows[0])
    one = scaled.new_ones(1)
    columns = scaled.unbind(1)
    for vector, its_image in zip(frame, image):
        x, y, z = vector
        torch.mul(columns[0], x, out=its_image).addcmul_(columns[1], y).addcmul_(columns[2], z)

    u, c, d = rotation
    kv, ka, kb = image
    _cross(ka, kb, out=u)
    torch.lerp(u, kv, top, out=u)
    u.mul_(_dot(u, u, out=rows[1]).rsqrt_())
    _symmetric3_torch.complete(u, c, d, rows[1])
    cosine, sine = _dot(c, ka, out=rows[1]), _dot(d, ka, out=rows[2])
    dkb, ckb = _dot(d, kb, out=rows[3]), _dot(c, kb, out=rows[4])
    mirrored = _mirrored(cosine, sine, dkb, ckb, rows[5:]) if allow_reflection else None
    cosine.add_(dkb)
    sine.sub_(ckb)
    square = torch.mul(cosine, cosine, out=rows[3]).addcmul_(sine, sine)
    # The angle is 0 where all angles are equally good.
    lost = torch.le(square, one * (torch.finfo(scaled.dtype).eps / 8) ** 2, out=rows[4])
    cosine.add_(lost)
    inverse = square.add_(lost).rsqrt_()
    cosine.mul_(inverse)
    sine.mul_(inverse)
    if allow_reflection:
        u.mul_(torch.copysign(one, _dot(u, kv, out=rows[3]), out=rows[3]))
    torch.mul(c, cosine, out=ka).addcmul_(d, sine)
    torch.mul(d, cosine, out=kb).addcmul_(c, sine, value=-1)
    if mirrored is not None:
        kb.mul_(mirrored)
    kv.copy_(u)
    torch.mul(kv[:, None], v, out=rotation)
    return rotation.addcmul_(ka[:, None], a).addcmul_(kb[:, None], b)


def _mirrored(cka: Tensor, dka: Tensor, dkb: Tensor, ckb: Tensor, spare: Sequence[Tensor]) -> Tensor:
    """-1 where mirroring the plane is better, 1 elsewhere; the second vector is multiplied by it."""
    cosine, sine, best, other = spare
    torch.add(cka, dkb, out=cosine), torch.sub(dka, ckb, out=sine)
    torch.mul(cosine, cosine, out=best).addcmul_(sine, sine)
    torch.sub(cka, dkb, out=cosine), torch.add(dka, ckb, out=sine)
    torch.mul(cosine, cosine, out=other).addcmul_(sine, sine)
    sign = torch.copysign(best.new_ones(1), best.sub_(other), out=best)
    dkb.mul_(sign), ckb.mul_(sign)
    return sign


def _write_gram(k: Tensor, rows: Tensor) -> None:
    """The lower triangle of ``K' K``, in the order of `_symmetric3_torch.shift_deviator`."""
    first, second, third = (row.unbind(0) for row in k)
    for entry, i, j in zip(rows, (0, 1, 2, 1, 2, 2), (0, 1, 2, 0, 0, 1)):
        torch.mul(first[i], first[j], out=entry).addcmul_(second[i], second[j]).addcmul_(third[i], third[j])


def _dot(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    (a1, a2, a3), (b1, b2, b3) = a, b
    torch.mul(a1, b1, out=out)
    return out.addcmul_(a2, b2).addcmul_(a3, b3)


def _cross(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    (a1, a2, a3), (b1, b2, b3), (first, second, third) = a, b, out
    torch.mul(a2, b3, out=first).addcmul_(a3, b2, value=-1)
    torch.mul(a3, b1, out=second).addcmul_(a1, b3, value=-1)
    torch.mul(a1, b2, out=third).addcmul_(a2, b1, value=-1)
