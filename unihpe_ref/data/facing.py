"""A camera turned towards the person.

Away from the middle of a picture the same pose looks different, and has other coordinates in camera axes. Turning the
camera until it faces the box removes that difference, so that a lifter has less to learn. Distances do not change, so
MPJPE and PA-MPJPE are the same in both frames. Only 2D and 3D joints are turned; a picture would have to be warped.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from multicontrast._checks import three_beats

from .batches import PoseBatch
from .boxes import crop_affine, joint_box


def facing_rotation(box: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    """The rotation that brings the middle of the box onto the optical axis, without roll: ``(B, 3, 3)``.

    Args:
        box: ``(B, 3)`` pixels. focal, principal: ``(B, 2)`` pixels.
    Returns: orthogonal matrices of determinant 1; ``x_turned = rotation @ x_cam``.
    """
    forward = torch.cat([(box[..., :2] - principal) / focal, torch.ones_like(box[..., :1])], -1)
    forward = torch.nn.functional.normalize(forward, dim=-1)
    down = torch.zeros_like(forward)
    down[..., 1] = 1  # no ray in front of a lens is vertical, so neither cross product is zero
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], -2)


def turn_pixels(joints_px: Tensor, rotation: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    """Pixels ``(B, J, 2)`` after the camera has turned by ``rotation`` (B, 3, 3) about its centre."""
    rays = torch.cat([(joints_px - principal[:, None]) / focal[:, None], torch.ones_like(joints_px[..., :1])], -1)
    turned = rays @ rotation.mT
    return turned[..., :2] / turned[..., 2:] * focal[:, None] + principal[:, None]


def face_box(batch: PoseBatch) -> PoseBatch:
    """The batch as seen by cameras that face its boxes.

    Boxes are recomputed around the turned joints; a scaled box keeps its scale.

    Raises: ValueError for a batch with pictures.
    """
    if batch.image is not None:
        needed = "`face_box` needs a batch of poses alone"
        raise ValueError(three_beats(needed, "pictures", "Leave `data.view` at `camera` for models with images."))
    rotation = facing_rotation(batch.box, batch.focal, batch.principal)
    pixels = turn_pixels(batch.joints_2d, rotation, batch.focal, batch.principal)
    box = joint_box(pixels)
    share = batch.box[:, 2] / joint_box(batch.joints_2d)[:, 2]
    box = torch.cat([box[:, :2], box[:, 2:] * share[:, None]], -1)
    return replace(
        batch,
        joints_3d=batch.joints_3d @ rotation.mT,
        root=(rotation @ batch.root[..., None])[..., 0],
        joints_2d=pixels,
        box=box,
        crop_affine=crop_affine(box, (256, 192)),
    )
