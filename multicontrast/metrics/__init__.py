"""Pose and alignment metrics: pure functions, and classes that accumulate them over batches.

The classes are loaded when the first of them is named, and are ``torchmetrics.Metric`` where torchmetrics is installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from multicontrast.metrics.embeddings import (
    alignment,
    cosine_alignment,
    cosine_matrix,
    effective_rank,
    mean_reciprocal_rank,
    median_rank,
    modality_gap,
    retrieval_ranks,
    retrieval_recall,
    sign_flipped_share,
    uniformity,
)
from multicontrast.metrics.joint_errors import accel_error, epe, min_mpjpe, mpjpe, mpjve, n_mpjpe
from multicontrast.metrics.keypoints import (
    COCO_SIGMAS,
    auc3d,
    bbox_norm,
    cps,
    head_norm,
    keypoint_ap,
    oks,
    pck,
    pck3d,
    pckh,
    torso_norm,
)
from multicontrast.metrics.procrustes import Alignment, pa_mpjpe, procrustes_align

if TYPE_CHECKING:
    from multicontrast.metrics.classes import (
        AUC3D,
        CPS,
        EPE,
        MPJPE,
        MPJVE,
        NMPJPE,
        OKS,
        PAMPJPE,
        PCK,
        PCK3D,
        AccelError,
        MinMPJPE,
        ModalityAlignment,
        PCKh,
        PoseMetric,
        RetrievalRecall,
        Summary,
    )  # fmt: skip

__all__ = [
    "AUC3D", "COCO_SIGMAS", "CPS", "EPE", "MPJPE", "MPJVE", "NMPJPE", "OKS", "PAMPJPE", "PCK", "PCK3D",
    "AccelError", "Alignment", "MinMPJPE", "ModalityAlignment", "PCKh", "PoseMetric", "RetrievalRecall",
    "Summary", "accel_error", "alignment", "auc3d", "bbox_norm", "cosine_alignment", "cosine_matrix", "cps",
    "effective_rank", "epe", "head_norm", "keypoint_ap", "mean_reciprocal_rank", "median_rank", "min_mpjpe",
    "modality_gap", "mpjpe", "mpjve", "n_mpjpe", "oks", "pa_mpjpe", "pck", "pck3d", "pckh", "procrustes_align",
    "retrieval_ranks", "retrieval_recall", "sign_flipped_share", "torso_norm", "uniformity",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.classes"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
