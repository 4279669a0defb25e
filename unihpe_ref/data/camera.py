r"""Cameras: position, projection, and sets like Human3.6M's.

Frames. World: metres, z up. Camera: metres, x right, y down, z forward. Pixels: the centre of the top left pixel
is (0, 0), as in OpenCV, so a mirrored image of width w sends column u to w - 1 - u.

.. math::
    X_{cam} = R X + t, \quad (x, y) = (X_{cam,1}, X_{cam,2}) / X_{cam,3}, \quad r^2 = x^2 + y^2

    x_d = x (1 + k_1 r^2 + k_2 r^4 + k_3 r^6) + 2 p_1 x y + p_2 (r^2 + 2 x^2)

    y_d = y (1 + k_1 r^2 + k_2 r^4 + k_3 r^6) + p_1 (r^2 + 2 y^2) + 2 p_2 x y

    (u, v) = (f_u x_d + c_u, f_v y_d + c_v)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from multicontrast._checks import (
    check_count,
    check_flag,
    check_number,
    check_numbers,
    check_shape,
    check_type,
    describe,
    three_beats,
)

from .body import about
from .shapes import Shape, check_tensors

TRAILING = {
    "rotation": (3, 3),
    "translation": (3,),
    "focal": (2,),
    "principal": (2,),
    "radial": (3,),
    "tangential": (2,),
    "image_size": (2,),
}


@dataclass(frozen=True)
class Camera:
    """One camera, or a batch of them: every tensor may carry the same leading shape ``(...)``.

    Attributes:
        rotation: ``(..., 3, 3)``, world to camera.
        translation: ``(..., 3)``, metres: ``x_cam = rotation @ x_world + translation``.
        focal, principal: ``(..., 2)``, pixels.
        radial: ``(..., 3)`` k1, k2, k3. tangential: ``(..., 2)`` p1, p2.
        image_size: ``(..., 2)`` width and height, pixels.
    Raises: ValueError for shapes that do not fit together.
    """

    rotation: Tensor
    translation: Tensor
    focal: Tensor
    principal: Tensor
    radial: Tensor
    tangential: Tensor
    image_size: Tensor

    def __post_init__(self) -> None:
        check_shape("Camera", "rotation", self.rotation, ("...", 3, 3))
        leading = self.rotation.shape[:-2]
        for name, trailing in TRAILING.items():
            value = getattr(self, name)
            check_shape("Camera", name, value, ("...", *trailing))
            if tuple(value.shape) != (*leading, *trailing):
                needed = f"`Camera` needs `{name}` of shape {(*leading, *trailing)}"
                raise ValueError(three_beats(needed, describe(value), "Give all fields the same leading shape."))

    @property
    def position(self) -> Tensor:
        """The camera's position, ``(..., 3)`` world metres."""
        return -(self.rotation.mT @ self.translation[..., None])[..., 0]

    @property
    def intrinsics(self) -> Tensor:
        """The pinhole matrix K, ``(..., 3, 3)``."""
        return intrinsic_matrix(self.focal, self.principal)

    def world_to_camera(self, points: Tensor) -> Tensor:
        """``(..., P, 3)`` world metres to camera metres."""
        self._check("world_to_camera", points)
        return points @ self.rotation.mT + self.translation[..., None, :]

    def camera_to_world(self, points: Tensor) -> Tensor:
        """``(..., P, 3)`` camera metres to world metres."""
        self._check("camera_to_world", points)
        return (points - self.translation[..., None, :]) @ self.rotation

    def _check(self, operation: str, points: Tensor) -> None:
        pose = {"rotation": (self.rotation, (3, 3)), "translation": (self.translation, (3,))}
        check_tensors(operation, {"points": (points, ("P", 3)), **pose}, one_type=True)

    def project(self, points: Tensor, *, distort: bool = True) -> Tensor:
        """``(..., P, 3)`` camera metres to ``(..., P, 2)`` pixels; NaN for a point that is not in front (z <= 0)."""
        if not check_flag("project", "distort", distort):
            return project(points, self.focal, self.principal)
        return project(points, self.focal, self.principal, self.radial, self.tangential)

    def rolled(self, angle: Tensor) -> Camera:
        """Turns the camera's frame about its optical axis by ``angle`` ``(...)`` radians: x towards y.

        With square pixels and no distortion the picture turns about the principal point by the same angle, clockwise
        on the screen.
        """
        check_tensors("rolled", {"angle": (angle, ()), "rotation": (self.rotation, (3, 3))}, one_type=True)
        roll = about("z", angle)
        return replace(self, rotation=roll @ self.rotation, translation=(roll @ self.translation[..., None])[..., 0])

    def mirrored(self) -> Camera:
        """The lens of the mirrored picture, for joints mirrored by :func:`~unihpe_ref.data.skeleton.flip_joints`.

        Projecting camera-frame points with x negated gives column ``width - 1 - u``. The pose of the camera stays:
        a mirror is no rotation, so the points are mirrored in the camera's frame, after ``world_to_camera``.
        """
        principal = torch.stack([self.image_size[..., 0] - 1 - self.principal[..., 0], self.principal[..., 1]], -1)
        return replace(self, principal=principal, tangential=self.tangential * self.tangential.new_tensor([1.0, -1.0]))

    def __getitem__(self, index: Tensor | int | slice) -> Camera:
        """Some cameras of a batch; ``index`` works on the first dimension."""
        return Camera(*(getattr(self, field.name)[index] for field in fields(self)))

    def __len__(self) -> int:
        """The number of cameras along the first dimension."""
        return len(self.rotation)

    def to(self, *args: torch.device | torch.dtype | str) -> Camera:
        """Moves or converts every tensor, as :meth:`torch.Tensor.to`."""
        return Camera(*(getattr(self, field.name).to(*args) for field in fields(self)))


def project(
    points: Tensor, focal: Tensor, principal: Tensor, radial: Tensor | None = None, tangential: Tensor | None = None
) -> Tensor:
    """Pixels of camera-frame points (the equations are at the top of this file).

    Args:
        points: ``(..., P, 3)`` camera metres.
        focal, principal: ``(..., 2)`` pixels. radial: ``(..., 3)``. tangential: ``(..., 2)``.
    Returns: ``(..., P, 2)``. NaN where z <= 0, behind the lens.
    """
    lens: dict[str, tuple[Tensor, Shape]] = {
        "points": (points, ("P", 3)),
        "focal": (focal, (2,)),
        "principal": (principal, (2,)),
    }
    if radial is not None:
        lens["radial"] = (radial, (3,))
    if tangential is not None:
        lens["tangential"] = (tangential, (2,))
    check_tensors("project", lens)
    depth = points[..., 2:]
    ray = points[..., :2] / torch.where(depth > 0, depth, torch.nan)
    if radial is not None or tangential is not None:
        square = ray.square().sum(-1, keepdim=True)
        bent = ray
        if radial is not None:
            k1, k2, k3 = radial[..., None, :].split(1, -1)
            bent = bent * (1 + square * (k1 + square * (k2 + square * k3)))
        if tangential is not None:
            swapped = tangential.flip(-1)[..., None, :]  # (p2, p1) belongs to (x, y)
            bent = bent + 2 * ray * (ray * swapped).sum(-1, keepdim=True) + swapped * square
        ray = bent
    return ray * focal[..., None, :] + principal[..., None, :]


def intrinsic_matrix(focal: Tensor, principal: Tensor) -> Tensor:
    """K of ``(..., 2)`` focal lengths and principal points: ``(..., 3, 3)``."""
    check_tensors("intrinsic_matrix", {"focal": (focal, (2,)), "principal": (principal, (2,))})
    focal, principal = torch.broadcast_tensors(focal, principal)
    matrix = torch.diag_embed(torch.cat([focal, torch.ones_like(focal[..., :1])], -1))
    matrix[..., :2, 2] = principal
    return matrix


def crop_intrinsics(affine: Tensor, intrinsics: Tensor) -> Tensor:
    """The pinhole matrix of a crop: ``K_crop = [affine; 0 0 1] @ K``.

    Args:
        affine: ``(..., 2, 3)`` full-image pixels to crop pixels.
        intrinsics: ``(..., 3, 3)`` of the full image.
    Returns: ``(..., 3, 3)``; camera-frame points projected with it land on crop pixels.
    """
    check_tensors("crop_intrinsics", {"affine": (affine, (2, 3)), "intrinsics": (intrinsics, (3, 3))}, one_type=True)
    rows = affine @ intrinsics
    return torch.cat([rows, intrinsics[..., 2:, :].expand(*rows.shape[:-2], 1, 3)], -2)


def look_at(eye: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and translation of an upright camera at ``eye`` that sees ``target`` in the middle.

    Args:
        eye, target: ``(..., 3)`` world metres, z up.
    Returns: rotation ``(..., 3, 3)`` world to camera and translation ``(..., 3)``.
    Raises: ValueError if the line of sight is vertical, which leaves "upright" undefined.
    """
    check_tensors("look_at", {"eye": (eye, (3,)), "target": (target, (3,))}, one_type=True)
    forward = target - eye
    right = torch.stack([forward[..., 1], -forward[..., 0], torch.zeros_like(forward[..., 0])], -1)  # forward x up
    if bool((right.norm(dim=-1) <= 1e-6 * forward.norm(dim=-1)).any()):
        needed = "`look_at` needs a line of sight that is not vertical"
        raise ValueError(three_beats(needed, "`target` straight above or below `eye`", "Move one of them sideways."))
    forward = torch.nn.functional.normalize(forward, dim=-1)
    right = torch.nn.functional.normalize(right, dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], -2)
    return rotation, -(rotation @ eye[..., None])[..., 0]


def fixed_cameras() -> Camera:
    """Four cameras around a room, after the set-up of Human3.6M: the evaluation views.

    Near the corners of a 4 m x 10 m room, 1.5-1.6 m high, 4.6-5.6 m from its middle, focal length about 1148 px on
    1000 x 1002 and 1000 x 1000 pixels, with the mild barrel distortion of such lenses. The numbers are ours.
    """
    eye = torch.tensor([[1.9, 5.0, 1.56], [1.8, -5.1, 1.61], [-1.9, 5.2, 1.50], [-1.8, -4.2, 1.58]])
    target = torch.tensor([[0.05, 0.1, 0.90], [-0.1, 0.1, 0.95], [0.0, -0.1, 0.90], [0.1, 0.0, 0.95]])
    rotation, translation = look_at(eye, target)
    return Camera(
        rotation=rotation,
        translation=translation,
        focal=torch.tensor([[1145.0, 1144.0], [1149.5, 1148.0], [1149.0, 1148.5], [1145.5, 1145.0]]),
        principal=torch.tensor([[512.0, 515.0], [508.0, 508.0], [519.0, 501.0], [514.0, 502.0]]),
        radial=torch.tensor(
            [[-0.207, 0.247, -0.003], [-0.194, 0.241, 0.001], [-0.208, 0.256, -0.001], [-0.198, 0.219, -0.009]]
        ),
        tangential=torch.tensor([[-0.0010, -0.0014], [-0.0016, -0.0027], [0.0007, 0.0002], [-0.0017, 0.0005]]),
        image_size=torch.tensor([[1000.0, 1002.0], [1000.0, 1000.0], [1000.0, 1000.0], [1000.0, 1002.0]]),
    )  # fmt: skip


def random_camera(
    generator: torch.Generator,
    count: int,
    *,
    distance: tuple[float, float] = (4.2, 6.0),
    height: tuple[float, float] = (1.3, 1.8),
    focal: tuple[float, float] = (1120.0, 1175.0),
    roll_degrees: float = 2.0,
) -> Camera:
    """``count`` random cameras around the middle of the room, from ranges that contain the fixed ones.

    Args:
        generator: on the CPU; the only source of randomness.
        count: how many, > 0.
        distance: horizontal, from the middle of the room, metres. height: above the floor, metres.
        focal: range of the focal length, pixels, for an image of 1000 x 1000.
        roll_degrees: the horizon is tilted by at most this much.
    Returns: a batch ``(count,)`` without distortion. The azimuth is uniform.
    """
    remedy = "Make one with `torch.Generator().manual_seed(seed)`."
    check_type("random_camera", "generator", generator, torch.Generator, remedy)
    count = check_count("random_camera", "count", count, 1, 10**7, remedy="Ask for at least one camera.")
    distance, height, focal = (
        _range(name, value, least)
        for name, value, least in (("distance", distance, 0.0), ("height", height, -1e6), ("focal", focal, 0.0))
    )
    roll_degrees = check_number("random_camera", "roll_degrees", roll_degrees, least=0, below=360)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    azimuth, radius = uniform(0, 2 * math.pi), uniform(*distance)
    eye = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), uniform(*height)], -1)
    target = torch.cat([uniform(-0.15, 0.15, 2), uniform(0.8, 1.05, 1)], -1)
    rotation, translation = look_at(eye, target)
    pixels = uniform(*focal, 1)
    camera = Camera(
        rotation=rotation,
        translation=translation,
        focal=pixels * uniform(0.998, 1.002, 2),
        principal=uniform(495.0, 520.0, 2),
        radial=torch.zeros(count, 3),
        tangential=torch.zeros(count, 2),
        image_size=torch.full((count, 2), 1000.0),
    )
    tilt = math.radians(roll_degrees)
    return camera.rolled(uniform(-tilt, tilt))


def _range(name: str, value: object, above: float) -> tuple[float, float]:
    remedy = "Pass `(low, high)`."
    held = check_numbers("random_camera", name, value, above=above, below=1e6, remedy=remedy)
    if len(held) != 2:
        raise ValueError(three_beats(f"`random_camera` needs `{name}` of two numbers", f"{len(held)}", remedy))
    return held[0], held[1]
