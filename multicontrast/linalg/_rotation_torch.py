"""Nearest proper rotation of small matrices, in plain PyTorch: one-sided Jacobi, batch innermost.

Everything here is laid out ``(rows, columns, N)``: each scalar of the algorithm is a contiguous vector over the batch,
so every step is a few vectorised passes. No LAPACK, no branch on data, no host synchronisation, and nothing that can
fail to converge; a matrix that holds NaN spoils its own result and no other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The last sweep that still changes a result, over random, graded and nearly equal columns, and none to spare:
# Jacobi converges quadratically, and the test of accuracy fails with one sweep less.
_SWEEPS = {torch.float32: 4, torch.float64: 5}


class Polar(NamedTuple):
    """``K = R H``: the rotation, and what its derivative needs of the symmetric ``H``."""

    rotation: Tensor  # (D, D, N)
    axes: Tensor  # (D, D, N): row i is the i-th eigenvector of H
    gaps: Tensor  # (D, N), (1, N) for D = 2: eigenvalues of tr(H) I - H, of the scaled K
    scale: Tensor  # (N,): the largest |entry| of K, by which K is divided; 1 where K = 0


def polar(matrix: Tensor, allow_reflection: bool) -> Polar:
    """The ``R`` with ``det R = +1`` that maximises ``<R, K>``; of either sign with ``allow_reflection``.

    Args:
        matrix: ``(2, 2, N)`` or ``(3, 3, N)``, float32 or float64, of any scale.
        allow_reflection: whether ``det R = -1`` may win.
    """
    scale = matrix.abs().amax((0, 1))
    scale = torch.where(scale == 0, 1.0, scale)  # NaN and infinity stay, and spoil the whole matrix
    return (_polar2 if len(matrix) == 2 else _polar3)(matrix / scale, scale, allow_reflection)


def polar_backward(grad: Tensor, polar: Polar) -> Tensor:
    r"""Gradient for ``K`` from the gradient ``G`` for ``R``, damped where ``R`` jumps.

    ``K = R H`` with ``H`` symmetric gives :math:`dR = R\,[\omega]_\times` and
    :math:`(\operatorname{tr}(H) I - H)\,\omega = \operatorname{vee}(R^T dK - dK^T R)`. Hence
    :math:`\partial L/\partial K = R\,[z]_\times` with :math:`z = (\operatorname{tr}(H) I - H)^{-1}
    \operatorname{vee}(R^T G - G^T R)`. An eigenvalue ``a`` of the operator is inverted exactly while
    :math:`a \ge \delta = \sqrt\epsilon \operatorname{tr} H`; below, where two rotations are about equally good and the
    derivative is about to be undefined, its inverse falls linearly to 0: ``a / delta**2``. So the result is always
    finite, and at most ``1 / delta`` times the gradient that came.
    """
    rotation, axes, gaps, scale = polar
    size = len(rotation)
    turned = (rotation[:, :, None] * grad[:, None, :]).sum(0)  # R^T G
    trace = gaps.sum(0) / max(size - 1, 1)
    limit = torch.finfo(grad.dtype).eps ** 0.5 * trace.clamp_min(1)
    inverse = gaps / torch.maximum(gaps, limit).square() / scale
    if size == 2:
        z = (turned[1, 0] - turned[0, 1]) * inverse[0]
        return torch.stack((rotation[:, 1] * z, rotation[:, 0] * -z), 1)
    twist = torch.stack((turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]))
    z = (axes * ((axes * twist).sum(1) * inverse)[:, None]).sum(0)
    r1, r2, r3 = rotation.unbind(1)
    return torch.stack((r2 * z[2] - r3 * z[1], r3 * z[0] - r1 * z[2], r1 * z[1] - r2 * z[0]), 1)


def _polar2(scaled: Tensor, scale: Tensor, allow_reflection: bool) -> Polar:
    (a, b), (c, d) = scaled[0], scaled[1]
    cosine, sine, det = a + d, c - b, torch.ones_like(a)
    if allow_reflection:
        mirrored_cosine, mirrored_sine = a - d, c + b
        mirror = mirrored_cosine.square() + mirrored_sine.square() > cosine.square() + sine.square()
        cosine, sine = torch.where(mirror, mirrored_cosine, cosine), torch.where(mirror, mirrored_sine, sine)
        det = torch.where(mirror, -det, det)
    radius = torch.sqrt(cosine.square() + sine.square())  # tr H
    safe = torch.where(radius == 0, 1.0, radius)
    cosine, sine = torch.where(radius == 0, 1.0, cosine / safe), sine / safe
    rotation = torch.stack((torch.stack((cosine, -sine * det)), torch.stack((sine, cosine * det))))
    return Polar(rotation, torch.empty_like(rotation), radius[None], scale)


def _polar3(scaled: Tensor, scale: Tensor, allow_reflection: bool) -> Polar:
    p, q = _orthogonalise(scaled)  # sigma_1 u_1 and sigma_2 u_2, sigma_1 >= sigma_2 >= sigma_3

    zero = torch.zeros_like(p)
    zero[0] = 1
    norm_p = _norm(p)
    u1 = torch.where(norm_p == 0, zero, p / norm_p)  # K = 0: the identity
    u2 = _second_axis(u1, q, norm_p)
    u3 = _cross(u1, u2)

    w1 = _transposed_product(scaled, u1)
    sigma1 = _norm(w1)
    v1 = torch.where(sigma1 == 0, zero, w1 / sigma1)
    w2 = _transposed_product(scaled, u2)
    v2 = _second_axis(v1, w2, sigma1)
    v3 = _cross(v1, v2)  # det U = det V = 1, so det R = 1 by construction
    sigma2 = _dot(v2, w2)
    sigma3 = _dot(v3, _transposed_product(scaled, u3))  # negative where K reflects
    if allow_reflection:
        sign = torch.where(sigma3 < 0, -torch.ones_like(sigma3), torch.ones_like(sigma3))
        u3, sigma3 = u3 * sign, sigma3 * sign

    rotation = u1[:, None] * v1
    rotation.addcmul_(u2[:, None], v2[None]).addcmul_(u3[:, None], v3[None])
    gaps = torch.stack((sigma2 + sigma3, sigma1 + sigma3, sigma1 + sigma2))
    return Polar(rotation, torch.stack((v1, v2, v3)), gaps, scale)


def _orthogonalise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates the columns until they are orthogonal; returns the longest and the second longest, ``(3, N)`` each."""
    columns = list(matrix.transpose(0, 1).contiguous().unbind(0))
    tiny = torch.finfo(matrix.dtype).tiny
    for _ in range(_SWEEPS[matrix.dtype]):
        for first, second in ((0, 1), (0, 2), (1, 2)):
            p, q = columns[first], columns[second]
            twice = 2 * _dot(p, q)
            difference = _dot(q - p, q + p)
            # t = tan of the smaller angle that makes p and q orthogonal; `tiny` is for 0 / 0, and too small to matter
            root = torch.sqrt(difference.square().addcmul_(twice, twice)).add_(tiny)
            tangent = twice.div_(difference + torch.copysign(root, difference))
            cosine = torch.rsqrt(1 + tangent.square())
            sine = tangent.mul_(cosine)
            columns[first], columns[second] = cosine * p - sine * q, sine * p + cosine * q
    norms = [_dot(column, column) for column in columns]
    for first, second in ((0, 1), (1, 2), (0, 1)):
        swap = norms[first] < norms[second]
        for values in (columns, norms):
            a, b = values[first], values[second]
            values[first], values[second] = torch.where(swap, b, a), torch.where(swap, a, b)
    return columns[0], columns[1]


def _second_axis(first: Tensor, candidate: Tensor, longest: Tensor) -> Tensor:
    """``candidate`` made normal to the unit vector ``first``; any unit normal where it is only rounding noise."""
    rest = torch.addcmul(candidate, first, _dot(first, candidate), value=-1)
    length = _norm(rest)
    noise = length <= 4 * torch.finfo(first.dtype).eps * longest
    unit = rest / torch.where(length == 0, 1.0, length)
    # Once more: what the first subtraction left along `first` is large when little else remained.
    unit = torch.addcmul(unit, first, _dot(first, unit), value=-1)
    unit = unit / _norm(unit)
    return torch.where(noise, _any_normal(first), unit)


def _any_normal(unit: Tensor) -> Tensor:
    """A unit vector normal to ``unit``: Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017."""
    x, y, z = unit.unbind(0)
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    return torch.stack((1 + sign * x * x * a, sign * x * y * a, -sign * x))


def _transposed_product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[:, None]).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack((a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]))
