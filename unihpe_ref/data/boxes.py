r"""Boxes around a person, and the three coordinate systems they define.

A box is ``(..., 3)``: centre and longer side ``(cx, cy, b)`` in full-image pixels, after padding by 1.25 and
widening to 3:4 (width to height), so that the longer side is always the height.

* box-normalised joints: ``(uv - c) / (b / 2)``, the same scale on both axes;
* crop pixels: an affine map that puts the box's centre on the crop's centre and the longer side on the crop's longer
  side. Pixel centres are integers, so the centre of w columns is (w - 1) / 2, and mirroring crop and box agree;
* box information: the position and the size of the box, as angles from the camera (see :func:`box_information`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_number,
    check_shape,
    check_size,
    compute_dtype,
    describe,
    three_beats,
)

from .shapes import check_tensors

PADDING = 1.25
ASPECT = 3 / 4  # width / height
CONVENTIONS = ("aligned", "classic", "udp")
"""Conventions for a crop's pixels; see :func:`crop_affine`."""

# Mean and standard deviation of [(cx - c_u) / f_u, (cy - c_v) / f_v, b / f] over Human3.6M-like views.
INFORMATION_MEAN = (0.0, 0.0, 0.38)
INFORMATION_STD = (0.08, 0.04, 0.075)


def joint_box(joints_px: Tensor, *, padding: float = PADDING, aspect: float = ASPECT) -> Tensor:
    """The padded box of fixed aspect around 2D joints.

    Args:
        joints_px: ``(..., J, 2)`` pixels.
        padding: factor on both sides of the tight box. aspect: width / height of the result, at most 1.
    Returns: ``(..., 3)``: centre of the tight box, and the height, the smallest that covers the padded tight box.
    """
    padding = check_number("joint_box", "padding", padding, above=0, below=1e6)
    aspect = check_number("joint_box", "aspect", aspect, above=0, below=1e6)
    low, high = _corners("joint_box", joints_px)
    width, height = ((high - low) * padding).unbind(-1)
    return torch.cat([(low + high) / 2, torch.maximum(height, width / aspect)[..., None]], -1)


def displace_joints(joints_px: Tensor, displacement: Tensor) -> Tensor:
    """Joints displaced like those of a detector.

    Args:
        joints_px: ``(..., J, 2)`` pixels. displacement: ``(..., J, 2)``, in shares of the longer side of their box.
    """
    return joints_px + displacement * joint_box(joints_px)[..., None, 2:]


def tight_box_size(joints_px: Tensor) -> Tensor:
    """Width and height of the tight box of ``(..., J, 2)`` joints: ``(..., 2)``."""
    low, high = _corners("tight_box_size", joints_px)
    return high - low


def _corners(operation: str, joints_px: Tensor) -> tuple[Tensor, Tensor]:
    check_shape(operation, "joints_px", joints_px, ("...", "J", 2))
    if not joints_px.shape[-2]:
        raise ValueError(three_beats(f"`{operation}` needs a joint", describe(joints_px), "Leave the pose out."))
    return joints_px.amin(-2), joints_px.amax(-2)


def normalise_joints(joints_px: Tensor, box: Tensor) -> Tensor:
    """``(uv - c) / (b / 2)``: ``(..., J, 2)`` pixels to box-normalised coordinates."""
    check_tensors("normalise_joints", {"joints_px": (joints_px, ("J", 2)), "box": (box, (3,))})
    return (joints_px - box[..., None, :2]) / (box[..., None, 2:] / 2)


def denormalise_joints(joints: Tensor, box: Tensor) -> Tensor:
    """The inverse of :func:`normalise_joints`: ``(..., J, 2)`` back to full-image pixels."""
    check_tensors("denormalise_joints", {"joints": (joints, ("J", 2)), "box": (box, (3,))})
    return joints * (box[..., None, 2:] / 2) + box[..., None, :2]


def box_information(box: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    r"""The position and size of a box, which a crop does not show, in three numbers of about unit variance.

    .. math:: \Big[ \frac{(c_x - c_u) / f_u}{0.08},\; \frac{(c_y - c_v) / f_v}{0.04},\; \frac{b / f - 0.38}{0.075} \Big]

    with f the geometric mean of the focal lengths. This is CLIFF's token with constants for
    our data, and with the principal point in place of the image's centre.

    Args:
        box: ``(..., 3)`` pixels. focal, principal: ``(..., 2)`` pixels.
    Returns: ``(..., 3)``.
    Reference: Li et al., "CLIFF", ECCV 2022, section 3.2.
    """
    check_tensors("box_information", {"box": (box, (3,)), "focal": (focal, (2,)), "principal": (principal, (2,))})
    ray = (box[..., :2] - principal) / focal
    size = box[..., 2:] / focal.prod(-1, keepdim=True).sqrt()
    information = torch.cat([ray, size.expand(*ray.shape[:-1], 1)], -1)
    return (information - information.new_tensor(INFORMATION_MEAN)) / information.new_tensor(INFORMATION_STD)


def crop_affine(box: Tensor, crop_size: tuple[int, int], *, convention: str = "aligned") -> Tensor:
    """The map from full-image pixels to the pixels of a crop.

    A weight file expects the crops it was trained on. With w columns and h rows, and a box of width 3/4 b and height b:

    * "aligned", the default: the longer side of the crop covers b; the box's centre is at ((w - 1) / 2, (h - 1) / 2),
      the middle of the crop, so that mirroring the crop and mirroring the picture agree;
    * "classic": the same scale, with the centre at (w / 2, h / 2), half a pixel further. Used by HRNet's code and by
      mmpose's ``TopDownAffine`` without UDP, so by mmpose's published HRNet weights;
    * "udp": corner pixels on the box's corners, (w - 1) / (3/4 b) across and (h - 1) / b down, centre in the middle.
      Used by mmpose with ``use_udp=True``, so by ViTPose's weights.

    Args:
        box: ``(..., 3)`` pixels.
        crop_size: (height, width) of the crop.
        convention: one of :data:`CONVENTIONS`.
    Returns: ``(..., 2, 3)``: a scale and a shift.
    Raises: ValueError for an unknown convention.
    Reference: Huang et al., "The Devil is in the Details: Delving into Unbiased Data Processing for Human Pose
        Estimation", CVPR 2020, section 3.
    """
    check_choice("crop_affine", "convention", convention, CONVENTIONS)
    check_tensors("crop_affine", {"box": (box, (3,))})
    height, width = check_size("crop_affine", "crop_size", crop_size)
    side = box[..., 2:]
    if convention == "udp":
        scale = torch.cat([(width - 1) / (ASPECT * side), (height - 1) / side], -1)
    else:
        scale = (max(height, width) / side).expand(*side.shape[:-1], 2)
    offset = 0.0 if convention == "classic" else 1.0
    middle = torch.tensor([(width - offset) / 2, (height - offset) / 2], dtype=box.dtype, device=box.device)
    return torch.cat([torch.diag_embed(scale), (middle - scale * box[..., :2])[..., None]], -1)


def apply_affine(affine: Tensor, points: Tensor) -> Tensor:
    """``(..., P, 2)`` points through ``(..., 2, 3)`` maps."""
    check_tensors("apply_affine", {"affine": (affine, (2, 3)), "points": (points, ("P", 2))}, one_type=True)
    return points @ affine[..., :2].mT + affine[..., None, :, 2]


def compose_affine(second: Tensor, first: Tensor) -> Tensor:
    """The map that applies ``first`` and then ``second``: both ``(..., 2, 3)``, and the result."""
    linear = second[..., :2] @ first[..., :2]
    return torch.cat([linear, second[..., :2] @ first[..., 2:] + second[..., 2:]], -1)


def invert_affine(affine: Tensor) -> Tensor:
    """The inverse map, ``(..., 2, 3)``."""
    check_shape("invert_affine", "affine", affine, ("...", 2, 3))
    held = affine.to(compute_dtype(affine))
    try:
        linear = torch.linalg.inv(held[..., :2])
    except RuntimeError:  # torch does not export its own class for this error
        needed = "`invert_affine` needs maps that can be inverted"
        raise ValueError(three_beats(needed, "one that flattens the plane", "Leave out empty boxes.")) from None
    return torch.cat([linear, -linear @ held[..., 2:]], -1).to(affine.dtype)
