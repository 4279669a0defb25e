"""Procrustes alignment and PA-MPJPE: masked, batched, differentiable, and exact on degenerate poses.

The steps, per pose, with visible joints only (hidden ones have weight 0):

1. centre both poses twice: on the first visible joint, which is exact enough to remove any offset, then on the mean;
2. divide each by a power of two, so that no product can overflow or underflow at any scale;
3. ``K = sum_j w_j y_j x_j^T`` and its nearest proper rotation ``R`` (`multicontrast.linalg.proper_rotation`);
4. ``s = <R, K> / sum_j w_j |x_j|^2``, or 0 for a collapsed prediction;
5. the distances ``|y_j - s R x_j|`` and their weighted mean.

Nothing is clamped by an absolute epsilon and nothing depends on a branch over the data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast.linalg.rotation import CPU_CHUNK, batch_last_rotation
from multicontrast.metrics._inputs import Root, power_of_two, read_poses, reduce_items, root_joints
from multicontrast.metrics.joint_errors import JointErrors


class Alignment(NamedTuple):
    """``aligned = scale * pred @ rotation.mT + translation``, joint by joint ``s R p + t``."""

    aligned: Tensor  # (..., J, D)
    rotation: Tensor  # (..., D, D), acts on columns
    scale: Tensor  # (...)
    translation: Tensor  # (..., D)


def pa_mpjpe(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    mask: Tensor | None = None,
    root: Root = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean per-joint error after Procrustes alignment ("Protocol 2", PA-MPJPE, P-MPJPE, "reconstruction error").

    Aligns with the similarity :math:`(s, R, t)` that minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2`,
    then averages the *distances*, not their squares.

    Conventions, and who differs: reflections are excluded, so a mirrored pose keeps its error
    (``scipy.spatial.procrustes`` and torchmetrics' ``procrustes_disparity`` allow them and give it 0, on a standardised
    squared scale that is not millimetres). Hidden joints enter neither the alignment nor the average (mmpose aligns on
    all). Weights are linear (PyTorch3D's alignment squares them). A collapsed prediction aligns to the centroid and
    keeps the target's mean distance from it, where other code gives NaN, raises, or reports 0.

    Args:
        pred, target: ``(..., J, 3)`` or ``(..., J, 2)``, any unit, one shape. Half precision is computed in float32.
        scale: False for the rigid variant, rotation and translation alone.
        allow_reflection: let the alignment mirror the pose.
        mask: ``(..., J)`` or ``(J,)``, bool or non-negative weights; a hidden joint may hold anything, even NaN.
        root: accepted so that all pose errors are called alike; alignment undoes any translation.
        reduction: ``"none"`` for one value per item, ``"mean"`` or ``"sum"`` over the items.

    Returns:
        ``(...)`` or a scalar, in the unit of ``target``. An item without a visible joint is NaN, and left out of mean
        and sum; NaN in a pose stays in that pose. Error at most 16 eps x size x (1 + condition), where size is the
        target's extent and the condition that of the alignment; see the page on accuracy for the one family, two
        nearly straight poses, whose condition is that of the 3x3 covariance. The gradient is finite everywhere.

    Raises:
        ValueError, TypeError: shapes, types or devices that do not fit; an empty batch; a negative weight (on the CPU;
            elsewhere the item is NaN).

    Reference:
        Umeyama, TPAMI 1991. On which paper reports what: docs/metrics/which-metric.

    Example:
        >>> target = torch.rand(4, 17, 3)
        >>> turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> bool(pa_mpjpe(2.0 * target @ turn + 5.0, target) < 1e-5)
        True
    """
    measured = pa_mpjpe_joints("pa_mpjpe", pred, target, mask, root, scale=scale, allow_reflection=allow_reflection)
    return reduce_items("pa_mpjpe", *measured, reduction)


def pa_mpjpe_joints(
    operation: str,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    root: Root,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
) -> JointErrors:
    """The distances after alignment, ``(..., J)``."""
    pred, target, weight = read_poses(operation, pred, target, mask)
    if root is not None:
        root_joints(operation, root, target.shape[-2])
    parts = []
    for x, y, w in _chunks(pred, target, weight):
        fit = _fit(x, y, w, scale, allow_reflection)
        parts.append(torch.linalg.vector_norm(fit.target - fit.aligned, dim=1) * fit.size)
    return JointErrors(torch.cat(parts, -1).mT.reshape(target.shape[:-1]), weight)


def procrustes_align(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    mask: Tensor | None = None,
) -> Alignment:
    r"""The similarity (or, with ``scale=False``, the rigid motion) that best lays ``pred`` over ``target``.

    Minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2` over ``s``, ``R`` with ``det R = +1`` (any sign with
    ``allow_reflection``) and ``t``.

    Args:
        pred, target, scale, allow_reflection, mask: as for `pa_mpjpe`.

    Returns:
        `Alignment` of ``aligned (..., J, D)``, ``rotation (..., D, D)`` for column vectors, ``scale (...)`` and
        ``translation (..., D)``: ``aligned = scale * pred @ rotation.mT + translation``. Hidden joints do not steer the
        alignment but are carried along by it. An item without a visible joint is NaN. Differentiable once. ``aligned``
        is computed about the centroids, and so stays accurate far from the origin, where ``translation`` cancels.

    Raises:
        ValueError, TypeError: as for `pa_mpjpe`.

    Example:
        >>> target = torch.rand(17, 3)
        >>> fit = procrustes_align(2.0 * target + 1.0, target)
        >>> round(fit.scale.item(), 4), bool((fit.aligned - target).abs().max() < 1e-5)
        (0.5, True)
    """
    original = pred
    pred, target, weight = read_poses("procrustes_align", pred, target, mask)
    joints, size = target.shape[-2:]
    everywhere = original.to(pred.dtype).reshape(-1, joints, size)
    outputs = []
    start = 0
    for x, y, w in _chunks(pred, target, weight):
        fit = _fit(x, y, w, scale, allow_reflection)
        stop = start + x.shape[-1]
        rotation, factor = fit.rotation.permute(2, 0, 1), fit.scale
        pred_centre, target_centre = fit.pred_centre.mT, fit.target_centre.mT  # (n, D)
        turned = (everywhere[start:stop] - pred_centre[:, None]) @ (factor[:, None, None] * rotation).mT
        moved = (rotation @ pred_centre[..., None]).squeeze(-1) * factor[:, None]
        outputs.append((turned + target_centre[:, None], rotation, factor, target_centre - moved))
        start = stop
    aligned, rotation, factor, translation = (torch.cat(parts) for parts in zip(*outputs))
    batch = target.shape[:-2]
    return Alignment(
        aligned.reshape(target.shape),
        rotation.reshape(*batch, size, size),
        factor.reshape(batch),
        translation.reshape(*batch, size),
    )


class _Fit(NamedTuple):
    """One chunk's alignment, batch innermost; ``target`` and ``aligned`` are centred and divided by ``size``."""

    target: Tensor  # (J, D, n)
    aligned: Tensor  # (J, D, n)
    size: Tensor  # (n,)
    rotation: Tensor  # (D, D, n)
    scale: Tensor  # (n,), in the units that came
    pred_centre: Tensor  # (D, n)
    target_centre: Tensor  # (D, n)


def _chunks(pred: Tensor, target: Tensor, weight: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Poses as ``(J, D, n)`` and weights as ``(J, n)``, in chunks that stay in a CPU's cache."""
    joints, size = target.shape[-2:]
    count = target.numel() // (joints * size)
    chunk = CPU_CHUNK if target.device.type == "cpu" else count
    poses = [tensor.reshape(count, joints, size).split(chunk) for tensor in (pred, target)]
    weights = [None] * len(poses[0]) if weight is None else weight.reshape(count, joints).split(chunk)
    return [
        (x.permute(1, 2, 0).contiguous(), y.permute(1, 2, 0).contiguous(), None if w is None else w.mT.contiguous())
        for x, y, w in zip(*poses, weights)
    ]


def _fit(x: Tensor, y: Tensor, w: Tensor | None, with_scale: bool, allow_reflection: bool) -> _Fit:
    total = None if w is None else w.sum(0)  # 0 without a visible joint: the means are then 0 / 0, NaN
    x, x_centre = _centre(x, w, total)
    y, y_centre = _centre(y, w, total)
    x_size, y_size = _size(x), _size(y)
    x, y = x / x_size, y / y_size
    wx = x if w is None else x * w[:, None]
    covariance = (y[:, :, None] * wx[:, None, :]).sum(0)  # K, (D, D, n)
    rotation = batch_last_rotation(covariance, allow_reflection)
    if with_scale:
        # dR contributes nothing to d<R, K> (R is a maximum), so R is a constant here: no damping enters the scale.
        trace = (rotation.detach() * covariance).sum((0, 1))
        variance = (wx * x).sum((0, 1))
        ratio = trace / torch.where(variance == 0, 1.0, variance)
    else:
        ratio = x_size / y_size
    aligned = ((ratio * rotation)[None] * x[:, None]).sum(2)
    return _Fit(y, aligned, y_size, rotation, ratio * (y_size / x_size), x_centre, y_centre)


def _centre(x: Tensor, w: Tensor | None, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """Subtracts the first visible joint and then the weighted mean: a distant origin costs no digits."""
    if w is None or total is None:
        first = x[0]
        x = x - first
        mean = x.mean(0)
        return x - mean, first + mean
    visible = w != 0
    index = visible.to(torch.uint8).argmax(0)  # the first maximum
    first = x.gather(0, index.expand(1, *x.shape[1:]))[0]
    x = x - first
    mean = (x * w[:, None]).sum(0) / total
    return (x - mean).masked_fill(~visible[:, None], 0.0), first + mean


def _size(x: Tensor) -> Tensor:
    return power_of_two(x.detach().abs().amax((0, 1)))
