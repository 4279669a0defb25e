"""Encoders, decoders, and :class:`~unihpe_ref.models.unihpe.UniHPE`, which assembles them."""

from unihpe_ref.models.cost import costs, multiply_adds, parameters
from unihpe_ref.models.hypotheses import best_hypothesis, mean_hypothesis
from unihpe_ref.models.pose_weights import load_pose_weights
from unihpe_ref.models.retrieval import Retrieved, retrieve
from unihpe_ref.models.unihpe import MODALITIES, PoseEstimate, UniHPE

__all__ = [
    "MODALITIES",
    "PoseEstimate",
    "Retrieved",
    "UniHPE",
    "best_hypothesis",
    "costs",
    "load_pose_weights",
    "mean_hypothesis",
    "multiply_adds",
    "parameters",
    "retrieve",
]
