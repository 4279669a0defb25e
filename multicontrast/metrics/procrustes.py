"""Procrustes alignment and PA-MPJPE: masked, batched, differentiable, and exact on degenerate poses.

The steps, per pose, with visible joints only (hidden ones have weight 0):

1. centre both poses twice: on a joint of the largest weight, which removes any offset accurately, then on the mean;
2. divide each by a power of two, so that no product can overflow or underflow at any scale;
3. ``K = sum_j w_j y_j x_j^T`` and its nearest proper rotation ``R`` (`multicontrast.linalg.rotation`);
4. ``s = <R, K> / sum_j w_j |x_j|^2``, or 0 for a collapsed prediction;
5. the distances ``|y_j - s R x_j|`` and their weighted mean.

Nothing is clamped by an absolute epsilon, and there is no branch on values. On a CPU the poses are processed in pieces,
each transposed so that the batch is innermost; a piece stays in the cache until its distances are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast.linalg._gram3_torch import power_of_two
from multicontrast.linalg.rotation import batch_last_rotation
from multicontrast.metrics._inputs import (
    JointErrors,
    PoseOptions,
    check_options,
    list_joints,
    pose_metric,
    read_poses,
    relative_weights,
)


class Alignment(NamedTuple):
    """``aligned = scale * pred @ rotation.mT + translation``, joint by joint ``s R p + t``."""

    aligned: Tensor  # (..., J, D)
    rotation: Tensor  # (..., D, D), acts on columns
    scale: Tensor  # (...)
    translation: Tensor  # (..., D)


@pose_metric()
def pa_mpjpe(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    **options: Unpack[PoseOptions],
) -> JointErrors:
    r"""Mean per-joint error after Procrustes alignment ("Protocol 2", PA-MPJPE, P-MPJPE, "reconstruction error").

    Aligns with the similarity :math:`(s, R, t)` that minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2`
    (Umeyama, TPAMI 1991), then averages the *distances*, not their squares. Reflections are excluded, so a mirrored
    pose keeps its error. Hidden joints enter neither the alignment nor the average. A collapsed prediction aligns to
    the centroid and keeps the target's mean distance from it. :doc:`/metrics/which-metric` lists other definitions.

    Args:
        pred, target, mask, reduction: as for `mpjpe`; weights are linear both in the alignment and in the average.
        scale: False for the rigid variant, with rotation and translation only.
        allow_reflection: let the alignment mirror the pose.
        root: accepted so that all pose errors have the same arguments; alignment undoes any translation.
    Returns: as for `mpjpe`; NaN in a pose stays in that pose. Error at most 16 eps x size x (1 + condition), where size
        is the target's extent and the condition that of the alignment. Two nearly straight poses are the one exception:
        their condition is that of the 3x3 covariance. The gradient is finite everywhere.
    Raises: as for `mpjpe`.

    >>> target = torch.rand(4, 17, 3)
    >>> turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> bool(pa_mpjpe(2.0 * target @ turn + 5.0, target) < 1e-5)
    True
    """
    return aligned_distances("pa_mpjpe", pred, target, scale, allow_reflection, **options)


def aligned_distances(
    operation: str,
    pred: Tensor,
    target: Tensor,
    scale: bool = True,
    allow_reflection: bool = False,
    **options: Unpack[PoseOptions],
) -> JointErrors:
    """The distance of every joint after alignment. That undoes any translation, so ``root`` is only checked."""
    root = options.pop("root", None)
    poses = read_poses(operation, pred, target, blank=False, **options)
    if root is not None:
        list_joints(operation, "root", root, target.shape[-2])
    errors = torch.cat([_distances(*some, scale, allow_reflection) for some in _split(*poses)], -1)
    return JointErrors(errors.mT.reshape(poses.target.shape[:-1]), poses.weight)


def _distances(pred: Tensor, target: Tensor, weight: Tensor | None, scale: bool, allow_reflection: bool) -> Tensor:
    """``(J, n)`` of poses ``(n, J, D)``."""
    x, y, linear, *_ = _align(pred, target, weight, scale, allow_reflection)
    vectors = _add_turned(y.points, linear, x.points, -1).movedim(1, 0)
    square = _inner(vectors, vectors)  # of about 1; `vector_norm` is slow along a middle axis
    return square * square.clamp_min(torch.finfo(square.dtype).smallest_normal).rsqrt() * y.size  # with gradient 0 at 0


def procrustes_align(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    mask: Tensor | None = None,
) -> Alignment:
    r"""The similarity (or, with ``scale=False``, the rigid motion) that best maps ``pred`` onto ``target``.

    Minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2` over ``s``, ``R`` with ``det R = +1`` (any sign with
    ``allow_reflection``) and ``t``. Arguments and errors are those of `pa_mpjpe`.

    Returns: `Alignment` of ``aligned (..., J, D)``, ``rotation (..., D, D)`` for column vectors, ``scale (...)`` and
        ``translation (..., D)``: ``aligned = scale * pred @ rotation.mT + translation``. Hidden joints do not affect
        the alignment but are transformed by it. An item without a visible joint is NaN. Differentiable once.
        ``aligned`` is computed about the centroids, so it stays accurate far from the origin, where ``translation``
        cancels.

    >>> target = torch.rand(17, 3)
    >>> fit = procrustes_align(2.0 * target + 1.0, target)
    >>> round(fit.scale.item(), 4), bool((fit.aligned - target).abs().max() < 1e-5)
    (0.5, True)
    """
    check_options("procrustes_align", scale=scale, allow_reflection=allow_reflection)
    poses = read_poses("procrustes_align", pred, target, mask=mask, blank=False)
    found = []
    for some in _split(*poses):
        x, y, _, rotation, factor = _align(*some, scale, allow_reflection)
        linear = factor * rotation
        aligned = _add_turned(y.centre, linear, some[0].permute(1, 2, 0) - x.centre)
        translation = _add_turned(y.centre, linear, x.centre[None], -1)[0]
        found.append((aligned.permute(2, 0, 1), rotation.permute(2, 0, 1), factor, translation.mT))
    aligned, rotation, factor, translation = (torch.cat(parts) for parts in zip(*found))
    *batch, _joints, size = target.shape
    return Alignment(
        aligned.reshape(target.shape),
        rotation.reshape(*batch, size, size),
        factor.reshape(batch),
        translation.reshape(*batch, size),
    )


class _Standard(NamedTuple):
    """Poses, batch innermost, centred and divided by a power of two; with that power and the centre."""

    points: Tensor  # (J, D, n)
    size: Tensor  # (n,)
    centre: Tensor  # (D, n)


_PIECE_BYTES = 4_000_000  # of poses at a time on a CPU: few enough to stay in cache, enough to hide the cost of a call


def _split(pred: Tensor, target: Tensor, weight: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Some poses at a time, ``(n, J, D)``, and their weights ``(n, J)`` divided by a power of two."""
    length = target.shape[:-2].numel()
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        length = max(_PIECE_BYTES // (target.shape[-2] * target.shape[-1] * target.element_size()), 1)
    poses = [pose.reshape(-1, *pose.shape[-2:]).split(length) for pose in (pred, target)]
    if weight is None:
        return zip(*poses, [None] * len(poses[0]))
    return zip(*poses, relative_weights(weight, -1).reshape(-1, weight.shape[-1]).split(length))


def _standard(pose: Tensor, w: Tensor | None) -> _Standard:
    """Standard poses of ``(n, J, D)`` with weights ``(J, n)``.

    Centred twice, on a joint of the largest weight and then on the mean, so that a distant origin costs no digits. The
    size is a power of two: dividing by it is exact, and afterwards no product overflows or underflows.
    """
    x = torch.empty_like(pose.permute(1, 2, 0), memory_format=torch.contiguous_format)
    x.flatten(0, 1).copy_(pose.flatten(1).mT)  # as two axes, because PyTorch transposes those in blocks
    if w is None:
        first = x.detach()[0].clone()
        x.sub_(first)
    else:
        first = x.detach().gather(0, w.detach().argmax(0).expand(1, *x.shape[1:]))[0]
        x = (x - first).masked_fill_((w == 0)[:, None], 0.0)
    values = x.detach()
    largest = torch.maximum(values.amax((0, 1)), values.amin((0, 1)).neg())
    size = torch.where(largest == 0, 1.0, power_of_two(largest)[1])
    x.mul_(size.reciprocal())  # exact, as is the product
    if w is None:
        mean = x.mean(0)
        return _Standard(x.sub_(mean), size, mean * size + first)
    mean = _inner(x, w[:, None]) / w.sum(0)  # NaN, as 0 / 0, without a visible joint
    return _Standard(x - mean, size, mean * size + first)


def _align(
    pred: Tensor, target: Tensor, weight: Tensor | None, with_scale: bool, allow_reflection: bool
) -> tuple[_Standard, _Standard, Tensor, Tensor, Tensor]:
    """The standard poses, the ``s R`` between them, ``R``, and the ``s`` between the original poses."""
    w = None if weight is None else weight.mT.contiguous()
    x, y = _standard(pred, w), _standard(target, w)
    wx = x.points if w is None else x.points * w[:, None]
    covariance = _inner(y.points[:, :, None], wx[:, None])
    variance = _inner(wx, x.points).sum(0)
    rotation = batch_last_rotation(covariance, allow_reflection)
    between = y.size / x.size
    if not with_scale:
        return x, y, rotation / between, rotation, torch.where(variance.isnan(), torch.nan, 1.0)
    # R maximises <R, K>, so to first order a change of R does not change the maximum: R is a constant here.
    trace = (rotation.detach() * covariance).sum((0, 1))
    ratio = trace / torch.where(variance == 0, 1.0, variance)
    return x, y, ratio * rotation, rotation, ratio * between


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``sum_j a_j b_j``, joint by joint, so that no product of all joints is written to memory."""
    total = a[0] * b[0]
    for a_j, b_j in zip(a[1:].unbind(0), b[1:].unbind(0)):
        total = torch.addcmul(total, a_j, b_j)
    return total


def _add_turned(base: Tensor, linear: Tensor, pose: Tensor, sign: int = 1) -> Tensor:
    """``base +- L p`` for every joint, with ``L`` ``(D, D, n)`` and ``p`` ``(J, D, n)``; `@` would obey TF32 and
    autocast."""
    for column, coordinate in zip(linear.unbind(1), pose.unbind(1)):
        base = torch.addcmul(base, column, coordinate[:, None], value=sign)
    return base
