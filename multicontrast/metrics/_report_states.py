"""What a report keeps beside its metrics: the PCK curve, and some poses to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from multicontrast.metrics._accumulate import Accumulator
from multicontrast.metrics._inputs import Root, average_joints, mean_position, root_joints
from multicontrast.metrics._pose_metric import PoseMetric
from multicontrast.metrics.joint_errors import JointErrors, mpjpe_joints


class Curve(PoseMetric):
    """The share of joints closer than each threshold: a pose metric that has thresholds for joints."""

    pooled = True
    scales_with = "share"

    def __init__(self, thresholds: Sequence[float], root: Root, **accumulation: Any) -> None:
        self.thresholds = tuple(thresholds)
        self.root = root
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds, "root": self.root}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        distances, weight = mpjpe_joints("PoseReport", pred, target, mask, self.root)
        weight = torch.ones_like(distances) if weight is None else weight
        shares = [
            average_joints(torch.where(distances.isnan(), torch.nan, (distances < limit).to(distances.dtype)), weight)
            for limit in self.thresholds
        ]
        total = weight.sum(-1, keepdim=True).expand(*weight.shape[:-1], len(shares))
        return JointErrors(torch.stack(shares, -1), total)


@dataclass(frozen=True)
class Examples:
    """Poses to look at, roots laid together: the best, the median and the worst of what was seen."""

    names: tuple[str, ...]
    errors: tuple[float, ...]
    pred: np.ndarray  # (3, J, 3)
    target: np.ndarray


class ExampleStore(Accumulator):
    """Keeps the best pose, the worst, and a fair sample of the others, whatever the order and number of batches.

    Every pose draws a random key; the ``size`` smallest keys stay. That sample can be merged like a sum.
    """

    def __init__(self, size: int, root: Root, **accumulation: Any) -> None:
        self.size, self.root = size, root
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._keys = np.random.default_rng(rank)
        super().__init__(**accumulation)

    def extra_repr(self) -> str:
        return f"size={self.size}, root={self.root}"

    def update(self, pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> None:
        self._update_count += 1
        with torch.no_grad():
            distances, weight = mpjpe_joints("PoseReport", pred, target, mask, self.root)
            errors = average_joints(distances, weight).cpu().double()
            hidden = torch.zeros(target.shape[:-1], dtype=torch.bool) if weight is None else (weight == 0).cpu()
            usable = errors.isfinite()
            poses = [
                self._rooted(pose).cpu().double().masked_fill(hidden[..., None], torch.nan) for pose in (pred, target)
            ]
        keys = torch.from_numpy(self._keys.random(len(errors)))
        for name, rows in (("error", errors), ("key", keys), ("pred", poses[0]), ("target", poses[1])):
            self._append(name, rows[usable])
        self._trim()

    def _rooted(self, pose: Tensor) -> Tensor:
        if self.root is None:
            return pose
        return pose - mean_position(pose, root_joints("PoseReport", self.root, pose.shape[-2]))

    def _trim(self) -> None:
        rows = self._joined_rows()
        if len(rows["key"]) <= self.size + 2:
            return
        sample = rows["key"].argsort()[: self.size]
        ends = torch.stack((rows["error"].argmin(), rows["error"].argmax()))
        kept = torch.cat((sample, ends)).unique()
        self._rows = {name: [value[kept]] for name, value in rows.items()}

    def merge(self, other: ExampleStore) -> None:
        super().merge(other)
        if self._rows:
            self._trim()

    def chosen(self, unit_scale: float) -> Examples | None:
        """The three poses, over all ranks; None where nothing was seen."""
        rows = self._synced()[1]
        if not rows or not len(rows["error"]):
            return None
        errors = rows["error"]
        sample = rows["key"].argsort()[: self.size]
        middle = sample[errors[sample].argsort()[(len(sample) - 1) // 2]]
        places = [int(errors.argmin()), int(middle), int(errors.argmax())]
        return Examples(
            names=("best", "median", "worst"),
            errors=tuple((unit_scale * errors[places]).tolist()),
            pred=(unit_scale * rows["pred"][places]).numpy(),
            target=(unit_scale * rows["target"][places]).numpy(),
        )
