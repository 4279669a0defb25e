"""Nearest proper rotation of small matrices, in plain PyTorch: one-sided Jacobi, batch innermost.

Everything here is laid out ``(rows, columns, N)``: each scalar of the algorithm is a contiguous vector over the batch,
so every step is a few vectorised passes. No LAPACK, no branch on data, no host synchronisation, and nothing that can
fail to converge; a matrix that holds NaN spoils its own result and no other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast._workspace import Workspace

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


def polar(matrix: Tensor, allow_reflection: bool, buffers: Workspace | None = None) -> Polar:
    """The ``R`` with ``det R = +1`` that maximises ``<R, K>``; of either sign with ``allow_reflection``.

    Args:
        matrix: ``(2, 2, N)`` or ``(3, 3, N)``, float32 or float64, of any scale.
        allow_reflection: whether ``det R = -1`` may win.
        buffers: where a 3x3 result is made, to be overwritten by the next call with the same; None for new memory.
    """
    if len(matrix) == 2:
        scale = matrix.abs().amax((0, 1))
        empty = scale == 0
        scaled = matrix / torch.where(empty, 1.0, scale)  # NaN and infinity stay, and spoil the whole matrix
        scaled.diagonal().add_(empty[:, None])  # K = 0: as for the identity
        return Polar(_polar2(scaled, allow_reflection), (), scaled, scale)
    buffers = Workspace() if buffers is None else buffers
    scaled, scale = normalise(matrix, buffers)
    rotation, axes = _polar3(scaled, allow_reflection, buffers)
    return Polar(rotation, axes, scaled, scale)


def normalise(matrix: Tensor, buffers: Workspace) -> tuple[Tensor, Tensor]:
    """``(3, 3, N)`` over its largest |entry|, and that ``(N,)``; in the buffers. A matrix of 0 becomes the identity."""
    scaled = buffers.take("scaled", tuple(matrix.shape), matrix)
    scale, empty, divisor = buffers.take("scales", (3, matrix.shape[-1]), matrix)
    torch.amax(torch.abs(matrix, out=scaled), (0, 1), out=scale)
    torch.add(scale, torch.eq(scale, scale.new_zeros(1), out=empty), out=divisor)
    torch.div(matrix, divisor, out=scaled)  # NaN and infinity stay, and spoil the whole matrix
    for k in range(3):
        scaled[k, k].add_(empty)
    return scaled, scale


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


def _polar2(scaled: Tensor, allow_reflection: bool) -> Tensor:
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


# In place from here on: what it costs is passes over memory, the calls that start them, and most of all new memory.
# Where a choice depends on data it is a `lerp` with a weight of 0 or 1: exact, and several times as fast as `where`.


def _polar3(scaled: Tensor, allow_reflection: bool, buffers: Workspace) -> tuple[Tensor, tuple[Tensor, ...]]:
    noise = 4 * torch.finfo(scaled.dtype).eps
    shape = tuple(scaled.shape)
    columns, axes, rotation = (buffers.take(name, shape, scaled) for name in ("columns", "axes", "rotation"))
    rows = buffers.take("rows", (4, shape[-1]), scaled).unbind(0)
    spare = rotation[0], rotation[1, 0]  # it is written last

    norm1, norm2 = _orthogonalise(columns.copy_(scaled.transpose(0, 1)), spare[0], rows)
    u1, u2, u3 = columns
    u1.div_(norm1)
    _unit_or_any(u2, norm2, norm1.mul_(noise), u1, *spare)
    _cross(u1, u2, out=u3)

    v1, v2, v3 = axes
    _transposed_product(scaled, u1, out=v1)
    v1.div_(_norm(v1, out=norm1))
    _transposed_product(scaled, u2, out=v2)
    # One projection is enough: the image is normal to v1 but for rounding, and what is left is rounding of that.
    v2.addcmul_(v1, _dot(v1, v2, out=norm2), value=-1)
    _unit_or_any(v2, _norm(v2, out=norm2), norm1.mul_(noise), v1, *spare)
    _cross(v1, v2, out=v3)  # det U = det V = 1, so det R = 1 by construction
    if allow_reflection:
        sigma3 = _dot(v3, _transposed_product(scaled, u3, out=spare[0]), out=norm1)
        u3.mul_(sigma3.ge_(0).mul_(2).sub_(1))

    torch.mul(u1[:, None], v1, out=rotation)
    rotation.addcmul_(u2[:, None], v2).addcmul_(u3[:, None], v3)
    return rotation, (v1, v2, v3)


def _orthogonalise(columns: Tensor, spare: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rotates ``columns[i]`` ``(3, N)`` until they are orthogonal, the longest first; returns the first two norms."""
    tiny, one = torch.finfo(columns.dtype).tiny, columns.new_ones(1)
    vectors, entries = columns.unbind(0), [column.unbind(0) for column in columns]
    for first, second in itertools.islice(itertools.cycle(_PAIRS), _ROTATIONS[columns.dtype]):
        p, q = vectors[first], vectors[second]
        inner = _dot(entries[first], entries[second], out=rows[0])
        difference = _dot(entries[second], entries[second], out=rows[1])
        for entry in entries[first]:
            difference.addcmul_(entry, entry, value=-1)
        # Half the tangent of the smaller angle that makes p and q orthogonal; `tiny` is for 0 / 0, too small to matter.
        root = torch.mul(difference, difference, out=rows[2]).addcmul_(inner, inner, value=4).sqrt_()
        root.add_(one, alpha=tiny)
        half_tangent = inner.div_(root.copysign_(difference).add_(difference))
        cosine = torch.addcmul(one, half_tangent, half_tangent, value=4, out=rows[1]).rsqrt_()
        half_sine = half_tangent.mul_(cosine)
        share = torch.mul(p, half_sine, out=spare)
        p.mul_(cosine).addcmul_(q, half_sine, value=-2)
        q.mul_(cosine).add_(share, alpha=2)

    a, b, c = vectors
    aa, bb, cc = (_dot(vector, vector, out=row) for vector, row in zip(entries, rows))
    swap = torch.lt(aa, bb, out=rows[3])
    longer = torch.lerp(a, b, swap, out=spare)
    torch.lerp(b, a, swap, out=b)
    most, bb = torch.maximum(aa, bb, out=rows[3]), torch.minimum(aa, bb, out=bb)
    swap = torch.lt(most, cc, out=aa)
    torch.lerp(longer, c, swap, out=a)
    torch.lerp(c, longer, swap, out=c)
    most, cc = torch.maximum(most, cc, out=aa), torch.minimum(most, cc, out=cc)
    torch.lerp(b, c, torch.lt(bb, cc, out=rows[3]), out=b)
    return most.sqrt_(), torch.maximum(bb, cc, out=bb).sqrt_()


def _unit_or_any(vector: Tensor, norm: Tensor, least: Tensor, beside: Tensor, spare: Tensor, row: Tensor) -> None:
    """``vector`` over its norm; where that is not above ``least``, some unit vector normal to the unit ``beside``."""
    lost = torch.le(norm, least, out=least)
    vector.div_(norm.add_(lost))
    torch.lerp(vector, _any_normal(beside, out=spare, row=row), lost, out=vector)


def _any_normal(unit: Tensor, *, out: Tensor, row: Tensor) -> Tensor:
    """A unit vector normal to ``unit``: Duff et al., Building an Orthonormal Basis, Revisited, JCGT 2017."""
    (x, y, z), (first, second, third) = unit, out
    a = torch.div(x, torch.abs(z, out=row).add_(1), out=row).neg_()
    torch.mul(a, x, out=first).add_(1)
    torch.mul(a, y, out=second)
    torch.copysign(unit.new_ones(1), z, out=third).mul_(x).neg_()
    return out


def _transposed_product(matrix: Tensor, vector: Tensor, *, out: Tensor) -> Tensor:
    (k1, k2, k3), (x, y, z) = matrix, vector
    torch.mul(k1, x, out=out)
    return out.addcmul_(k2, y).addcmul_(k3, z)


def _dot(a: Sequence[Tensor] | Tensor, b: Sequence[Tensor] | Tensor, *, out: Tensor) -> Tensor:
    (a1, a2, a3), (b1, b2, b3) = a, b
    torch.mul(a1, b1, out=out)
    return out.addcmul_(a2, b2).addcmul_(a3, b3)


def _norm(a: Tensor, *, out: Tensor) -> Tensor:
    return _dot(a, a, out=out).sqrt_()


def _cross(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    (a1, a2, a3), (b1, b2, b3), (first, second, third) = a, b, out
    torch.mul(a2, b3, out=first).addcmul_(a3, b2, value=-1)
    torch.mul(a3, b1, out=second).addcmul_(a1, b3, value=-1)
    torch.mul(a1, b2, out=third).addcmul_(a2, b1, value=-1)
