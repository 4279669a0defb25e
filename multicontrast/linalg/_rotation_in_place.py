r"""Nearest proper rotation of 3x3 matrices without iteration, for values alone on a CPU, where calls are the cost.

For :math:`K = U \Sigma V^\top` one pair of singular vectors :math:`u, v` is split off, and what is left of :math:`K`
turns in a plane, where the best angle has a closed form:

1. :math:`v` is the eigenvector of :math:`K^\top K` whose eigenvalue lies furthest from the other two. Being isolated it
   is found to rounding: the eigenvalue by Halley's method for :math:`y^3 - 3y - 2z = 0`, the vector as a column of the
   adjugate. Where all eigenvalues are equal any vector will do.
2. :math:`a, b` complete :math:`v` to a right-handed frame. Where its eigenvalue is the largest,
   :math:`u = K v / |K v|`. Where it is the least, :math:`K v` may be 0 or point either way, and
   :math:`u = K a \times K b / |K a \times K b|`. Neither norm is small.
3. :math:`c, d` complete :math:`u`. The rotation maps :math:`v` to :math:`u`, and turns the plane by the angle whose
   cosine and sine are as :math:`c \cdot K a + d \cdot K b` to :math:`d \cdot K a - c \cdot K b`.

The frames are right-handed, so the determinant is +1 by construction. The digits of :math:`v` that squaring :math:`K`
costs leave a coupling of a few eps of the norm between the plane and its normal, as if :math:`K` had been rounded: the
error is that of the one-sided Jacobi iteration of ``_rotation_torch``, in half the calls. No branch looks at the data:
a choice is a `lerp` with a weight of 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.linalg._rotation_torch import normalise

_START = (1.73278693, 0.31965601, -0.05291877)  # of y in [sqrt 3, 2], a parabola in z: within 7.4e-4
_STEPS = {torch.float32: 1, torch.float64: 2}


def rotation3(matrix: Tensor, buffers: Workspace) -> Tensor:
    """The rotation ``(3, 3, N)`` nearest to matrices ``(3, 3, N)`` of any scale, in the buffers.

    NaN or infinity in a matrix gives NaN for it alone; 0 gives the identity. The error is that of `proper_rotation`.
    """
    scaled, _ = normalise(matrix, buffers)
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
    for value, sign, first, second in ((cosine, 1.0, d, kb), (sine, -1.0, c, kb)):
        for p, q in zip(first, second):
            value.addcmul_(p, q, value=sign)
    square = torch.mul(cosine, cosine, out=rows[3]).addcmul_(sine, sine)
    # Where no angle is better than another, 0.
    lost = torch.le(square, one * (torch.finfo(scaled.dtype).eps / 8) ** 2, out=rows[4])
    cosine.add_(lost)
    inverse = square.add_(lost).rsqrt_()
    cosine.mul_(inverse)
    sine.mul_(inverse)
    torch.mul(c, cosine, out=ka).addcmul_(d, sine)
    torch.mul(d, cosine, out=kb).addcmul_(c, sine, value=-1)
    kv.copy_(u)
    a, b = plane
    torch.mul(kv[:, None], v, out=rotation)
    return rotation.addcmul_(ka[:, None], a).addcmul_(kb[:, None], b)


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
