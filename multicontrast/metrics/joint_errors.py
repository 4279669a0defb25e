"""Distances between predicted and true joints: MPJPE and its relatives that need no rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._checks import describe, three_beats
from multicontrast.metrics._inputs import (
    JointErrors,
    Root,
    check_options,
    length,
    power_of_two,
    read_poses,
    reduce_items,
    reduce_joints,
    relative_weights,
)


def mpjpe(
    pred: Tensor, target: Tensor, *, mask: Tensor | None = None, root: Root = None, reduction: str = "mean"
) -> Tensor:
    r"""Mean per-joint position error ("Protocol 1" with ``root=0``).

    .. math:: \frac{1}{\sum_j w_j} \sum_j w_j \lVert p_j - q_j \rVert

    Papers differ in two things that this function leaves to you: whether the root is subtracted (``root=0``, the
    pelvis; SPIN-like evaluations take the middle of the hips, ``root=(2, 3)`` of LSP's order), and whether the root,
    whose error is then 0, is counted: VideoPose3D counts all 17 joints; hide joint 0 with ``mask`` for 16.

    Args:
        pred, target: ``(..., J, 3)`` or ``(..., J, 2)``, any unit, one shape. Half precision is computed in float32.
        mask: ``(..., J)`` or ``(J,)``: bool, COCO's visibility flags (integers; above 0 is visible) or non-negative
            weights (floating point). A hidden joint may hold anything, even NaN.
        root: joint subtracted from both poses, several for their mean, or None. It is read even where ``mask``
            leaves it out of the average; where its position is unknown let it be NaN.
        reduction: ``"none"`` for one value per item, ``"mean"`` or ``"sum"`` over the items.

    Returns:
        ``(...)`` or a scalar, in the unit of the input. An item without a visible joint is NaN, and left out of mean
        and sum. Error at most 16 eps times the largest coordinate.

    Raises:
        ValueError, TypeError: shapes, types or devices that do not fit; an empty batch; a negative weight (on the CPU;
            elsewhere the item is NaN).

    Example:
        >>> target = torch.zeros(2, 17, 3)
        >>> mpjpe(target + torch.tensor([3.0, 4.0, 0.0]), target)
        tensor(5.)
    """
    check_options("mpjpe", root=root, reduction=reduction)
    return reduce_items(*distances("mpjpe", pred, target, mask, root), reduction)


def distances(operation: str, pred: Tensor, target: Tensor, mask: Tensor | None, root: Root) -> JointErrors:
    """The distance of every joint."""
    poses = read_poses(operation, pred, target, mask, root)
    return JointErrors(length(poses.pred - poses.target), poses.weight)


def epe(
    pred: Tensor, target: Tensor, *, mask: Tensor | None = None, root: Root = None, reduction: str = "mean"
) -> Tensor:
    """End-point error: the mean distance over all visible joints of all items, pooled.

    The one difference from `mpjpe` is the average: a pose with two visible joints counts two, not one. With every
    joint visible the two are equal. mmpose calls this EPE for 2D keypoints (and gives 0, not NaN, without a visible
    joint).

    Args:
        pred, target, mask, root: as for `mpjpe`.
        reduction: ``"mean"`` over the visible joints, ``"sum"`` over them, or ``"none"`` for each item's own mean.

    Returns: a scalar, or ``(...)`` for ``"none"``, in the unit of the input. NaN where nothing is visible.

    Raises: as for `mpjpe`.

    Example:
        >>> target = torch.zeros(2, 2, 2)
        >>> pred = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[6.0, 0.0], [0.0, 0.0]]])
        >>> visible = torch.tensor([[True, True], [True, False]])
        >>> epe(pred, target, mask=visible), mpjpe(pred, target, mask=visible)
        (tensor(3.), tensor(3.7500))
    """
    check_options("epe", root=root, reduction=reduction)
    return reduce_joints(*distances("epe", pred, target, mask, root), reduction)


def n_mpjpe(
    pred: Tensor, target: Tensor, *, mask: Tensor | None = None, root: Root = None, reduction: str = "mean"
) -> Tensor:
    r"""MPJPE after the one scale per pose that fits best ("Protocol 3", N-MPJPE).

    The prediction is multiplied by :math:`s = \sum_j w_j\, p_j \cdot q_j \,/ \sum_j w_j \lVert p_j \rVert^2`. Poses
    are *not* centred (as in VideoPose3D, MotionBERT and mmpose), so scale turns about the origin: with absolute
    coordinates pass ``root=0``. A prediction that is all 0 has scale 0.

    Args, Returns, Raises: as for `mpjpe`.

    Reference: Rhodin et al., Unsupervised Geometry-Aware Representation for 3D Human Pose Estimation, ECCV 2018.

    Example:
        >>> target = torch.rand(4, 17, 3)
        >>> bool(n_mpjpe(3.0 * target, target) < 1e-6)
        True
    """
    check_options("n_mpjpe", root=root, reduction=reduction)
    pred, target, weight = read_poses("n_mpjpe", pred, target, mask, root)
    unit = power_of_two(pred.detach().abs().amax((-2, -1), keepdim=True))
    size = power_of_two(target.detach().abs().amax((-2, -1), keepdim=True))
    pred, target = pred / unit, target / size  # exact; keeps the products from overflow and underflow
    inner, norm = (pred * target).sum(-1), pred.square().sum(-1)
    if weight is not None:
        relative = relative_weights(weight, -1)
        inner, norm = inner * relative, norm * relative
    inner, norm = inner.sum(-1), norm.sum(-1)
    scale = inner / torch.where(norm == 0, 1.0, norm)
    errors = length(scale[..., None, None] * pred - target) * size.squeeze(-1)
    return reduce_items(errors, weight, reduction)


def mpjve(
    pred: Tensor,
    target: Tensor,
    *,
    fps: float | None = None,
    mask: Tensor | None = None,
    root: Root = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean per-joint velocity error: MPJPE of the differences between successive frames.

    Time is axis -3; the axes before it are clips, and differences never cross clips. (VideoPose3D differences axis 0,
    which is time only for a single clip; flattened clips are differenced across their seam.) Per frame, as the field
    reports it, unless ``fps`` is given.

    Args:
        pred, target: ``(..., T, J, 3)`` or ``(..., T, J, 2)`` with ``T >= 2``.
        fps: frames per second, for an error in units per second. None: per frame.
        mask: ``(..., T, J)`` or anything that expands to it. A difference counts with the smaller of its two weights:
            a hidden frame takes two differences with it.
        root, reduction: as for `mpjpe`; an item is one difference, so ``"none"`` gives ``(..., T - 1)``.

    Returns, Raises: as for `mpjpe`; ValueError for fewer than two frames.

    Reference: Pavllo et al., 3D human pose estimation in video, CVPR 2019.

    Example:
        >>> still = torch.zeros(5, 17, 3)
        >>> moving = torch.arange(5.0)[:, None, None] * torch.tensor([0.0, 0.0, 2.0]) + still
        >>> mpjve(moving, still), mpjve(moving, still, fps=50.0)
        (tensor(2.), tensor(100.))
    """
    return _motion("mpjve", 1, pred, target, fps, mask, root, reduction)


def accel_error(
    pred: Tensor,
    target: Tensor,
    *,
    fps: float | None = None,
    mask: Tensor | None = None,
    root: Root = None,
    reduction: str = "mean",
) -> Tensor:
    """Acceleration error: the mean distance between second differences, per frame squared (or per second squared).

    Time is axis -3. As in VIBE's evaluation there is no division by the frame time unless ``fps`` is given, and a
    hidden frame takes the three second differences that touch it.

    Args:
        pred, target: ``(..., T, J, 3)`` or ``(..., T, J, 2)`` with ``T >= 3``.
        fps: frames per second, for an error in units per second squared. None: per frame squared.
        mask: ``(..., T, J)`` or anything that expands to it; the smallest of three weights counts.
        root, reduction: as for `mpjpe`; ``"none"`` gives ``(..., T - 2)``.

    Returns, Raises: as for `mpjpe`; ValueError for fewer than three frames.

    Reference: Kanazawa et al., Learning 3D Human Dynamics from Video, CVPR 2019; Kocabas et al., VIBE, CVPR 2020.

    Example:
        >>> still = torch.zeros(5, 17, 3)
        >>> falling = torch.arange(5.0).square()[:, None, None] * torch.tensor([0.0, 0.0, 0.5]) + still
        >>> accel_error(falling, still)
        tensor(1.)
    """
    return _motion("accel_error", 2, pred, target, fps, mask, root, reduction)


def _motion(
    operation: str,
    order: int,
    pred: Tensor,
    target: Tensor,
    fps: float | None,
    mask: Tensor | None,
    root: Root,
    reduction: str,
) -> Tensor:
    """The error of the ``order``-th difference over time; an item is one difference, ``(..., T - order)`` of them."""
    check_options(operation, fps=fps, root=root, reduction=reduction)
    poses = read_poses(operation, pred, target, mask, root)
    if poses.target.dim() < 3 or poses.target.shape[-3] <= order:
        needed = f"`{operation}` needs (..., T, J, 3) with at least {order + 1} frames T"
        raise ValueError(three_beats(needed, describe(target), "Put time on axis -3, and leave out shorter clips."))
    errors = length(torch.diff(poses.pred - poses.target, n=order, dim=-3))
    if fps is not None:
        for _ in range(order):
            errors = errors * float(fps)
    weight = poses.weight
    if weight is not None:
        weight = weight.unfold(-2, order + 1, 1).amin(-1)  # of the frames of each difference
    return reduce_items(errors, weight, reduction)
