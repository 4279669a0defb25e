"""Distances between predicted and true joints: MPJPE and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import check_count, check_floating, describe, three_beats
from multicontrast.linalg._gram3_torch import power_of_two
from multicontrast.metrics._inputs import (
    JointErrors,
    PoseOptions,
    average_joints,
    length,
    pose_metric,
    read_mask,
    read_poses,
    relative_weights,
)
from multicontrast.metrics.procrustes import aligned_distances


@pose_metric()
def mpjpe(pred: Tensor, target: Tensor, **options: Unpack[PoseOptions]) -> JointErrors:
    r"""Mean per-joint position error ("Protocol 1" with ``root=0``).

    .. math:: \frac{1}{\sum_j w_j} \sum_j w_j \lVert p_j - q_j \rVert

    Papers differ in whether the root is subtracted (``root=0``, the pelvis; SPIN-like evaluations take the middle of
    the hips, ``root=(2, 3)`` of LSP's order), and in whether the root, whose error is then 0, is counted: VideoPose3D
    counts all 17 joints; hide joint 0 with ``mask`` for 16.

    Args:
        pred, target: ``(..., J, 3)`` or ``(..., J, 2)``, any unit, one shape. Half precision is computed in float32.
        mask: ``(..., J)`` or ``(J,)``: bool, COCO's visibility flags (integers; above 0 is visible) or non-negative
            weights (floating point). A hidden joint may hold anything, even NaN.
        root: joint subtracted from both poses, several for their mean, or None. It is read even if ``mask`` leaves it
            out of the average; set it to NaN where its position is unknown.
        reduction: ``"none"`` for one value per item, ``"mean"`` or ``"sum"`` over the items.
    Returns: ``(...)`` or a scalar, in the unit of the input. An item without a visible joint is NaN, and left out of
        mean and sum. Error at most 16 eps times the largest coordinate.
    Raises: ValueError, TypeError for shapes, types or devices that do not fit, an empty batch, an unknown option, a
        negative weight (on the CPU; elsewhere the item is NaN).

    >>> target = torch.zeros(2, 17, 3)
    >>> mpjpe(target + torch.tensor([3.0, 4.0, 0.0]), target)
    tensor(5.)
    """
    return distances("mpjpe", pred, target, **options)


def distances(operation: str, pred: Tensor, target: Tensor, **options: Unpack[PoseOptions]) -> JointErrors:
    """The distance of every joint."""
    poses = read_poses(operation, pred, target, **options)
    return JointErrors(length(poses.pred - poses.target), poses.weight)


@pose_metric(pooled=True)
def epe(pred: Tensor, target: Tensor, **options: Unpack[PoseOptions]) -> JointErrors:
    """End-point error: the mean distance over all visible joints of all items, pooled.

    Otherwise as `mpjpe`, which averages each pose first: here a pose with two visible joints counts two, not one.
    ``reduction="sum"`` adds the joints, ``"none"`` gives each item's own mean. mmpose calls this EPE for 2D keypoints
    (and gives 0, not NaN, where nothing is visible).

    >>> target = torch.zeros(2, 2, 2)
    >>> pred = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[6.0, 0.0], [0.0, 0.0]]])
    >>> visible = torch.tensor([[True, True], [True, False]])
    >>> epe(pred, target, mask=visible), mpjpe(pred, target, mask=visible)
    (tensor(3.), tensor(3.7500))
    """
    return distances("epe", pred, target, **options)


@pose_metric()
def n_mpjpe(pred: Tensor, target: Tensor, **options: Unpack[PoseOptions]) -> JointErrors:
    r"""MPJPE after scaling each pose by the factor that fits best ("Protocol 3", N-MPJPE; Rhodin et al., ECCV 2018).

    The prediction is multiplied by :math:`s = \sum_j w_j\, p_j \cdot q_j \,/ \sum_j w_j \lVert p_j \rVert^2`, or 0
    where it is all 0. Poses are *not* centred (as in VideoPose3D, MotionBERT and mmpose) but scaled about the origin:
    with absolute coordinates pass ``root=0``. Otherwise as `mpjpe`.

    >>> target = torch.rand(4, 17, 3)
    >>> bool(n_mpjpe(3.0 * target, target) < 1e-6)
    True
    """
    pred, target, weight = read_poses("n_mpjpe", pred, target, **options)
    unit, _ = power_of_two(pred.detach().abs().amax((-2, -1), keepdim=True))
    shrink, size = power_of_two(target.detach().abs().amax((-2, -1), keepdim=True))
    pred, target = pred * unit, target * shrink  # exact; prevents overflow and underflow of the products
    inner, norm = (pred * target).sum(-1), pred.square().sum(-1)
    if weight is not None:
        relative = relative_weights(weight, -1)
        inner, norm = inner * relative, norm * relative
    inner, norm = inner.sum(-1), norm.sum(-1)
    scale = inner / torch.where(norm == 0, 1.0, norm)
    return JointErrors(length(scale[..., None, None] * pred - target) * size.squeeze(-1), weight)


@pose_metric()
def min_mpjpe(
    pred: Tensor,
    target: Tensor,
    *,
    dim: int = 0,
    mode: str = "pose",
    procrustes: bool = False,
    **options: Unpack[PoseOptions],
) -> JointErrors:
    """MPJPE of the best of several hypotheses (Li and Lee, CVPR 2019). An oracle metric; label it as such.

    Args:
        pred: the shape of ``target`` and an axis ``dim`` of hypotheses: ``(H, ..., J, 3)`` by default.
        mode: ``"pose"`` takes the best whole pose (the usual "minMPJPE"); ``"joint"`` takes the best of each joint
            separately, a lower number that no single hypothesis attains.
        procrustes: align each hypothesis first, as `pa_mpjpe` does.

    Otherwise as `mpjpe`. ``mask`` has no axis of hypotheses. A hypothesis with NaN makes its item NaN; it is not merely
    skipped.

    >>> target = torch.zeros(3, 17, 3)
    >>> min_mpjpe(torch.stack((target + 1.0, target + 2.0)), target)
    tensor(1.7321)
    """
    pred, target = hypotheses_first("min_mpjpe", pred, target, dim, options.get("mask"))
    measure = aligned_distances if procrustes else distances
    errors, weight = measure("min_mpjpe", pred, target, **options)
    if mode == "joint":
        best = errors.min(0).values
    else:
        chosen = average_joints(errors, weight).argmin(0, keepdim=True)  # NaN counts as the smallest, so it is chosen
        best = errors.gather(0, chosen.unsqueeze(-1).expand(1, *errors.shape[1:])).squeeze(0)
    return JointErrors(best, None if weight is None else weight[0])


def hypotheses_first(
    operation: str, pred: Tensor, target: Tensor, dim: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Moves the hypotheses to axis 0 and expands the target to them."""
    check_count(operation, "dim", dim, -(2**63), remedy="Name the axis of the hypotheses.")
    check_floating(operation, "pred", pred)
    check_floating(operation, "target", target)
    if pred.dim() != target.dim() + 1 or not -pred.dim() <= dim < pred.dim() or dim % pred.dim() >= pred.dim() - 2:
        needed = f"`{operation}` needs `pred` with one axis more than `target`, hypotheses along axis {dim}"
        came = f"`pred` {tuple(pred.shape)} and `target` {tuple(target.shape)}"
        raise ValueError(three_beats(needed, came, "Stack the hypotheses: (H, ..., J, 3), or name their axis `dim`."))
    pred = pred.movedim(dim, 0)
    if len(pred) == 0:
        needed = f"`{operation}` needs at least one hypothesis"
        raise ValueError(three_beats(needed, describe(pred), "Sample at least one."))
    if mask is not None:
        read_mask(operation, mask, target.shape[:-1], target)  # its shape is the target's: no mask per hypothesis
    return pred, target.expand(len(pred), *target.shape)


@pose_metric()
def mpjve(pred: Tensor, target: Tensor, *, fps: float | None = None, **options: Unpack[PoseOptions]) -> JointErrors:
    """Mean per-joint velocity error: MPJPE of the differences between successive frames (Pavllo et al., CVPR 2019).

    Poses are ``(..., T, J, 3)`` or ``(..., T, J, 2)`` with ``T >= 2``: time is axis -3, the axes before it are clips,
    and differences never cross clips. (VideoPose3D differences axis 0, which is time only for a single clip.) An item
    is one difference, ``(..., T - 1)``, per frame or, with ``fps``, per second. It counts with the smaller of its two
    weights, so a hidden frame hides both differences that touch it. Otherwise as `mpjpe`.

    >>> still = torch.zeros(5, 17, 3)
    >>> moving = torch.arange(5.0)[:, None, None] * torch.tensor([0.0, 0.0, 2.0]) + still
    >>> mpjve(moving, still), mpjve(moving, still, fps=50.0)
    (tensor(2.), tensor(100.))
    """
    return _motion("mpjve", 1, pred, target, fps, **options)


@pose_metric()
def accel_error(
    pred: Tensor, target: Tensor, *, fps: float | None = None, **options: Unpack[PoseOptions]
) -> JointErrors:
    """Acceleration error: the mean distance between second differences, per frame squared (Kanazawa et al., CVPR 2019).

    As `mpjve`, with ``T >= 3`` and an item, ``(..., T - 2)``, for each three frames. As in VIBE's evaluation there is
    no division by the frame time unless ``fps`` is given, which makes it per second squared, and a hidden frame hides
    the three second differences that touch it.

    >>> still = torch.zeros(5, 17, 3)
    >>> falling = torch.arange(5.0).square()[:, None, None] * torch.tensor([0.0, 0.0, 0.5]) + still
    >>> accel_error(falling, still)
    tensor(1.)
    """
    return _motion("accel_error", 2, pred, target, fps, **options)


def _motion(
    operation: str, order: int, pred: Tensor, target: Tensor, fps: float | None, **options: Unpack[PoseOptions]
) -> JointErrors:
    """The error of the ``order``-th difference over time; an item is one difference, ``(..., T - order)`` of them."""
    pred, target, weight = read_poses(operation, pred, target, **options)
    if target.dim() < 3 or target.shape[-3] <= order:
        needed = f"`{operation}` needs (..., T, J, 3) with at least {order + 1} frames T"
        raise ValueError(three_beats(needed, describe(target), "Put time on axis -3, and leave out shorter clips."))
    errors = length(torch.diff(pred - target, n=order, dim=-3))
    if fps is not None:
        errors = errors * float(fps) ** order
    if weight is not None:
        weight = weight.unfold(-2, order + 1, 1).amin(-1)  # of the frames of each difference
    return JointErrors(errors, weight)
