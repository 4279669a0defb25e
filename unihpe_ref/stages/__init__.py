"""The three stages of the paper, one file each. :func:`make_stages` lists those that a configuration asks for."""

from __future__ import annotations

from unihpe_ref.config import RunConfig
from unihpe_ref.stages.image_alignment import ImageAlignment
from unihpe_ref.stages.lifting import Companions, Lifting
from unihpe_ref.stages.multi_task import MultiTask
from unihpe_ref.stages.pose_alignment import PoseAlignment
from unihpe_ref.training import Stage

__all__ = ["Companions", "ImageAlignment", "Lifting", "MultiTask", "PoseAlignment", "make_stages"]


def make_stages(config: RunConfig) -> list[Stage]:
    """The stages with steps to take, in order; without an image encoder there is nothing for the second."""
    stages: list[Stage] = [Lifting(config.lifting), PoseAlignment(config.stage1)]
    if config.model.image_encoder != "none":
        stages.append(ImageAlignment(config.stage2))
    stages += [MultiTask(config.stage3), Companions(config.companions)]
    return [stage for stage in stages if stage.config.steps]
