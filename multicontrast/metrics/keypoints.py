"""Keypoints that are close enough: shares of joints (PCK, its area) and of poses (CPS), and COCO's OKS and AP."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import (
    check_count,
    check_floating,
    check_number,
    check_same_device,
    check_shape,
    check_whole,
    compute_dtype,
    describe,
    three_beats,
)
from multicontrast.metrics._inputs import (
    ItemOptions,
    JointErrors,
    PoseOptions,
    ShareOptions,
    average_joints,
    check_options,
    check_values,
    length,
    list_joints,
    pose_metric,
    read_lengths,
    read_mask,
    read_poses,
    read_sigmas,
    take_joints,
)
from multicontrast.metrics.joint_errors import distances, hypotheses_first
from multicontrast.metrics.procrustes import aligned_distances

AUC3D_THRESHOLDS = tuple(5.0 * step for step in range(31))  # 0, 5, ..., 150 mm
CPS_THRESHOLDS = tuple(float(step) for step in range(1, 301))  # 1, 2, ..., 300 mm
# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left before right.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
AP_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


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

    A joint is correct if it is strictly closer, as in mmpose, HRNet and MPI-INF-3DHP. Shares are pooled over all
    visible joints, as MPII's own figures are; mmpose and HRNet average the joints' shares (``"macro"``). The caller
    passes the norm: `bbox_norm`, `torso_norm` or `head_norm` compute the usual ones. (mmpose falls back to the
    *predicted* torso where the true one is under a pixel; `torso_norm` does not.)

    Args:
        pred, target, mask, root: as for `mpjpe`.
        norm: ``(...)``, one positive length per item (or a number); None for a threshold in the unit of the input.
        threshold: share of the norm, or a length where ``norm`` is None.
        strict: whether a joint exactly at the threshold is wrong.
        average: under ``reduction="mean"`` or ``"sum"``: ``"micro"`` pools the visible joints, ``"macro"`` averages the
            shares of the joints that are visible anywhere, ``"none"`` gives each joint's, ``(J,)``, NaN where hidden.
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
    one-based pixels by adding 1 to predictions. If both poses use the same pixels there is nothing to add.)

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

    Poses are aligned as in `pa_mpjpe`; a pose is correct at a threshold if its worst joint is closer. The area is by
    the trapezoid rule over thresholds 1, 2, ..., 300 mm, not normalised, so a perfect score is 299. The authors check
    16 of 17 joints, without the root: ``joints=range(1, 17)``; the alignment uses all visible joints regardless.

    Args:
        pred, target, mask, root, reduction: as for `pa_mpjpe`; with ``dim``, ``pred`` has one more axis, of hypotheses.
        joints: the joints that are checked. None: all.
        thresholds: ascending, in the unit of the input, which is also the unit of the area. For poses in metres pass
            them in metres.
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
    worst = errors.amax(-1)  # NaN if any error is NaN
    if dim is not None:
        worst, counted = worst.amin(0), None if counted is None else counted[0]
    edges = torch.tensor(limits, dtype=worst.dtype, device="cpu")
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
    """For each joint, the share of the thresholds that its error is below."""
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

    ``(..., J, D)`` to ``(...)``, NaN without a visible joint; ``mask`` as for `mpjpe`. Annotated boxes are larger than
    the box around the joints; if you have them compute the norm from them: ``wh.amax(-1)``.

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
    size = sides.amax(-1) if kind == "max" else length(sides)
    return size if weight is None else torch.where((weight != 0).any(-1), size, torch.nan)


def torso_norm(target: Tensor, first: int, second: int) -> Tensor:
    """Distance between two joints, such as a shoulder and the opposite hip: ``(..., J, D)`` to ``(...)``.

    The two joints depend on the data set (JHMDB's neck and belly are joints 0 and 1, others take left shoulder to right
    hip). Hide items whose torso is not visible with ``mask`` in the metric.

    >>> torso_norm(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]), 0, 1)
    tensor([5.])
    """
    _, target, _ = read_poses("torso_norm", target, target)
    a, b = (
        list_joints("torso_norm", name, check_count("torso_norm", name, joint, -(2**63)), target.shape[-2])[0]
        for name, joint in (("first", first), ("second", second))
    )
    return length(target[..., a, :] - target[..., b, :])


def head_norm(box: Tensor) -> Tensor:
    """Head size of MPII: 0.6 times the diagonal of the annotated head box, ``(..., 4)`` as x1, y1, x2, y2.

    >>> head_norm(torch.tensor([0.0, 0.0, 6.0, 8.0]))
    tensor(6.)
    """
    check_shape("head_norm", "box", box, ("...", 4), "Give the corners x1, y1, x2, y2 of each box.")
    first, second = box.to(compute_dtype(box)).split(2, -1)
    return 0.6 * length(second - first)


@pose_metric(ItemOptions)
def oks(
    pred: Tensor,
    target: Tensor,
    area: Tensor | float,
    *,
    sigmas: Sequence[float] | Tensor = COCO_SIGMAS,
    **options: Unpack[ItemOptions],
) -> JointErrors:
    r"""Object keypoint similarity of COCO: 1 for a perfect pose, towards 0 for a wrong one (Lin et al., ECCV 2014).

    .. math:: \frac{1}{\sum_j w_j} \sum_j w_j \exp\Bigl(-\frac{d_j^2}{2\,(2\sigma_j)^2 A}\Bigr)

    As in pycocotools: the deviations are ``2 sigma``, only visible joints count (``v > 0``), and the area is the
    annotated segment's. (xtcocotools can use ``0.53 * w * h`` of the box instead: pass that as ``area``.) Where nothing
    is visible pycocotools measures the distance to a doubled box; here the item is NaN and left out.

    Args:
        pred, target, reduction: as for `mpjpe`.
        area: ``(...)``, or a number: the object's area, in squared units of the poses.
        sigmas: one per joint; COCO's 17 by default.
        mask: as for `mpjpe`, but weights are from 0 to 1: COCO's flags as floating-point numbers raise an error,
            because a flag of 2 would count double.
    Returns: ``(...)`` or a scalar.
    Raises: as for `mpjpe`; a number of sigmas that is not that of the joints; a negative area (on the CPU; elsewhere
        the item is NaN).

    >>> target = torch.zeros(1, 17, 2)
    >>> oks(target, target, 100.0)
    tensor(1.)
    """
    pred, target, weight = read_poses("oks", pred, target, flags=True, **options)
    area = _read_areas("oks", area, target)
    return JointErrors(_similarity(pred, target, area, _read_deviations("oks", sigmas, target)), weight)


def _similarity(pred: Tensor, target: Tensor, area: Tensor, deviations: Tensor) -> Tensor:
    """The similarity of each joint, ``(..., J)``."""
    spacing = torch.finfo(torch.float64).eps  # as in pycocotools, for an area of 0
    squared = (pred - target).square().sum(-1)
    return torch.exp(-squared / deviations.square() / (area + spacing).unsqueeze(-1) / 2)


def _read_areas(operation: str, area: Tensor | float, target: Tensor) -> Tensor:
    """One area, or one per item; NaN for a negative one that was not checked."""
    areas = read_lengths(operation, "area", area, target.shape[:-2], target)
    check_values(operation, "area", areas, areas < 0, "areas of at least 0", "Pass the object's area.")
    return torch.where(areas < 0, torch.nan, areas)


def _read_deviations(operation: str, sigmas: Sequence[float] | Tensor, target: Tensor) -> Tensor:
    """``2 sigma``, ``(J,)`` on the device of the poses; NaN for a sigma that is not positive and was not checked."""
    listed = read_sigmas(operation, "sigmas", sigmas)
    if isinstance(listed, Tensor):
        check_same_device(operation, ("target", "sigmas"), (target, listed))
        values = torch.where(listed > 0, listed, torch.nan).to(target.dtype)
    else:
        values = torch.tensor(listed, dtype=target.dtype, device="cpu").to(target.device, non_blocking=True)
    if values.shape != target.shape[-2:-1]:
        remedy = "Pass one deviation per joint; the default is for COCO's 17."
        raise ValueError(three_beats(f"`{operation}` needs {target.shape[-2]} `sigmas`", describe(values), remedy))
    return 2 * values


def keypoint_ap(
    pred: Tensor,
    target: Tensor,
    scores: Tensor,
    area: Tensor,
    *,
    pred_image: Tensor | None = None,
    target_image: Tensor | None = None,
    sigmas: Sequence[float] | Tensor = COCO_SIGMAS,
    mask: Tensor | None = None,
    thresholds: Sequence[float] = AP_THRESHOLDS,
    max_detections: int = 20,
    reduction: str = "mean",
) -> Tensor:
    """Average precision of detected poses over thresholds of `oks` (COCO's keypoint AP).

    In each image the ``max_detections`` best-scored poses take, best first, the free object of highest similarity, if
    that reaches the threshold. Precision is made monotone and averaged over the recalls 0, 0.01, ..., 1. As in
    pycocotools, with two simplifications: there are no crowd regions and no ranges of area, and an object without a
    visible joint is left out (pycocotools ignores a detection near its box). The matching is a sequence of choices, so
    it runs on the CPU and synchronises with the device.

    Args:
        pred: ``(P, J, 2)`` detected poses; may be empty.
        target: ``(G, J, 2)`` annotated poses.
        scores: ``(P,)``, higher is more confident.
        area: ``(G,)`` annotated areas.
        pred_image, target_image: ``(P,)`` and ``(G,)`` image numbers, integers; both None: one image.
        sigmas, mask: of the annotation, as for `oks`.
        thresholds: of similarity; the mean over all of them is COCO's AP. ``(0.5,)`` gives AP50.
        max_detections: per image.
        reduction: ``"mean"`` over the thresholds, or ``"none"`` for one value per threshold, ``(T,)``.
    Returns: a scalar or ``(T,)``, NaN without any annotated pose or with NaN among the scores or coordinates.
    Raises: ValueError, TypeError for shapes that do not fit; one of the image indices without the other.

    >>> target = torch.zeros(2, 17, 2) + torch.tensor([0.0, 500.0])[:, None, None]
    >>> keypoint_ap(target, target, torch.tensor([0.9, 0.8]), torch.tensor([1e4, 1e4]))
    tensor(1.)
    """
    check_options("keypoint_ap", thresholds=thresholds, reduction=reduction, sigmas=sigmas)
    if reduction == "sum":
        needed = "`keypoint_ap` averages over thresholds, or gives each"
        raise ValueError(three_beats(needed, 'reduction="sum"', 'Pass reduction="none" and add them up.'))
    check_count("keypoint_ap", "max_detections", max_detections, least=1)
    _check_detections(pred, target, scores, area, pred_image, target_image)
    weight = torch.ones_like(target[..., 0])
    if mask is not None:
        weight = read_mask("keypoint_ap", mask, target.shape[:-1], target, flags=True)
    dtype = compute_dtype(pred, target)
    pred, target, scores, area, weight = (
        tensor.detach().cpu().double() for tensor in (pred, target, scores, area, weight)
    )
    area = _read_areas("keypoint_ap", area, target)
    deviations = _read_deviations("keypoint_ap", sigmas.cpu() if isinstance(sigmas, Tensor) else sigmas, target)
    if pred_image is None or target_image is None:
        pred_image, target_image = pred.new_zeros(len(pred)), target.new_zeros(len(target))
    pred_image, target_image = pred_image.cpu(), target_image.cpu()
    shown = (weight != 0).any(-1)
    limits = pred.new_tensor([min(float(limit), 1 - 1e-10) for limit in thresholds])

    kept = [pred.new_zeros(0, dtype=torch.int64)]
    hits = [pred.new_zeros(len(limits), 0, dtype=torch.bool)]
    for image in torch.unique(pred_image).tolist():
        found = (pred_image == image).nonzero().flatten()
        found = found[torch.argsort(scores[found], descending=True, stable=True)][:max_detections]
        there = ((target_image == image) & shown).nonzero().flatten()
        kept.append(found)
        joints = _similarity(pred[found].unsqueeze(1), target[there], area[there], deviations)  # (P, G, J)
        hits.append(_match(average_joints(joints, weight[there].expand_as(joints)), limits))
    order = torch.argsort(scores[torch.cat(kept)], descending=True, stable=True)
    values = _average_precision(torch.cat(hits, -1)[:, order], int(shown.sum()))
    invalid = scores.isnan().any() | pred.isnan().any() | target[weight != 0].isnan().any() | ~shown.any()
    values = torch.where(invalid, torch.nan, values).to(dtype)
    return values if reduction == "none" else values.mean()


def _check_detections(
    pred: Tensor, target: Tensor, scores: Tensor, area: Tensor, pred_image: Tensor | None, target_image: Tensor | None
) -> None:
    check_floating("keypoint_ap", "pred", pred)
    check_floating("keypoint_ap", "target", target)
    if pred.dim() != 3 or target.dim() != 3 or pred.shape[1:] != target.shape[1:] or pred.shape[-1] not in (2, 3):
        came = f"`pred` {tuple(pred.shape)} and `target` {tuple(target.shape)}"
        remedy = "Flatten images and people into one axis; pass each one's image as `pred_image` and `target_image`."
        raise ValueError(three_beats("`keypoint_ap` needs `pred` (P, J, 2) and `target` (G, J, 2)", came, remedy))
    if (pred_image is None) != (target_image is None):
        remedy = "Pass both, or neither where all poses are in one image."
        raise ValueError(three_beats("`keypoint_ap` needs both image indices", "one of them", remedy))
    given = {"pred": pred, "target": target}
    beside = [("scores", scores, check_floating, pred), ("area", area, check_floating, target)]
    if pred_image is not None and target_image is not None:
        beside += [("pred_image", pred_image, check_whole, pred), ("target_image", target_image, check_whole, target)]
    for name, entries, check, poses in beside:
        check("keypoint_ap", name, entries)
        if entries.shape != poses.shape[:1]:
            needed = f"`keypoint_ap` needs `{name}` of shape ({len(poses)},)"
            raise ValueError(three_beats(needed, describe(entries), "Give one entry per pose."))
        given[name] = entries
    check_same_device("keypoint_ap", list(given), list(given.values()))


def _match(similarities: Tensor, limits: Tensor) -> Tensor:
    """Which detections (rows, best first) find an object, for each threshold: ``(T, P)`` bool."""
    detections, objects = similarities.shape
    hit = limits.new_zeros(len(limits), detections, dtype=torch.bool)
    if objects == 0:
        return hit
    taken = limits.new_zeros(len(limits), objects, dtype=torch.bool)
    rows = torch.arange(len(limits), device=limits.device)
    for detection in range(detections):
        free = torch.where(taken, -1.0, similarities[detection])
        best = objects - 1 - free.flip(-1).argmax(-1)  # the last of equal ones, as in pycocotools
        hit[:, detection] = free[rows, best] >= limits
        taken[rows, best] |= hit[:, detection]
    return hit


def _average_precision(hit: Tensor, objects: int) -> Tensor:
    """Mean over 101 recalls of the precision attained at that recall or beyond, ``(T,)``."""
    true = hit.double().cumsum(-1)
    precision = true / torch.arange(1, hit.shape[-1] + 1, device=hit.device)
    precision = precision.flip(-1).cummax(-1).values.flip(-1)
    recalls = torch.linspace(0, 1, 101, dtype=true.dtype, device=hit.device).expand(len(hit), 101).contiguous()
    place = torch.searchsorted((true / objects).contiguous(), recalls)
    padded = torch.nn.functional.pad(precision, (0, 1))  # a recall that is never attained has precision 0
    return padded.gather(-1, place).mean(-1)
