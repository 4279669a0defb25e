"""Pose metrics that accumulate: one for each function, described by it.

Each takes the options of its function when it is made and the data in ``update``; ``compute`` gives the number that the
function would give for everything at once.
"""

from __future__ import annotations

from torch import Tensor

from multicontrast.metrics._accumulate import Ids
from multicontrast.metrics._pose_metric import Group, PoseMetric
from multicontrast.metrics.hypotheses import min_mpjpe
from multicontrast.metrics.joint_errors import accel_error, epe, mpjpe, mpjve, n_mpjpe
from multicontrast.metrics.keypoints import auc3d, cps, pck, pck3d, pckh
from multicontrast.metrics.object_keypoints import oks
from multicontrast.metrics.procrustes import pa_mpjpe


class MPJPE(PoseMetric, function=mpjpe):
    """`mpjpe` over many batches: the mean over all items.

    Example:
        >>> metric = MPJPE(groups=["Walking", "Sitting"])
        >>> target = torch.zeros(3, 17, 3)
        >>> metric.update(target + torch.tensor([3.0, 4.0, 0.0]), target, group=["Walking", "Walking", "Sitting"])
        >>> metric.compute()
        tensor(5., dtype=torch.float64)
    """


class EPE(PoseMetric, function=epe, pooled=True):
    """`epe` over many batches: the mean over all visible joints."""


class NMPJPE(PoseMetric, function=n_mpjpe):
    """`n_mpjpe` over many batches: the mean over all items."""


class PAMPJPE(PoseMetric, function=pa_mpjpe):
    """`pa_mpjpe` over many batches: the mean over all items."""


class MPJVE(PoseMetric, function=mpjve, item_axes=3):
    """`mpjve` over many batches of clips ``(B, T, J, 3)``: the mean over all differences of frames."""


class AccelError(PoseMetric, function=accel_error, item_axes=3):
    """`accel_error` over many batches of clips ``(B, T, J, 3)``: the mean over all second differences."""


class MinMPJPE(PoseMetric, function=min_mpjpe):
    """`min_mpjpe` over many batches: the best of several hypotheses."""


class PCK3D(PoseMetric, function=pck3d, pooled=True, unit="share", thresholds_are_lengths=True):
    """`pck3d` over many batches: the share of correct joints."""


class AUC3D(PoseMetric, function=auc3d, pooled=True, unit="share", thresholds_are_lengths=True):
    """`auc3d` over many batches: the mean share of correct joints over the thresholds."""


class CPS(PoseMetric, function=cps, whole_pose=True, thresholds_are_lengths=True, higher_is_better=True):
    """`cps` over many batches: the mean over all poses."""


class PCK(PoseMetric, function=pck, pooled=True, unit="share"):
    """`pck` over many batches: the share of correct joints."""

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        norm: Tensor | float | None = None,
        *,
        mask: Tensor | None = None,
        group: Group | None = None,
        ids: Ids | None = None,
    ) -> None:
        """As for every pose metric; ``norm`` as for `pck`."""
        self._take(pred, target, {"norm": norm, "mask": mask}, group, ids)


class PCKh(PoseMetric, function=pckh, pooled=True, unit="share"):
    """`pckh` over many batches: the share of correct joints, by the size of the head."""

    def update(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        norm: Tensor | float,
        *,
        mask: Tensor | None = None,
        group: Group | None = None,
        ids: Ids | None = None,
    ) -> None:
        """As for every pose metric; ``norm``, the head sizes, as for `pckh`."""
        self._take(pred, target, {"norm": norm, "mask": mask}, group, ids)


class OKS(PoseMetric, function=oks, unit="number"):
    """`oks` over many batches: the mean over all objects with a visible joint."""

    def update(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        area: Tensor | float,
        *,
        mask: Tensor | None = None,
        group: Group | None = None,
        ids: Ids | None = None,
    ) -> None:
        """As for every pose metric; ``area`` as for `oks`."""
        self._take(pred, target, {"area": area, "mask": mask}, group, ids)
