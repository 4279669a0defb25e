"""The shipped lifter: 2D joints in pixels to 3D joints in metres, in one call.

It was trained on CMU motion capture with bodies, cameras and errors of the 2D joints drawn for each sample
(``assets/LIFTER.md`` describes training, accuracy and failures). Any checkpoint of ``unihpe train`` can replace it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_device,
    check_flag,
    check_floating,
    check_generator,
    describe,
    three_beats,
)
from unihpe_ref.checkpoint import load_model
from unihpe_ref.config import RunConfig
from unihpe_ref.data import (
    JOINT_NOISE,
    SKELETON,
    box_information,
    denormalise_joints,
    joint_box,
    normalise_joints,
)
from unihpe_ref.data.facing import facing_rotation, turn_pixels
from unihpe_ref.flipping import lift_flipped
from unihpe_ref.models import UniHPE
from unihpe_ref.weights import lifter_path, whole_path

BOX_RANGE = {"fixed": (-3.0, 3.0), "random": (-3.0, 3.0), "varied": (-3.5, 11.5)}
"""The range of the box information in training, in standard deviations, by the cameras of training. One sample in 5,000
of the shipped lifter's training is outside."""
LEAST_NOISE = 0.004
"""The smallest joint noise that a lifter gets, as a share of the box. With 0 it would fit every pixel with the bones of
its training data, and err on other skeletons."""
_CHUNK = 4096  # poses at a time


@dataclass(frozen=True)
class LiftedPoses:
    """The result of :meth:`Lifter.lift` for N poses.

    Attributes:
        joints_3d: ``(N, 17, 3)`` metres, pelvis at the origin, camera axes (x right, y down, z forward).
        root: ``(N, 3)`` metres, the pelvis in camera coordinates, where the joints' projections fit best.
        reprojection_px: ``(N,)`` mean distance of the projected joints from the given ones, pixels.
        clamped: ``(N,)`` bool, True for poses nearer or further than any in training, which are lifted as if at the
            limit; also for those further aside, unless the camera is turned to face them, as for the shipped lifter.
    """

    joints_3d: Tensor
    root: Tensor
    reprojection_px: Tensor
    clamped: Tensor


class EstimatedPoses(NamedTuple):
    """The result of :meth:`Lifter.estimate` for N pictures."""

    joints_px: Tensor  # (N, 17, 2), pixels of the full image
    joints_3d: Tensor  # (N, 17, 3), metres, pelvis at the origin, camera axes
    clamped: Tensor  # (N,) bool, as in LiftedPoses


class Lifter:
    """Lifts poses in pixels with a trained model.

    Args:
        model: in evaluation mode.
        config: the configuration that trained it.

    Example:
        >>> lifter = load_lifter()
        >>> poses = lifter.lift(torch.rand(2, 17, 2) * 500, image_size=torch.tensor([1000.0, 1000.0]))
        >>> poses.joints_3d.shape
        torch.Size([2, 17, 3])
    """

    def __init__(self, model: UniHPE, config: RunConfig) -> None:
        self.model = model
        self.config = config

    def lift(
        self,
        joints_px: Tensor,
        *,
        image_size: Tensor | None = None,
        intrinsics: Tensor | None = None,
        flip: bool = True,
        generator: torch.Generator | None = None,
    ) -> LiftedPoses:
        """3D poses of 2D poses.

        Args:
            joints_px: ``(N, 17, 2)`` pixels of the full image, Human3.6M's order (see
                :func:`unihpe_ref.applications.keypoints.to_h36m`), none missing.
            image_size: ``(2,)`` or ``(N, 2)`` width and height. Without intrinsics the focal length is the
                diagonal of the image, as in CLIFF, and the principal point its centre.
            intrinsics: ``(3, 3)`` or ``(N, 3, 3)``; takes precedence.
            flip: average with the mirrored pose, mirrored back. Takes twice the time and is a little more accurate.
            generator: of a score-based decoder's noise.
        Raises: ValueError or TypeError for shapes that do not fit, missing joints, or no description of the camera.
        """
        count, flip = _check_joints("lift", joints_px), check_flag("lift", "flip", flip)
        check_generator("lift", generator)
        focal, principal = camera_of(count, image_size, intrinsics)
        parts = [
            self._lift(joints_px[rows].float().cpu(), focal[rows], principal[rows], flip, generator)
            for rows in torch.arange(count).split(_CHUNK)
        ]
        return LiftedPoses(*(torch.cat(values) for values in zip(*parts)))

    def embed_2d(
        self, joints_px: Tensor, *, image_size: Tensor | None = None, intrinsics: Tensor | None = None
    ) -> Tensor:
        """Unit embeddings ``(N, D)`` of 2D poses; arguments as :meth:`lift`."""
        focal, principal = camera_of(_check_joints("embed_2d", joints_px), image_size, intrinsics)
        with torch.no_grad():
            kp2d, information, _, _ = self._seen(joints_px.float().cpu(), focal, principal)
            return self.model.encode(kp2d=kp2d, box_info=information).cpu()

    def embed_3d(self, joints_3d: Tensor, root: Tensor | None = None) -> Tensor:
        """Unit embeddings ``(N, D)`` of 3D poses.

        Args:
            joints_3d: ``(N, 17, 3)`` metres from the pelvis, camera axes.
            root: ``(N, 3)``, the pelvis in camera coordinates; straight ahead unless given. A model trained on people
                straight ahead (``data.view``) uses it to turn the poses.
        Raises: ValueError or TypeError for shapes that do not fit.
        """
        _check_rows("embed_3d", "joints_3d", joints_3d, SKELETON.num_joints, 3)
        if root is not None:
            _check_rows("embed_3d", "root", root, 3)
            if len(root) != len(joints_3d):
                needed = f"`embed_3d` needs `root` of shape ({len(joints_3d)}, 3)"
                raise ValueError(three_beats(needed, describe(root), "Pass one place for each pose."))
        if self.config.data.view == "box" and root is not None:
            ahead = torch.cat((root[:, :2] / root[:, 2:], torch.ones_like(root[:, :1])), -1)
            one, zero = torch.ones_like(ahead[:, :2]), torch.zeros_like(ahead[:, :2])
            joints_3d = joints_3d @ facing_rotation(ahead, one, zero).mT
        with torch.no_grad():
            return self.model.encode(kp3d=joints_3d.float().to(self.model.device)).cpu()

    def embed_image(self, image: Tensor) -> Tensor:
        """Unit embeddings ``(N, D)`` of normalised crops ``(N, 3, H, W)``. Raises: ValueError without image encoder."""
        check_floating("embed_image", "image", image)
        with torch.no_grad():
            return self.model.encode(image=image.to(self.model.device)).cpu()

    def estimate(
        self,
        image: Tensor,
        box: Tensor,
        focal: Tensor,
        principal: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> EstimatedPoses:
        """2D and 3D poses of pictures, by a model with an image encoder.

        Args:
            image: ``(N, 3, H, W)`` normalised crops. box: ``(N, 3)``, the cropped boxes, pixels of the full image.
            focal, principal: ``(N, 2)`` pixels.
            generator: of a score-based decoder's noise.
        """
        information, clamped = self._within(box_information(box, focal, principal))
        device = self.model.device
        with torch.no_grad():
            found = self.model.estimate(image.to(device), information.to(device), generator=generator)
        return EstimatedPoses(denormalise_joints(found.joints_2d.cpu(), box), found.joints_3d.cpu(), clamped)

    def _seen(
        self, joints_px: Tensor, focal: Tensor, principal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The encoder's inputs, which rows were clamped, and how the camera was turned."""
        box, rotation = joint_box(joints_px), None
        if self.config.data.view == "box":
            rotation = facing_rotation(box, focal, principal)
            joints_px = turn_pixels(joints_px, rotation, focal, principal)
            box = joint_box(joints_px)
        information, clamped = self._within(box_information(box, focal, principal))
        device = self.model.device
        return normalise_joints(joints_px, box).to(device), information.to(device), clamped, rotation

    def _within(self, information: Tensor) -> tuple[Tensor, Tensor]:
        """Box information clamped to the range of training, and which rows were outside."""
        low, high = BOX_RANGE[self.config.data.cameras]
        return information.clamp(low, high), ((information < low) | (information > high)).any(-1)

    @torch.no_grad()
    def _lift(
        self,
        joints_px: Tensor,
        focal: Tensor,
        principal: Tensor,
        flip: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kp2d, information, clamped, rotation = self._seen(joints_px, focal, principal)
        lift = lift_flipped if flip else UniHPE.lift
        joints = lift(self.model, kp2d, information, generator=generator).cpu()
        if rotation is not None:
            joints = joints @ rotation  # back to the axes of the camera
        root, error = place(joints, joints_px, focal, principal)
        return joints, root, error, clamped


def place(joints: Tensor, joints_px: Tensor, focal: Tensor, principal: Tensor) -> tuple[Tensor, Tensor]:
    r"""The position of a pose at which the projections of its joints fit best.

    The least-squares solution t of :math:`X_j + t_{xy} = r_j (Z_j + t_z)` for all joints, linear in t, with
    :math:`r_j` the pixels minus the principal point, over the focal length.

    Args:
        joints: ``(N, J, 3)`` metres from the pelvis.
        joints_px: ``(N, J, 2)`` pixels. focal, principal: ``(N, 2)`` pixels.
    Returns: ``(N, 3)`` metres, and the mean distance of the projected joints from the given ones, ``(N,)`` pixels.
    """
    seen_rays = (joints_px - principal[:, None]) / focal[:, None]
    rays = seen_rays.double()
    points = joints.double()
    count = rays.shape[1]
    wanted = rays * points[..., 2:] - points[..., :2]  # (N, J, 2): t_xy - r t_z
    # Normal equations. t_xy follows from t_z, so only t_z has to be solved for.
    mean_ray, mean_wanted = rays.mean(1), wanted.mean(1)
    ray, wish = rays - mean_ray[:, None], wanted - mean_wanted[:, None]
    depth = -(ray * wish).sum((-2, -1)) / ray.square().sum((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny * count)
    root = torch.cat((mean_wanted + mean_ray * depth[:, None], depth[:, None]), -1).to(joints.dtype)
    seen = joints + root[:, None]
    projected = seen[..., :2] / seen[..., 2:].clamp(min=1e-3)
    return root, ((projected - seen_rays) * focal[:, None]).norm(dim=-1).mean(-1)


def load_lifter(
    path: Path | str | None = None,
    device: torch.device | str = "cpu",
    *,
    joints_2d: str = "detected",
    whole: bool = False,
) -> Lifter:
    """The lifter of the package, or that of another checkpoint.

    Args:
        path: a ``model.safetensors`` of ``unihpe train``; the shipped one unless given.
        device: where it runs.
        joints_2d: the accuracy of the 2D joints, for a model with ``encoder_noise_token`` such as the shipped one:
            "detected" for a detector's, "annotated" if they are exact to the pixel.
        whole: whether to load the shipped lifter's 3D encoder and 2D decoder, too, for ``Lifter.embed_3d``; they are
            not in the wheel (see ``weights.py``).
    Raises: FileNotFoundError or ValueError as :func:`unihpe_ref.checkpoint.load_model`; ValueError for a model whose
        joints are not Human3.6M's 17.
    """
    check_choice("load_lifter", "joints_2d", joints_2d, tuple(JOINT_NOISE))
    whole, device = check_flag("load_lifter", "whole", whole), check_device("load_lifter", device)
    if path is not None and not isinstance(path, (str, Path)):
        needed = "`load_lifter` needs `path` to be text or a `pathlib.Path`"
        raise TypeError(three_beats(needed, describe(path), "Leave it out for the shipped lifter."))
    if path is None:
        path = whole_path() if whole else lifter_path()
    model, config = load_model(path, device)
    if config.model.joints != SKELETON.num_joints:
        needed = "`load_lifter` needs a model of 17 joints"
        raise ValueError(three_beats(needed, str(config.model.joints), "Call `UniHPE.lift` yourself."))
    level = max(JOINT_NOISE[joints_2d], LEAST_NOISE)
    return Lifter(model.with_joint_noise(level), config.override(**{"model.encoder_noise_token": False}))


def _check_rows(operation: str, name: str, x: Tensor, *shape: int) -> None:
    check_floating(operation, name, x)
    if x.ndim != 1 + len(shape) or x.shape[1:] != shape or not len(x) or x.is_meta:
        needed = f"`{operation}` needs `{name}` of numbers, of shape (N, {', '.join(map(str, shape))}), N > 0"
        remedy = "`unihpe_ref.applications.keypoints.to_h36m` maps other layouts."
        raise ValueError(three_beats(needed, describe(x), remedy))


def _check_joints(operation: str, joints_px: Tensor) -> int:
    _check_rows(operation, "joints_px", joints_px, SKELETON.num_joints, 2)
    finite = joints_px.isfinite().all(-1)
    if not bool(finite.all()):
        row, joint = (int(k) for k in torch.nonzero(~finite)[0])
        needed = f"`{operation}` needs every joint of a pose"
        came = f"no {SKELETON.joint_names[joint]} in pose {row}"
        raise ValueError(three_beats(needed, came, "Leave out the poses for which `Keypoints.complete` is False."))
    size = (joints_px.amax(1) - joints_px.amin(1)).amax(-1)
    if not bool((size > 0).all()):
        row = int(torch.nonzero(size <= 0)[0, 0])
        needed = f"`{operation}` needs joints in more than one place"
        raise ValueError(three_beats(needed, f"pose {row} in a single point", "Leave it out."))
    return len(joints_px)


def _check_camera(name: str, x: Tensor, shape: tuple[int, ...], count: int, remedy: str) -> None:
    check_floating("lift", name, x)
    if x.shape not in (shape, (count, *shape)) or x.is_meta:
        needed = f"`lift` needs `{name}` of numbers, of shape {shape} or {(count, *shape)}"
        raise ValueError(three_beats(needed, describe(x), remedy))


def camera_of(count: int, image_size: Tensor | None, intrinsics: Tensor | None) -> tuple[Tensor, Tensor]:
    """Focal length and principal point, ``(count, 2)`` each; see :meth:`Lifter.lift`."""
    remedy = "A wrong focal length distorts poses: give the intrinsics if you know them."
    if image_size is not None:
        _check_camera("image_size", image_size, (2,), count, "Width and height, in pixels.")
        if not bool((image_size >= 1).all()):
            needed = "`lift` needs `image_size` of a pixel at least"
            raise ValueError(three_beats(needed, f"{image_size.min():g}", "Width and height, in pixels."))
    if intrinsics is not None:
        _check_camera("intrinsics", intrinsics, (3, 3), count, "One matrix for all poses, or one for each.")
        matrix = intrinsics.float().cpu().expand(count, 3, 3)
        focal = torch.stack((matrix[:, 0, 0], matrix[:, 1, 1]), -1)
        principal = matrix[:, :2, 2]
    elif image_size is not None:
        size = image_size.float().cpu().expand(count, 2)
        focal, principal = size.norm(dim=-1, keepdim=True).expand(count, 2), (size - 1) / 2
    else:
        needed = "`lift` needs `intrinsics`, or at least `image_size`"
        raise ValueError(three_beats(needed, "neither", remedy))
    if not bool((focal > 0).all()) or not math.isfinite(float(principal.abs().sum() + focal.sum())):
        raise ValueError(three_beats("`lift` needs a camera of positive, finite focal length", "another", remedy))
    return focal, principal
