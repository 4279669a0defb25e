"""Shares of joints (PCK, its area under the curve) and of poses (CPS) that are close enough."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import check_count, check_number, check_shape, three_beats
from multicontrast.metrics._inputs import (
    JointErrors,
    PoseOptions,
    ShareOptions,
    check_options,
    check_values,
    list_joints,
    pose_metric,
    read_lengths,
    read_poses,
    take_joints,
)
from multicontrast.metrics.joint_errors import distances, hypotheses_first
from multicontrast.metrics.procrustes import aligned_distances

AUC3D_THRESHOLDS = tuple(5.0 * step for step in range(31))  # 0, 5, ..., 150 mm
CPS_THRESHOLDS = tuple(float(step) for step in range(1, 301))  # 1, 2, ..., 300 mm


@pose_metric(ShareOptions, pooled=True)
def pck(
    pred: Tensor,
    target: Tensor,
    norm: Tensor | float | None = None,
    *,
    threshold: float,
    **options: Unpack[ShareOptions],
) -> JointErrors:
    """Percentage of correct keypoints, as a share in [0, 1]: joints closer than ``threshold * norm``.

    A joint counts where it is strictly closer, as in mmpose, HRNet and MPI-INF-3DHP. Pooled over all visible joints, as
    MPII's own figures are; mmpose and HRNet average the joints' shares (``"macro"``). The norm is yours to give:
    `bbox_norm`, `torso_norm` or `head_norm` compute the usual ones; mmpose's torso falls back to the *predicted* torso
    where the true one is under a pixel, which ours never does.

    Args:
        pred, target, mask, root: as for `mpjpe`.
        norm: ``(...)``, one positive length per item (or a number); None for a threshold in the unit of the input.
        threshold: share of the norm, or a length where ``norm`` is None.
        strict: whether a joint exactly at the threshold is wrong.
        average: under ``reduction="mean"`` or ``"sum"``: ``"micro"`` pools the visible joints, ``"macro"`` averages the
            shares of the joints that are visible anywhere, ``"none"`` gives them apart, ``(J,)``, NaN where hidden.
        reduction: ``"mean"`` for the share, ``"sum"`` for how many are correct, ``"none"`` for each item's share.
    Returns: a scalar, ``(J,)``, or ``(...)``. NaN where nothing is visible, where a visible coordinate is NaN, and
        where the norm of an item with visible joints is not positive (on the CPU that raises).
    Raises: as for `mpjpe`; a threshold that is negative or NaN; ``average="macro"`` of a sum.

    >>> target = torch.zeros(1, 4, 2)
    >>> pred = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [5.0, 0.0], [9.0, 0.0]]])
    >>> pck(pred, target, 100.0, threshold=0.05), pck(pred, target, 100.0, threshold=0.05, strict=False)
    (tensor(0.5000), tensor(0.7500))
    """
    return _shares("pck", pred, target, norm, (threshold,), **options)


@pose_metric(ShareOptions, pooled=True)
def pckh(
    pred: Tensor, target: Tensor, norm: Tensor | float, *, threshold: float = 0.5, **options: Unpack[ShareOptions]
) -> JointErrors:
    """PCKh@0.5: `pck` with the size of the head as norm and half of it as threshold (Andriluka et al., CVPR 2014).

    ``norm`` is the head size, ``(...)``: for MPII `head_norm` of the annotated head box. (MPII's own code compares in
    one-based pixels by adding 1 to predictions; give both poses in the same pixels and there is nothing to add.)

    >>> target = torch.zeros(1, 2, 2)
    >>> pckh(torch.tensor([[[9.0, 0.0], [11.0, 0.0]]]), target, torch.tensor([20.0]))
    tensor(0.5000)
    """
    if norm is None:
        check_number("pckh", "norm", norm, remedy="Pass the size of each item's head, or one for all.")
    return _shares("pckh", pred, target, norm, (threshold,), **options)


@pose_metric(ShareOptions, pooled=True, root=0)
def pck3d(pred: Tensor, target: Tensor, *, threshold: float = 150.0, **options: Unpack[ShareOptions]) -> JointErrors:
    """3DPCK of MPI-INF-3DHP: the share of joints within 150 mm after the roots are laid together.

    `pck` without a norm; the default threshold is in millimetres: with metres pass ``threshold=0.15``. The official
    evaluation (Mehta et al., 3DV 2017) is strict, subtracts joint 15 of 17 (counted from 1, its pelvis: ``root=14`` in
    that order, joint 0 in Human3.6M's, which is the default here) and counts 14 joints: choose them with ``mask``,
    which may leave the root out.

    >>> target = torch.zeros(1, 3, 3)
    >>> pck3d(torch.tensor([[[0.0, 0, 0], [149.0, 0, 0], [150.0, 0, 0]]]), target)
    tensor(0.6667)
    """
    return _shares("pck3d", pred, target, None, (threshold,), **options)


@pose_metric(ShareOptions, pooled=True, root=0)
def auc3d(
    pred: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float] = AUC3D_THRESHOLDS,
    **options: Unpack[ShareOptions],
) -> JointErrors:
    """AUC of MPI-INF-3DHP: the mean of `pck3d` over the 31 thresholds 0, 5, ..., 150 mm.

    Strict, so the threshold 0 always contributes 0. A Python port in use for MuPoTS takes 40 thresholds up to 195 mm,
    and an old version 41 up to 200: pass ``thresholds=range(0, 200, 5)`` for theirs.

    >>> target = torch.zeros(1, 2, 3)
    >>> auc3d(target, target)  # 30 of 31: no distance is under 0
    tensor(0.9677)
    """
    return _shares("auc3d", pred, target, None, thresholds, **options)


@pose_metric()
def cps(
    pred: Tensor,
    target: Tensor,
    *,
    joints: Sequence[int] | None = None,
    thresholds: Sequence[float] = CPS_THRESHOLDS,
    strict: bool = True,
    dim: int | None = None,
    **options: Unpack[PoseOptions],
) -> JointErrors:
    """Correct Poses Score: the area under the share of poses *all* of whose joints are close enough.

    Poses are aligned as in `pa_mpjpe`; a pose is correct at a threshold where its worst joint is closer. The area is
    the trapezoid over thresholds 1, 2, ..., 300 mm and is not normalised, so a perfect score is 299. The authors check
    16 of 17 joints, without the root: ``joints=range(1, 17)``; the alignment uses all visible joints regardless.

    Args:
        pred, target, mask, root, reduction: as for `pa_mpjpe`; with ``dim``, ``pred`` has one more axis, of hypotheses.
        joints: the joints that are checked. None: all.
        thresholds: ascending, in the unit of the input, and so is the area: for poses in metres pass them in metres.
        strict: whether a joint exactly at the threshold is wrong.
        dim: the axis of ``pred`` that holds several hypotheses, of which the best counts (an oracle). None: one pose.
    Returns: a scalar or ``(...)``. A pose without a visible joint among those checked is NaN and left out.
    Raises: as for `pa_mpjpe`; thresholds that do not ascend.
    Reference: Wandt et al., CanonPose, CVPR 2021; Wehrbein et al., ICCV 2021.

    >>> target = torch.rand(2, 17, 3)
    >>> cps(target, target)
    tensor(299.)
    """
    limits = [float(limit) for limit in thresholds]
    if len(limits) < 2 or any(after <= before for before, after in itertools.pairwise(limits)):
        remedy = "Pass two or more, such as range(1, 301) for millimetres."
        raise ValueError(three_beats("`cps` needs ascending `thresholds`", f"{len(limits)} of them", remedy))
    if dim is not None:
        pred, target = hypotheses_first("cps", pred, target, dim, options.get("mask"))
    errors, weight = aligned_distances("cps", pred, target, **options)
    if joints is not None:
        chosen = list_joints("cps", "joints", joints, target.shape[-2])
        errors = take_joints(errors, chosen, -1)
        weight = None if weight is None else take_joints(weight, chosen, -1)
    counted = None
    if weight is not None:
        errors = errors.masked_fill(weight == 0, 0.0)
        counted = (weight != 0).any(-1)
    worst = errors.amax(-1)  # NaN wins
    if dim is not None:
        worst, counted = worst.amin(0), None if counted is None else counted[0]
    edges = torch.tensor(limits, dtype=worst.dtype)
    halves = torch.diff(edges) / 2
    share = torch.nn.functional.pad(halves, (1, 0)) + torch.nn.functional.pad(halves, (0, 1))  # trapezoid weights
    remaining = torch.nn.functional.pad(share.flip(0).cumsum(0).flip(0), (0, 1))  # area from a threshold onwards
    edges, remaining = (table.to(worst.device, non_blocking=True) for table in (edges, remaining))
    area = remaining[torch.searchsorted(edges, worst.detach(), right=bool(strict))]
    area = torch.where(worst.isnan() if counted is None else ~counted | worst.isnan(), torch.nan, area)
    return JointErrors(area[..., None], None if counted is None else counted[..., None].to(area.dtype))


def _shares(
    operation: str,
    pred: Tensor,
    target: Tensor,
    norm: Tensor | float | None,
    thresholds: Sequence[float],
    strict: bool = True,
    average: str = "micro",  # noqa: ARG001  of the shares: `pose_metric`'s business
    **options: Unpack[PoseOptions],
) -> JointErrors:
    """For each joint the share of the thresholds that it is closer than."""
    errors, weight = distances(operation, pred, target, **options)
    if norm is not None:
        lengths = read_lengths(operation, "norm", norm, errors.shape[:-1], errors).expand(errors.shape[:-1])
        if weight is not None:
            lengths = torch.where((weight != 0).any(-1), lengths, 1.0)
        check_values(operation, "norm", lengths, ~(lengths > 0), "positive lengths", "Hide those items with `mask`.")
        errors = errors / torch.where(lengths > 0, lengths, torch.nan).unsqueeze(-1)
    limits = [float(limit) for limit in thresholds]
    correct = sum((errors < limit if strict else errors <= limit).to(errors.dtype) for limit in limits)
    return JointErrors(torch.where(errors.isnan(), torch.nan, correct / len(limits)), weight)


def bbox_norm(target: Tensor, *, mask: Tensor | None = None, kind: str = "max") -> Tensor:
    """Size of the box around the visible joints: ``"max"`` of its sides (mmpose's "bbox") or its ``"diagonal"``.

    ``(..., J, D)`` to ``(...)``, NaN without a visible joint; ``mask`` as for `mpjpe`. With annotated boxes (which are
    larger than the joints' own) compute it from those instead: ``wh.amax(-1)``.

    >>> corners = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    >>> bbox_norm(corners), bbox_norm(corners, kind="diagonal")
    (tensor([4.]), tensor([5.]))
    """
    check_options("bbox_norm", kind=kind)
    _, target, weight = read_poses("bbox_norm", target, target, mask=mask)
    low = high = target
    if weight is not None:
        hidden = (weight == 0).unsqueeze(-1)
        low, high = target.masked_fill(hidden, torch.inf), target.masked_fill(hidden, -torch.inf)
    sides = high.amax(-2) - low.amin(-2)
    size = sides.amax(-1) if kind == "max" else torch.linalg.vector_norm(sides, dim=-1)
    return size if weight is None else torch.where((weight != 0).any(-1), size, torch.nan)


def torso_norm(target: Tensor, first: int, second: int) -> Tensor:
    """Distance between two joints, such as a shoulder and the opposite hip: ``(..., J, D)`` to ``(...)``.

    Which two is the data set's business (JHMDB's neck and belly are joints 0 and 1, others take left shoulder to right
    hip). A torso that is not visible should be hidden with ``mask`` in the metric.

    >>> torso_norm(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]), 0, 1)
    tensor([5.])
    """
    _, target, _ = read_poses("torso_norm", target, target)
    a, b = (
        list_joints("torso_norm", name, check_count("torso_norm", name, joint, -(2**63)), target.shape[-2])[0]
        for name, joint in (("first", first), ("second", second))
    )
    return torch.linalg.vector_norm(target[..., a, :] - target[..., b, :], dim=-1)


def head_norm(box: Tensor) -> Tensor:
    """Head size of MPII: 0.6 times the diagonal of the annotated head box, ``(..., 4)`` as x1, y1, x2, y2.

    >>> head_norm(torch.tensor([0.0, 0.0, 6.0, 8.0]))
    tensor(6.)
    """
    check_shape("head_norm", "box", box, ("...", 4), "Give the corners x1, y1, x2, y2 of each box.")
    corners = box.unflatten(-1, (2, 2))
    return 0.6 * torch.linalg.vector_norm(corners[..., 1, :] - corners[..., 0, :], dim=-1)
