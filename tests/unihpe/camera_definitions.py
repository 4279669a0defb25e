"""The camera, point by point in Python floats, straight from the equations of Brown and Conrady."""

from __future__ import annotations

from collections.abc import Sequence


def world_to_camera(
    point: Sequence[float], rotation: Sequence[Sequence[float]], translation: Sequence[float]
) -> list[float]:
    """x_cam = R x + t."""
    return [sum(r * p for r, p in zip(row, point)) + t for row, t in zip(rotation, translation)]


def project(
    point: Sequence[float],
    focal: Sequence[float],
    principal: Sequence[float],
    radial: Sequence[float] = (0.0, 0.0, 0.0),
    tangential: Sequence[float] = (0.0, 0.0),
) -> list[float]:
    """Pixels of one point in the camera's frame."""
    x, y = point[0] / point[2], point[1] / point[2]
    r2 = x**2 + y**2
    k1, k2, k3 = radial
    p1, p2 = tangential
    factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    x_distorted = x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    y_distorted = y * factor + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return [focal[0] * x_distorted + principal[0], focal[1] * y_distorted + principal[1]]
