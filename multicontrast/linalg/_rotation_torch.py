r"""Nearest proper rotation of small matrices, in plain PyTorch, without iteration.

Matrices are ``(D, D, N)``: each scalar of the algorithm is a contiguous vector over the batch, and every step is in place,
for passes over memory and the calls that start them are the cost. No LAPACK, no branch on data, no host synchronisation;
a matrix that holds NaN spoils its own result and no other.

For :math:`K = U \Sigma V^\top` of size 3 one pair of singular vectors :math:`u, v` is split off, and what is left of
:math:`K` turns in a plane, where the best angle has a closed form:

1. :math:`v` is the eigenvector of :math:`K^\top K` whose eigenvalue lies furthest from the other two. Being isolated it
   is found to rounding: the eigenvalue by Halley's method for :math:`y^3 - 3y - 2z = 0`, the vector as a column of the
   adjugate. Where all eigenvalues are equal any vector will do.
2. :math:`a, b` complete :math:`v` to a right-handed frame. Where its eigenvalue is the largest,
   :math:`u = K v / |K v|`. Where it is the least, :math:`K v` may be 0 or point either way, and
   :math:`u = K a \times K b / |K a \times K b|`. Neither norm is small.
3. :math:`c, d` complete :math:`u`. The rotation maps :math:`v` to :math:`u`, and turns the plane by the angle whose
   cosine and sine are as :math:`c \cdot K a + d \cdot K b` to :math:`d \cdot K a - c \cdot K b`.

The frames are right-handed, so the determinant is +1 by construction. Where a reflection is allowed, :math:`u` changes
its sign if that makes :math:`u \cdot K v` positive, and the plane is mirrored if that leaves more of :math:`K` in it. The
digits of :math:`v` that squaring :math:`K` costs leave a coupling of a few eps of the norm between the plane and its
normal, as if :math:`K` had been rounded. A choice is a `lerp` with a weight of 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.linalg import _symmetric3_torch

_START = (1.73278693, 0.31965601, -0.05291877)  # of y in [sqrt 3, 2], a parabola in z: within 7.4e-4
_STEPS = {torch.float32: 1, torch.float64: 2}


def nearest(matrix: Tensor, allow_reflection: bool, buffers: Workspace | None = None) -> Tensor:
    """The rotation ``(D, D, N)`` nearest to each of ``(D, D, N)``, D = 2 or 3; of either sign with ``allow_reflection``.

    Args:
        matrix: float32 or float64, of any scale. NaN or infinity in a matrix gives NaN for it; 0 gives the identity.
        buffers: where a 3x3 result is made, to be overwritten by the next call with the same; None for new memory.
    """
    if len(matrix) == 2:
        scale, empty = _scale(matrix)
        scaled = matrix / scale
        scaled.diagonal().add_(empty[:, None])
        return _nearest2(scaled, allow_reflection)
    buffers = Workspace() if buffers is None else buffers
    return _nearest3(_normalise(matrix, buffers), allow_reflection, buffers)


def backward(grad: Tensor, matrix: Tensor, rotation: Tensor, may_look: bool) -> Tensor:
    r"""Gradient for ``K`` from the gradient ``G`` for its rotation ``R``, damped where ``R`` jumps.

    ``K = R H`` with ``H`` symmetric gives :math:`dR = R\,[\omega]_\times` and
    :math:`(\operatorname{tr}(H) I - H)\,\omega = \operatorname{vee}(R^T dK - dK^T R)`. Hence
    :math:`\partial L/\partial K = R\,[z]_\times` with :math:`z = (\operatorname{tr}(H) I - H)^{-1}
    \operatorname{vee}(R^T G - G^T R)`. An eigenvalue ``a`` of that operator is inverted exactly while
    :math:`a \ge \delta = \sqrt\epsilon \max(1, \operatorname{tr} H)`; below, where two rotations are about
    equally good and the derivative is about to be undefined, its inverse falls linearly to 0: ``a / delta**2``. So the
    result is always finite, and at most ``1 / delta`` times the gradient that came. At ``K = 0`` it is 0.

    ``may_look`` is that of :func:`multicontrast.linalg._symmetric3_torch.solve`, which finds the eigenvectors of ``H``.
    """
    scale, empty = _scale(matrix)
    turned, stretch = ((rotation[:, :, None] * other[:, None]).sum(0) for other in (grad, matrix / scale))
    if len(rotation) == 2:
        trace = stretch[0, 0] + stretch[1, 1]
        z = (turned[1, 0] - turned[0, 1]) * _damped_inverse(trace, trace, scale, empty)
        return torch.stack((rotation[:, 1] * z, rotation[:, 0] * -z), 1)
    values, vectors = _symmetric3_torch.solve(stretch.permute(2, 0, 1), True, may_look)
    assert vectors is not None  # they were asked for
    values, axes = values.mT, vectors.permute(2, 1, 0)  # (3, N), (3, 3, N): axis i in row i
    twist = torch.stack((turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]))
    trace = values.sum(0)
    gaps = torch.stack((values[1] + values[2], values[0] + values[2], values[0] + values[1]))
    inverse = _damped_inverse(gaps, trace, scale, empty)
    z = (axes * ((axes * twist).sum(1) * inverse)[:, None]).sum(0)
    r1, r2, r3 = rotation.unbind(1)
    return torch.stack((r2 * z[2] - r3 * z[1], r3 * z[0] - r1 * z[2], r1 * z[1] - r2 * z[0]), 1)


def _scale(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each matrix, 1 where that is 0; and whether it is."""
    scale = matrix.abs().amax((0, 1))
    empty = scale == 0
    return torch.where(empty, 1.0, scale), empty


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


def _normalise(matrix: Tensor, buffers: Workspace) -> Tensor:
    """``(3, 3, N)`` over its largest magnitude, in the buffers. A matrix of 0 becomes the identity."""
    scaled = buffers.take("scaled", tuple(matrix.shape), matrix)
    scale, empty = buffers.take("scales", (2, matrix.shape[-1]), matrix)
    torch.amax(torch.abs(matrix, out=scaled), (0, 1), out=scale)
    scale.add_(torch.eq(scale, scale.new_zeros(1), out=empty))
    torch.div(matrix, scale, out=scaled)  # NaN and infinity stay, and spoil the whole matrix
    for k in range(3):
        scaled[k, k].add_(empty)
    return scaled


def _nearest3(scaled: Tensor, allow_reflection: bool, buffers: Workspace) -> Tensor:
    shape, count = tuple(scaled.shape), scaled.shape[-1]
    rotation = buffers.take("rotation", shape, scaled)
    frame, image = buffers.take("frame", shape, scaled), buffers.take("image", shape, scaled)
    rows = buffers.take("rows", (13, count), scaled).unbind(0)
    one = scaled.new_ones(1)

    v, plane = frame[0], frame[1:]
    top = _isolated_eigenvector(scaled, v, rows, one)
    _complete(v, plane, rows[1:4], one)
    columns = scaled.unbind(1)
    for vector, its_image in zip(frame, image):
        x, y, z = vector
        torch.mul(columns[0], x, out=its_image).addcmul_(columns[1], y).addcmul_(columns[2], z)

    u, turned = rotation[0], rotation[1:]
    kv, ka, kb = image
    _cross(ka, kb, out=u)
    torch.lerp(u, kv, top, out=u)
    u.mul_(_dot(u, u, out=rows[1]).rsqrt_())
    _complete(u, turned, rows[1:4], one)
    c, d = turned
    cosine, sine = _dot(c, ka, out=rows[1]), _dot(d, ka, out=rows[2])
    dkb, ckb = _dot(d, kb, out=rows[3]), _dot(c, kb, out=rows[4])
    mirrored = _mirrored(cosine, sine, dkb, ckb, rows[5:9]) if allow_reflection else None
    cosine.add_(dkb)
    sine.sub_(ckb)
    square = torch.mul(cosine, cosine, out=rows[3]).addcmul_(sine, sine)
    # Where no angle is better than another, 0.
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
    a, b = plane
    torch.mul(kv[:, None], v, out=rotation)
    return rotation.addcmul_(ka[:, None], a).addcmul_(kb[:, None], b)


def _mirrored(cka: Tensor, dka: Tensor, dkb: Tensor, ckb: Tensor, spare: Sequence[Tensor]) -> Tensor:
    """-1 where the plane is better mirrored, and there the second vector changes its sign; 1 elsewhere."""
    cosine, sine, best, other = spare
    torch.add(cka, dkb, out=cosine), torch.sub(dka, ckb, out=sine)
    torch.mul(cosine, cosine, out=best).addcmul_(sine, sine)
    torch.sub(cka, dkb, out=cosine), torch.add(dka, ckb, out=sine)
    torch.mul(cosine, cosine, out=other).addcmul_(sine, sine)
    sign = torch.copysign(best.new_ones(1), best.sub_(other), out=best)
    dkb.mul_(sign), ckb.mul_(sign)
    return sign


def _isolated_eigenvector(k: Tensor, v: Tensor, rows: Sequence[Tensor], one: Tensor) -> Tensor:
    """Writes the unit vector ``v`` ``(3, N)``; returns 1 where its eigenvalue is the largest and 0 where the least."""
    eps, tiny = torch.finfo(k.dtype).eps, torch.finfo(k.dtype).tiny
    top, d0, d1, d2, o01, o02, o12, *spare = rows
    entries = [row.unbind(0) for row in k]
    for g, i, j in ((d0, 0, 0), (d1, 1, 1), (d2, 2, 2), (o01, 0, 1), (o02, 0, 2), (o12, 1, 2)):
        torch.mul(entries[0][i], entries[0][j], out=g)
        g.addcmul_(entries[1][i], entries[1][j]).addcmul_(entries[2][i], entries[2][j])
    third = torch.add(d0, d1, out=spare[0]).add_(d2)
    for d in (d0, d1, d2):
        d.add_(third, alpha=-1 / 3)

    # Eigenvalues of this deviator are r y: r^2 from its norm, y from its determinant.
    square = torch.mul(d0, d0, out=spare[0]).addcmul_(d1, d1).addcmul_(d2, d2)
    square.addcmul_(o01, o01, value=2).addcmul_(o02, o02, value=2).addcmul_(o12, o12, value=2)
    square.mul_(one / 6)
    r = torch.sqrt(square, out=spare[1])
    det = torch.mul(d1, d2, out=spare[2]).addcmul_(o12, o12, value=-1).mul_(d0)
    minor = torch.mul(o12, o02, out=spare[3]).addcmul_(o01, d2, value=-1)
    det.addcmul_(o01, minor)
    torch.mul(o01, o12, out=minor).addcmul_(d1, o02, value=-1)
    det.addcmul_(o02, minor)
    cube = square.mul_(r).add_(one, alpha=tiny)
    z = torch.div(det, cube, out=spare[3]).abs_().mul_(one / 2).clamp_(max=1.0)
    slope = torch.add(one * _START[1], z, alpha=_START[2], out=cube)
    y = torch.addcmul(one * _START[0], slope, z, out=spare[4])
    for _ in range(_STEPS[k.dtype]):
        g = torch.mul(y, y, out=cube)
        f = torch.mul(g, y, out=spare[5]).add_(y, alpha=-3).add_(z, alpha=-2)
        g.sub_(one)
        below = torch.mul(f, y, out=top).addcmul_(g, g, value=-3)
        y.addcdiv_(f.mul_(g), below)
    eta = y.mul_(r).copysign_(det)
    torch.ge(det, torch.zeros_like(one), out=top)
    for d in (d0, d1, d2):
        d.sub_(eta)

    # The adjugate, positive semidefinite of rank 1; its column with the largest entry on the diagonal.
    a00, a11, a22, a01, a02, a12 = spare[:6]
    for diagonal, p, q, o in ((a00, d1, d2, o12), (a11, d0, d2, o02), (a22, d0, d1, o01)):
        torch.mul(p, q, out=diagonal).addcmul_(o, o, value=-1)
    for entry, p, q, o, d in ((a01, o02, o12, o01, d2), (a02, o01, o12, o02, d1), (a12, o01, o02, o12, d0)):
        torch.mul(p, q, out=entry).addcmul_(o, d, value=-1)
    choice, largest = d0, d1
    v0, v1, v2 = v
    torch.lt(a00, a11, out=choice)
    for entry, p, q in ((v0, a00, a01), (v1, a01, a11), (v2, a02, a12)):
        torch.lerp(p, q, choice, out=entry)
    torch.maximum(a00, a11, out=largest)
    torch.lt(largest, a22, out=choice)
    for entry, q in ((v0, a02), (v1, a12), (v2, a22)):
        torch.lerp(entry, q, choice, out=entry)
    torch.maximum(largest, a22, out=largest)
    lost = torch.le(largest, one * (eps / 4) ** 2, out=largest)
    length = _dot(v, v, out=choice).add_(lost)
    v.mul_(length.rsqrt_())
    v2.add_(lost)
    return top


def _complete(normal: Tensor, plane: Tensor, spare: Sequence[Tensor], one: Tensor) -> None:
    """Two vectors ``(2, 3, N)`` that make a right-handed frame with a unit vector, which comes last.

    Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017.
    """
    x, y, z = normal
    (a0, a1, a2), (b0, b1, b2) = plane[0], plane[1]
    sign, inverse, share = spare
    torch.copysign(one, z, out=sign)
    torch.add(sign, z, out=inverse).reciprocal_().neg_()
    torch.mul(x, inverse, out=share)
    torch.mul(share, y, out=b0)
    torch.mul(sign, b0, out=a1)
    torch.mul(sign, x, out=a2)
    torch.addcmul(one, a2, share, out=a0)
    a2.neg_()
    torch.addcmul(sign, torch.mul(y, inverse, out=share), y, out=b1)
    torch.neg(y, out=b2)


def _dot(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    (a1, a2, a3), (b1, b2, b3) = a, b
    torch.mul(a1, b1, out=out)
    return out.addcmul_(a2, b2).addcmul_(a3, b3)


def _cross(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    (a1, a2, a3), (b1, b2, b3), (first, second, third) = a, b, out
    torch.mul(a2, b3, out=first).addcmul_(a3, b2, value=-1)
    torch.mul(a3, b1, out=second).addcmul_(a1, b3, value=-1)
    torch.mul(a1, b2, out=third).addcmul_(a2, b1, value=-1)
