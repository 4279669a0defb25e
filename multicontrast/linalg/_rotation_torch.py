"""Nearest proper rotation of small matrices, in plain PyTorch: one-sided Jacobi, batch innermost.

Everything here is laid out ``(rows, columns, N)``: each scalar of the algorithm is a contiguous vector over the batch,
so every step is a few vectorised passes. No LAPACK, no branch on data, no host synchronisation, and nothing that can
fail to converge; a matrix that holds NaN spoils its own result and no other.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

# How many column pairs are rotated, in cyclic order. Jacobi converges cubically here: after one pair less the columns
# of some matrix in a million are still visibly oblique, after one more nothing changes.
_PAIRS = ((0, 1), (0, 2), (1, 2))
_ROTATIONS = {torch.float32: 12, torch.float64: 13}


class Polar(NamedTuple):
    """``K = scale * R H``: the rotation, and what its derivative needs of the symmetric ``H``."""

    rotation: Tensor  # (D, D, N)
    axes: tuple[Tensor, ...]  # three (3, N): the eigenvectors of H; none for D = 2, where they do not matter
    scaled: Tensor  # (D, D, N): K over the scale
    scale: Tensor  # (N,): the largest |entry| of K; 0 where K = 0


def polar(matrix: Tensor, allow_reflection: bool) -> Polar:
    """The ``R`` with ``det R = +1`` that maximises ``<R, K>``; of either sign with ``allow_reflection``.

    Args:
        matrix: ``(2, 2, N)`` or ``(3, 3, N)``, float32 or float64, of any scale.
        allow_reflection: whether ``det R = -1`` may win.
    """
    scale = matrix.abs().amax((0, 1))
    empty = scale == 0
    scaled = matrix / torch.where(empty, 1.0, scale)  # NaN and infinity stay, and spoil the whole matrix
    scaled.diagonal().add_(empty[:, None])  # K = 0: as for the identity
    rotation, axes = (_polar2 if len(matrix) == 2 else _polar3)(scaled, allow_reflection)
    return Polar(rotation, axes, scaled, scale)


def polar_backward(grad: Tensor, polar: Polar) -> Tensor:
    r"""Gradient for ``K`` from the gradient ``G`` for ``R``, damped where ``R`` jumps.

    ``K = R H`` with ``H`` symmetric gives :math:`dR = R\,[\omega]_\times` and
    :math:`(\operatorname{tr}(H) I - H)\,\omega = \operatorname{vee}(R^T dK - dK^T R)`. Hence
    :math:`\partial L/\partial K = R\,[z]_\times` with :math:`z = (\operatorname{tr}(H) I - H)^{-1}
    \operatorname{vee}(R^T G - G^T R)`. An eigenvalue ``a`` of that operator is inverted exactly while
    :math:`a \ge \delta = \sqrt\epsilon \max(1, \operatorname{tr} H)`; below, where two rotations are about
    equally good and the derivative is about to be undefined, its inverse falls linearly to 0: ``a / delta**2``. So the
    result is always finite, and at most ``1 / delta`` times the gradient that came. At ``K = 0`` it is 0.
    """
    rotation, scaled, scale = polar.rotation, polar.scaled, polar.scale
    turned = (rotation[:, :, None] * grad[:, None]).sum(0)  # R^T G
    if len(rotation) == 2:
        trace = (rotation * scaled).sum((0, 1))
        z = (turned[1, 0] - turned[0, 1]) * _damped_inverse(trace, trace, scale)
        return torch.stack((rotation[:, 1] * z, rotation[:, 0] * -z), 1)
    axes = torch.stack(polar.axes)
    twist = torch.stack((turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]))
    left = (rotation[None] * axes[:, None]).sum(2)  # row i: u_i = R v_i
    sigma = (left[:, :, None] * scaled[None] * axes[:, None]).sum((1, 2))  # u_i . K v_i; the last may be negative
    trace = sigma.sum(0)
    gaps = torch.stack((sigma[1] + sigma[2], sigma[0] + sigma[2], sigma[0] + sigma[1]))
    inverse = _damped_inverse(gaps, trace, scale)
    z = (axes * ((axes * twist).sum(1) * inverse)[:, None]).sum(0)
    r1, r2, r3 = rotation.unbind(1)
    return torch.stack((r2 * z[2] - r3 * z[1], r3 * z[0] - r1 * z[2], r1 * z[1] - r2 * z[0]), 1)


def _damped_inverse(eigenvalues: Tensor, trace: Tensor, scale: Tensor) -> Tensor:
    limit = torch.finfo(trace.dtype).eps ** 0.5 * trace.clamp_min(1)
    inverse = eigenvalues / torch.maximum(eigenvalues, limit).square() / torch.where(scale == 0, 1.0, scale)
    return torch.where(scale == 0, 0.0, inverse)


def _polar2(scaled: Tensor, allow_reflection: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
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
    rotation = torch.stack((torch.stack((cosine, -sine * det)), torch.stack((sine, cosine * det))))
    return rotation, ()


def _polar3(scaled: Tensor, allow_reflection: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    noise = 4 * torch.finfo(scaled.dtype).eps
    first, norm1, second, norm2 = _orthogonalise(scaled)  # sigma_1 u_1 and sigma_2 u_2
    u1 = first / norm1
    u2 = torch.where(norm2 <= noise * norm1, _any_normal(u1), second / norm2)
    u3 = _cross(u1, u2)

    image = _transposed_product(scaled, u1)
    norm1 = _norm(image)
    v1 = image / norm1
    image = _transposed_product(scaled, u2)
    # One projection is enough: the image is normal to v1 but for rounding, and what is left is rounding of that.
    image = torch.addcmul(image, v1, _dot(v1, image), value=-1)
    norm2 = _norm(image)
    v2 = torch.where(norm2 <= noise * norm1, _any_normal(v1), image / norm2)
    v3 = _cross(v1, v2)  # det U = det V = 1, so det R = 1 by construction
    if allow_reflection:
        sigma3 = _dot(v3, _transposed_product(scaled, u3))
        u3 = torch.where(sigma3 < 0, -u3, u3)

    rotation = u1[:, None] * v1
    rotation.addcmul_(u2[:, None], v2[None]).addcmul_(u3[:, None], v3[None])
    return rotation, (v1, v2, v3)


def _orthogonalise(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotates the columns until they are orthogonal: the longest ``(3, N)``, its norm, the second and its norm."""
    columns = list(matrix.unbind(1))
    tiny, one = torch.finfo(matrix.dtype).tiny, matrix.new_ones(1)
    for first, second in itertools.islice(itertools.cycle(_PAIRS), _ROTATIONS[matrix.dtype]):
        p, q = columns[first], columns[second]
        inner = _dot(p, q)
        difference = (q * q).addcmul_(p, p, value=-1).sum(0)
        # Half the tangent of the smaller angle that makes p and q orthogonal; `tiny` is for 0 / 0, too small to matter.
        root = (difference * difference).addcmul_(inner, inner, value=4).sqrt_().add_(tiny)
        half_tangent = inner.div_(root.copysign_(difference).add_(difference))
        cosine = torch.addcmul(one, half_tangent, half_tangent, value=4).rsqrt_()
        half_sine = half_tangent.mul_(cosine)
        columns[first] = (p * cosine).addcmul_(q, half_sine, value=-2)
        columns[second] = (q * cosine).addcmul_(p, half_sine, value=2)
    a, b, c = columns
    aa, bb, cc = (_norm(column) for column in columns)
    swap = aa < bb
    a, b, aa, bb = torch.where(swap, b, a), torch.where(swap, a, b), torch.maximum(aa, bb), torch.minimum(aa, bb)
    swap = aa < cc
    a, c, aa, cc = torch.where(swap, c, a), torch.where(swap, a, c), torch.maximum(aa, cc), torch.minimum(aa, cc)
    return a, aa, torch.where(bb < cc, c, b), torch.maximum(bb, cc)


def _any_normal(unit: Tensor) -> Tensor:
    """A unit vector normal to ``unit``: Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017."""
    x, y, z = unit.unbind(0)
    a = x / (-1 - z.abs())
    return torch.stack((a * x + 1, a * y, x * -torch.copysign(torch.ones_like(z), z)))


def _transposed_product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[:, None]).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt_()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.cat((a, a)), torch.cat((b, b))
    return (a[1:4] * b[2:5]).addcmul_(a[2:5], b[1:4], value=-1)
