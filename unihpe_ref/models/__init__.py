"""Encoders, decoders, and :class:`~unihpe_ref.models.unihpe.UniHPE`, which assembles them."""

from unihpe_ref.models.cost import costs, multiply_adds, parameters
from unihpe_ref.models.pose_weights import load_pose_weights
from unihpe_ref.models.unihpe import MODALITIES, PoseEstimate, UniHPE

__all__ = ["MODALITIES", "PoseEstimate", "UniHPE", "costs", "load_pose_weights", "multiply_adds", "parameters"]
