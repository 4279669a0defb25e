"""A batch of people seen by cameras, the input of training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .boxes import apply_affine, box_information, normalise_joints


@dataclass(frozen=True)
class PoseBatch:
    """B samples; all tensors are on one device.

    Augmentation changes pictures, pixels and 3D together: a mirrored, turned or rescaled sample looks as a mirrored or
    turned camera with another box would see it.

    Attributes:
        joints_3d: ``(B, 17, 3)`` float32, camera axes (x right, y down, z forward), metres from the pelvis.
        root: ``(B, 3)`` float32, the pelvis in the camera's frame, metres.
        joints_2d: ``(B, 17, 2)`` float32, full-image pixels: the projection of ``joints_3d + root``.
        box: ``(B, 3)`` float32, centre and longer padded side (cx, cy, b), full-image pixels.
        focal, principal: ``(B, 2)`` float32, pixels.
        image_size: ``(B, 2)`` float32, width and height of the full image.
        image: ``(B, 3, H, W)`` float32, the crop, RGB, normalised by ImageNet's mean and deviation; or None.
        crop_affine: ``(B, 2, 3)`` float32, full-image pixels to crop pixels.
        action, subject, sequence: ``(B,)`` int64 numbers; the source has their names.
        index: ``(B,)`` int64, the frame within the source.
        joint_noise: ``(B,)`` float32, standard deviation of the error of ``joints_2d``, as a share of the box's longer
            side; an estimate for a detector's joints.
    """

    joints_3d: Tensor
    root: Tensor
    joints_2d: Tensor
    box: Tensor
    focal: Tensor
    principal: Tensor
    image_size: Tensor
    image: Tensor | None
    crop_affine: Tensor
    action: Tensor
    subject: Tensor
    sequence: Tensor
    index: Tensor
    joint_noise: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.index)

    def __getitem__(self, rows: slice) -> PoseBatch:
        """Some of the samples."""
        return self._mapped(lambda value: value[rows])

    def to(self, device: torch.device | str) -> PoseBatch:
        """The same batch on another device."""
        return self._mapped(lambda value: value.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> PoseBatch:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in held.items() if value is not None})

    def joints_2d_normalised(self) -> Tensor:
        """``(uv - c) / (b / 2)``: ``(B, 17, 2)``, within about 0.8 of zero."""
        return normalise_joints(self.joints_2d, self.box)

    def joints_2d_crop(self) -> Tensor:
        """The joints in pixels of ``image``: ``(B, 17, 2)``."""
        return apply_affine(self.crop_affine, self.joints_2d)

    def box_info(self) -> Tensor:
        """The box in numbers of order 1, ``(B, 3)``; see :func:`~unihpe_ref.data.boxes.box_information`."""
        return box_information(self.box, self.focal, self.principal)

    def inputs_2d(self) -> dict[str, Tensor]:
        """The model's inputs for the 2D pose: the arguments of :meth:`unihpe_ref.models.UniHPE.lift` by name."""
        return {
            "kp2d": self.joints_2d_normalised(),
            "box_info": self.box_info(),
            "joint_noise": self.joint_noise,
        }
