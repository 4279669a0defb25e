"""What drawings of poses share: the view, the limbs, and a panel without axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from unihpe_ref.data import SKELETON

_ELEVATION = math.radians(12)


def turned(joints_3d: Tensor, azimuth: float, elevation: float = _ELEVATION) -> Tensor:
    """Joints as seen from another side.

    Args:
        joints_3d: ``(..., 3)`` camera axes, y down. azimuth, elevation: radians; elevation looks down from above.
    Returns: ``(..., 3)``: right, down, away.
    """
    x, y, z = joints_3d.unbind(-1)
    right = math.cos(azimuth) * x - math.sin(azimuth) * z
    away = math.sin(azimuth) * x + math.cos(azimuth) * z
    down = math.cos(elevation) * y - math.sin(elevation) * away
    return torch.stack((right, down, math.cos(elevation) * away + math.sin(elevation) * y), -1)


def draw_limbs(
    axis: Any, joints: Any, *, width: float, colour: str | None = None, order: Iterable[int] | None = None
) -> None:
    """Draws ``(17, 2)`` joints, each limb in the colour of its side unless ``colour`` is given."""
    for limb in range(len(SKELETON.limbs)) if order is None else order:
        u, v = joints[list(SKELETON.limbs[limb])].T
        axis.plot(u, v, color=colour or SKELETON.limb_colours[limb], linewidth=width, solid_capstyle="round")


def bare(axis: Any) -> None:
    """Removes ticks and frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
