"""The three stages of the paper, one file each. :func:`make_stages` lists those that a configuration uses."""

from __future__ import annotations

from multicontrast._checks import three_beats
from unihpe_ref.config import RunConfig
from unihpe_ref.stages.image_alignment import ImageAlignment
from unihpe_ref.stages.lifting import Companions, Lifting
from unihpe_ref.stages.multi_task import MultiTask
from unihpe_ref.stages.pose_alignment import PoseAlignment
from unihpe_ref.training import Stage

__all__ = ["Companions", "ImageAlignment", "Lifting", "MultiTask", "PoseAlignment", "make_stages"]


def make_stages(config: RunConfig) -> list[Stage]:
    """The stages that have steps, in order; without an image encoder the second is left out.

    Raises: ValueError if a model that only lifts has steps in a stage that trains more.
    """
    stages: list[Stage] = [Lifting(config.lifting), PoseAlignment(config.stage1)]
    if config.model.image_encoder != "none":
        stages.append(ImageAlignment(config.stage2))
    stages += [MultiTask(config.stage3), Companions(config.companions)]
    stages = [stage for stage in stages if stage.config.steps]
    more = [stage.name for stage in stages if not isinstance(stage, Lifting)]
    if config.model.lifting_only and more:
        needed = "a model with `lifting_only` is trained by the stage `lifting` alone"
        raise ValueError(three_beats(needed, f"steps in {', '.join(more)}", "Set the others' `steps` to 0."))
    return stages
