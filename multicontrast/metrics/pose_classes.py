"""Pose metrics that accumulate: one small class for each function.

Each class takes the options of its function when it is made and the data in ``update``; ``compute`` gives the number
that the function would give for everything at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from multicontrast._checks import check_choice
from multicontrast.metrics._inputs import Root
from multicontrast.metrics._pose_metric import PoseMetric, Tally
from multicontrast.metrics.hypotheses import min_mpjpe_joints
from multicontrast.metrics.joint_errors import JointErrors, motion_joints, mpjpe_joints, n_mpjpe_joints
from multicontrast.metrics.keypoints import (
    AUC3D_THRESHOLDS,
    AVERAGES,
    CPS_THRESHOLDS,
    cps_items,
    pck_joints,
    read_thresholds,
)
from multicontrast.metrics.object_keypoints import COCO_SIGMAS, oks_joints
from multicontrast.metrics.procrustes import pa_mpjpe_joints


class MPJPE(PoseMetric):
    """`mpjpe` over many batches: the mean over all items.

    Args:
        root: as for `mpjpe`.
        groups, sync_on_compute, process_group: as for every pose metric.

    Example:
        >>> metric = MPJPE(groups=["Walking", "Sitting"])
        >>> target = torch.zeros(3, 17, 3)
        >>> metric.update(target + torch.tensor([3.0, 4.0, 0.0]), target, group=["Walking", "Walking", "Sitting"])
        >>> metric.compute()
        tensor(5., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, *, root: Root = None, **accumulation: Any) -> None:
        self.root = root
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"root": self.root}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        return mpjpe_joints(type(self).__name__, pred, target, mask, self.root)


class EPE(MPJPE):
    """`epe` over many batches: the mean over all visible joints. Options as for `MPJPE`."""

    pooled = True


class NMPJPE(MPJPE):
    """`n_mpjpe` over many batches. Options as for `MPJPE`."""

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        return n_mpjpe_joints("NMPJPE", pred, target, mask, self.root)


class PAMPJPE(PoseMetric):
    """`pa_mpjpe` over many batches.

    Args:
        scale, allow_reflection, root: as for `pa_mpjpe`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    higher_is_better = False

    def __init__(
        self, *, scale: bool = True, allow_reflection: bool = False, root: Root = None, **accumulation: Any
    ) -> None:
        self.scale, self.allow_reflection, self.root = scale, allow_reflection, root
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"scale": self.scale, "allow_reflection": self.allow_reflection}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        return pa_mpjpe_joints("PAMPJPE", pred, target, mask, self.root, **self._options())


class MPJVE(MPJPE):
    """`mpjve` over many batches of clips ``(B, T, J, 3)``: the mean over all differences of frames.

    Args:
        fps, root: as for `mpjve`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    _order: ClassVar[int] = 1
    item_axes = 3

    def __init__(self, *, fps: float | None = None, root: Root = None, **accumulation: Any) -> None:
        self.fps = fps
        super().__init__(root=root, **accumulation)

    def _options(self) -> dict[str, Any]:
        return {"fps": self.fps, "root": self.root}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        return motion_joints(type(self).__name__, self._order, pred, target, self.fps, mask, self.root)


class AccelError(MPJVE):
    """`accel_error` over many batches of clips ``(B, T, J, 3)``. Options as for `MPJVE`."""

    _order = 2


class MinMPJPE(PoseMetric):
    """`min_mpjpe` over many batches: the best of several hypotheses.

    Args:
        dim, mode, procrustes, root: as for `min_mpjpe`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    higher_is_better = False

    def __init__(
        self, *, dim: int = 0, mode: str = "pose", procrustes: bool = False, root: Root = None, **accumulation: Any
    ) -> None:
        check_choice("MinMPJPE", "mode", mode, ("pose", "joint"))
        self.dim, self.mode, self.procrustes, self.root = dim, mode, procrustes, root
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"dim": self.dim, "mode": self.mode, "procrustes": self.procrustes, "root": self.root}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        return min_mpjpe_joints("MinMPJPE", pred, target, self.dim, self.mode, self.procrustes, mask, self.root)

    def _poses(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return pred.select(self.dim, 0), target, mask


class PCK(PoseMetric):
    """`pck` over many batches: the share of correct joints.

    Args:
        threshold, strict, average, root: as for `pck`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    higher_is_better = True
    pooled = True
    scales_with = "share"

    def __init__(
        self, *, threshold: float, strict: bool = True, average: str = "micro", root: Root = None, **accumulation: Any
    ) -> None:
        check_choice(type(self).__name__, "average", average, AVERAGES)
        self.thresholds = tuple(read_thresholds(type(self).__name__, (threshold,)))
        self.strict, self.average, self.root = strict, average, root
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {
            "threshold": self.thresholds[0],
            "strict": self.strict,
            "average": self.average,
            "root": self.root,
        }

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        norm: Tensor | float | None = None,
        *,
        mask: Tensor | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """As for every pose metric; ``norm`` as for `pck`."""
        self._take(target, group, ids, self._measure_normed, pred, target, norm, mask)

    def _measure_normed(
        self, pred: Tensor, target: Tensor, norm: Tensor | float | None, mask: Tensor | None
    ) -> JointErrors:
        name = type(self).__name__
        return pck_joints(name, pred, target, norm, self.thresholds, self.strict, mask, self.root)

    def _values(self, table: Tally) -> Tensor:
        if self.average != "macro":
            return super()._values(table)
        seen = table.joint_count > 0
        return torch.where(seen, table.joint_sum / table.joint_weight, 0.0).sum(-1) / seen.sum(-1)

    def _value(self, everything: Tally, frame_mean: Tensor) -> Tensor:
        return everything.joint_sum[0] / everything.joint_weight[0] if self.average == "none" else frame_mean


class PCKh(PCK):
    """`pckh` over many batches: `PCK` with half the head size, which each update passes as ``norm``."""

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        strict: bool = True,
        average: str = "micro",
        root: Root = None,
        **accumulation: Any,
    ) -> None:
        super().__init__(threshold=threshold, strict=strict, average=average, root=root, **accumulation)

    def update(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        norm: Tensor | float,
        *,
        mask: Tensor | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """As for every pose metric; ``norm``, the head sizes, as for `pckh`."""
        super().update(pred, target, norm, mask=mask, group=group, ids=ids)


class _PoseShare(PCK):
    """PCK without a norm: `PCK3D` and `AUC3D`."""

    @property
    def longest(self) -> float:  # type: ignore[override]
        return max(self.thresholds)

    def update(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """As for every pose metric."""
        self._take(target, group, ids, self._measure_normed, pred, target, None, mask)


class PCK3D(_PoseShare):
    """`pck3d` over many batches.

    Args:
        threshold, strict, average, root: as for `pck3d`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    def __init__(
        self,
        *,
        threshold: float = 150.0,
        strict: bool = True,
        average: str = "micro",
        root: Root = 0,
        **accumulation: Any,
    ) -> None:
        super().__init__(threshold=threshold, strict=strict, average=average, root=root, **accumulation)


class AUC3D(_PoseShare):
    """`auc3d` over many batches.

    Args:
        thresholds, strict, average, root: as for `auc3d`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    def __init__(
        self,
        *,
        thresholds: Sequence[float] = AUC3D_THRESHOLDS,
        strict: bool = True,
        average: str = "micro",
        root: Root = 0,
        **accumulation: Any,
    ) -> None:
        limits = tuple(read_thresholds("AUC3D", thresholds))
        super().__init__(threshold=limits[0], strict=strict, average=average, root=root, **accumulation)
        self.thresholds = limits

    def _options(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds, "strict": self.strict, "average": self.average, "root": self.root}


class CPS(PoseMetric):
    """`cps` over many batches: the mean over all poses.

    Args:
        joints, thresholds, strict, dim, root: as for `cps`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    higher_is_better = True
    whole_pose = True

    def __init__(
        self,
        *,
        joints: Sequence[int] | None = None,
        thresholds: Sequence[float] = CPS_THRESHOLDS,
        strict: bool = True,
        dim: int | None = None,
        root: Root = None,
        **accumulation: Any,
    ) -> None:
        self.joints = None if joints is None else tuple(joints)
        self.thresholds = tuple(read_thresholds("CPS", thresholds))
        self.strict, self.dim, self.root = strict, dim, root
        self.longest = max(self.thresholds)
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"joints": self.joints, "thresholds": self.thresholds, "strict": self.strict, "dim": self.dim}

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        values, seen = cps_items(
            "CPS", pred, target, self.joints, self.thresholds, self.strict, self.dim, mask, self.root
        )
        return JointErrors(values.unsqueeze(-1), seen.to(values.dtype).unsqueeze(-1))  # one "joint": the pose

    def _poses(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return pred if self.dim is None else pred.select(self.dim, 0), target, mask


class OKS(PoseMetric):
    """`oks` over many batches: the mean over all objects with a visible joint.

    Args:
        sigmas: as for `oks`.
        groups, sync_on_compute, process_group: as for every pose metric.
    """

    higher_is_better = True
    scales_with = "nothing"

    def __init__(self, *, sigmas: Sequence[float] = COCO_SIGMAS, **accumulation: Any) -> None:
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        super().__init__(**accumulation)

    def _options(self) -> dict[str, Any]:
        return {"sigmas": self.sigmas}

    def update(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        area: Tensor | float,
        *,
        mask: Tensor | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """As for every pose metric; ``area`` as for `oks`."""
        self._take(target, group, ids, self._measure_in_area, pred, target, area, mask)

    def _measure_in_area(self, pred: Tensor, target: Tensor, area: Tensor | float, mask: Tensor | None) -> JointErrors:
        return oks_joints("OKS", pred, target, area, self.sigmas, mask)
