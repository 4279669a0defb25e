"""Pose and alignment metrics: pure functions, classes that accumulate, and a report."""

from multicontrast.metrics.hypotheses import min_mpjpe
from multicontrast.metrics.joint_errors import accel_error, epe, mpjpe, mpjve, n_mpjpe
from multicontrast.metrics.keypoints import auc3d, bbox_norm, cps, head_norm, pck, pck3d, pckh, torso_norm
from multicontrast.metrics.procrustes import Alignment, pa_mpjpe, procrustes_align

__all__ = [
    "Alignment",
    "accel_error",
    "auc3d",
    "bbox_norm",
    "cps",
    "epe",
    "head_norm",
    "min_mpjpe",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "pa_mpjpe",
    "pck",
    "pck3d",
    "pckh",
    "procrustes_align",
    "torso_norm",
]
