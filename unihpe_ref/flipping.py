"""Test-time flipping: averages a lifted pose with its lifted mirror image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unihpe_ref.data import flip_joints
from unihpe_ref.models import UniHPE


def lift_flipped(
    model: UniHPE,
    kp2d: Tensor,
    box_info: Tensor,
    *,
    joint_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean of the lifted pose and of the lifted mirror image, mirrored back: ``(B, 17, 3)``.

    The arguments are those of :meth:`unihpe_ref.models.UniHPE.lift`.
    """
    mirrored = torch.cat((-box_info[:, :1], box_info[:, 1:]), -1)
    options: dict[str, Any] = {"joint_noise": joint_noise, "generator": generator}
    plain = model.lift(kp2d, box_info, **options)
    return (plain + flip_joints(model.lift(flip_joints(kp2d), mirrored, **options))) / 2
