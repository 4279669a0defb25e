"""Encoders, decoders, and :class:`~unihpe_ref.models.unihpe.UniHPE`, which assembles them."""

from unihpe_ref.models.unihpe import MODALITIES, PoseEstimate, UniHPE

__all__ = ["MODALITIES", "PoseEstimate", "UniHPE"]
