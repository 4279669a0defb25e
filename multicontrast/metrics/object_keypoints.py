"""COCO's keypoint metrics: object keypoint similarity, and average precision over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import (
    check_count,
    check_floating,
    check_same_device,
    check_whole,
    compute_dtype,
    describe,
    three_beats,
)
from multicontrast.metrics._inputs import (
    ItemOptions,
    JointErrors,
    average_joints,
    check_options,
    check_values,
    pose_metric,
    read_lengths,
    read_mask,
    read_poses,
    read_sigmas,
)

# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left before right.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
AP_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


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
        mask: as for `mpjpe`, but weights are from 0 to 1: COCO's flags that came as floating-point numbers are refused
            rather than counted double.
    Returns: ``(...)`` or a scalar.
    Raises: as for `mpjpe`; a number of sigmas that is not that of the joints; a negative area (on the CPU; elsewhere
        the item is NaN).

    >>> target = torch.zeros(1, 17, 2)
    >>> oks(target, target, 100.0)
    tensor(1.)
    """
    pred, target, weight = read_poses("oks", pred, target, flags=True, **options)
    return JointErrors(_similarity("oks", pred, target, area, sigmas), weight)


def _similarity(
    operation: str, pred: Tensor, target: Tensor, area: Tensor | float, sigmas: Sequence[float] | Tensor
) -> Tensor:
    """The similarity of each joint, ``(..., J)``."""
    areas = read_lengths(operation, "area", area, target.shape[:-2], target)
    check_values(operation, "area", areas, areas < 0, "areas of at least 0", "Pass the object's area.")
    areas = torch.where(areas < 0, torch.nan, areas)
    deviations = 2 * _read_sigmas(operation, sigmas, target)
    spacing = torch.finfo(torch.float64).eps  # pycocotools' guard: an area of 0 tolerates no distance
    squared = (pred - target).square().sum(-1)
    return torch.exp(-squared / deviations.square() / (areas + spacing).unsqueeze(-1) / 2)


def _read_sigmas(operation: str, sigmas: Sequence[float] | Tensor, target: Tensor) -> Tensor:
    """``(J,)`` on the device of the poses; NaN where a deviation that was not looked at is not positive."""
    listed = read_sigmas(operation, "sigmas", sigmas)
    if isinstance(listed, Tensor):
        check_same_device(operation, ("target", "sigmas"), (target, listed))
        values = torch.where(listed > 0, listed, torch.nan).to(target.dtype)
    else:
        values = torch.tensor(listed, dtype=target.dtype).to(target.device, non_blocking=True)
    if values.shape != target.shape[-2:-1]:
        remedy = "Pass one deviation per joint; the default is for COCO's 17."
        raise ValueError(three_beats(f"`{operation}` needs {target.shape[-2]} `sigmas`", describe(values), remedy))
    return values


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

    In each image the ``max_detections`` best-scored poses take, in that order, the free object of highest similarity,
    if it reaches the threshold. Precision is made monotone and averaged over the recalls 0, 0.01, ..., 1. As in
    pycocotools, with two simplifications: there are no crowd regions and no ranges of area, and an object without a
    visible joint is left out (there a detection near its box is forgiven). The matching is a sequence of choices, so it
    runs on the CPU, and synchronises.

    Args:
        pred: ``(P, J, 2)`` detected poses; may be empty.
        target: ``(G, J, 2)`` annotated poses.
        scores: ``(P,)``, higher is surer.
        area: ``(G,)`` annotated areas.
        pred_image, target_image: ``(P,)`` and ``(G,)`` integers that say which image; both None: one image.
        sigmas, mask: of the annotation, as for `oks`.
        thresholds: of similarity; the mean over all of them is COCO's AP. ``(0.5,)`` gives AP50.
        max_detections: per image.
        reduction: ``"mean"`` over the thresholds or ``"none"`` for each apart, ``(T,)``.
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
    _read_sigmas("keypoint_ap", sigmas, target)
    weight = torch.ones_like(target[..., 0])
    if mask is not None:
        weight = read_mask("keypoint_ap", mask, target.shape[:-1], target, flags=True)
    dtype = compute_dtype(pred, target)
    pred, target, area, weight = (tensor.detach().cpu().to(dtype) for tensor in (pred, target, area, weight))
    scores = scores.detach().cpu().double()
    if pred_image is None or target_image is None:
        pred_image, target_image = torch.zeros(len(pred)), torch.zeros(len(target))
    pred_image, target_image = pred_image.cpu(), target_image.cpu()
    shown = (weight != 0).any(-1)
    limits = torch.tensor([min(float(limit), 1 - 1e-10) for limit in thresholds], dtype=torch.float64)

    kept = [torch.zeros(0, dtype=torch.int64)]
    hits = [torch.zeros(len(limits), 0, dtype=torch.bool)]
    for image in torch.unique(pred_image).tolist():
        found = (pred_image == image).nonzero().flatten()
        found = found[torch.argsort(scores[found], descending=True, stable=True)][:max_detections]
        there = ((target_image == image) & shown).nonzero().flatten()
        kept.append(found)
        hits.append(_match(_similarities(pred[found], target[there], area[there], weight[there], sigmas), limits))
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
        remedy = "Flatten images and people into one axis, and say which image each is in with the image indices."
        raise ValueError(three_beats("`keypoint_ap` needs `pred` (P, J, 2) and `target` (G, J, 2)", came, remedy))
    if (pred_image is None) != (target_image is None):
        remedy = "Pass both, or neither where all poses are in one image."
        raise ValueError(three_beats("`keypoint_ap` needs both image indices", "one of them", remedy))
    given = {"pred": pred, "target": target, "scores": scores, "area": area}
    if pred_image is not None and target_image is not None:
        given |= {"pred_image": pred_image, "target_image": target_image}
    for name, entries in list(given.items())[2:]:
        (check_whole if name.endswith("image") else check_floating)("keypoint_ap", name, entries)
        poses = pred if name in ("scores", "pred_image") else target
        if entries.shape != poses.shape[:1]:
            needed = f"`keypoint_ap` needs `{name}` of shape ({len(poses)},)"
            raise ValueError(three_beats(needed, describe(entries), "Give one entry per pose."))
    check_same_device("keypoint_ap", list(given), list(given.values()))
    check_values("keypoint_ap", "area", area, area < 0, "areas of at least 0", "Pass the object's area.")


def _similarities(
    pred: Tensor, target: Tensor, area: Tensor, weight: Tensor, sigmas: Sequence[float] | Tensor
) -> Tensor:
    """OKS of all pairs in an image, ``(P, G)`` in float64."""
    shape = (len(pred), *target.shape)
    if 0 in shape:
        return torch.zeros(shape[:2], dtype=torch.float64)
    weight = weight.double().expand(shape[:3])
    hidden = (weight == 0).unsqueeze(-1)
    pairs = [pose.expand(shape).double().masked_fill(hidden, 0.0) for pose in (pred[:, None], target)]
    return average_joints(
        _similarity("keypoint_ap", pairs[0], pairs[1], area.double().expand(shape[:2]), sigmas), weight
    )


def _match(similarities: Tensor, limits: Tensor) -> Tensor:
    """Which detections (rows, best first) find an object, for each threshold: ``(T, P)`` bool."""
    detections, objects = similarities.shape
    hit = torch.zeros(len(limits), detections, dtype=torch.bool)
    if objects == 0:
        return hit
    taken = torch.zeros(len(limits), objects, dtype=torch.bool)
    rows = torch.arange(len(limits))
    for detection in range(detections):
        free = torch.where(taken, -1.0, similarities[detection])
        best = objects - 1 - free.flip(-1).argmax(-1)  # of equals the last, as in pycocotools
        hit[:, detection] = free[rows, best] >= limits
        taken[rows, best] |= hit[:, detection]
    return hit


def _average_precision(hit: Tensor, objects: int) -> Tensor:
    """Mean over 101 recalls of the precision attained at that recall or beyond, ``(T,)``."""
    true = hit.double().cumsum(-1)
    precision = true / torch.arange(1, hit.shape[-1] + 1)
    precision = precision.flip(-1).cummax(-1).values.flip(-1)
    recalls = torch.linspace(0, 1, 101, dtype=torch.float64).expand(len(hit), 101).contiguous()
    place = torch.searchsorted((true / objects).contiguous(), recalls)
    padded = torch.nn.functional.pad(precision, (0, 1))  # a recall that is never attained has precision 0
    return padded.gather(-1, place).mean(-1)
