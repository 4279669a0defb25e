r"""Estimates joints that a picture does not show from those that it shows.

A mixture of Gaussians models the 2D poses of motion capture under random cameras, in units of their boxes. The seen
joints of a pose are :math:`x = (z - b) / a` for an unknown box; for each component k the most likely scale
and shift have a closed form, with :math:`P = \Sigma_{ss}^{-1}`, ``T`` the two shifts, ``n`` seen coordinates:

.. math::
    Q = P - P T (T^\top P T)^{-1} T^\top P, \quad
    a = \frac{q + \sqrt{q^2 + 4 p (n - 2)}}{2 p}, \quad p = x^\top Q x, \; q = x^\top Q \mu_s

and the missing joints are the conditional mean, weighted over components.

The same mixture tells which way up a pose is. Two more, of poses seen from below and above, tell whether the camera
looked steeply up or down. ``python -m unihpe_ref.applications.completion RECORDING`` fits all three and writes them to
``assets/poses2d.npz``.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unihpe_ref.data import PoseSource, flip_joints, look_at, read_mocap
from unihpe_ref.data.shapes import Array, all_finite

LEAST = 6
"""A pose with fewer joints is not completed."""
_COMPONENTS, _POSES = 8, 48_000
_STEEP = {"below": (-55.0, -18.0), "above": (48.0, 72.0)}
"""Elevations of the camera, in degrees, at which the lifter's error is larger than for a level camera."""
_SURE, _SURE_STEEP = 5.0, 7.0  # log ratios of likelihoods above which a pose is called turned, and seen steeply
_NOISE = 1e-4  # variance of the seen joints, in units of the box: a detector errs by 1 %
_ASSET = "poses2d.npz"


def complete(joints_px: Tensor) -> tuple[Tensor, Tensor]:
    """Fills joints that are missing.

    Seen joints are lifted a little less accurately than those of a whole body; estimated joints are guesses
    (``docs/unihpe/lift.md`` has figures, from ``python -m benchmarks.doubts``).

    Args:
        joints_px: ``(N, 17, 2)`` pixels, NaN where missing.
    Returns: ``(N, 17, 2)``, NaN only in poses with fewer than ``LEAST`` joints, and ``(N, 17)`` bool, True for
        estimated joints.
    """
    values = joints_px.double().numpy().copy()
    seen = all_finite(values, -1)
    estimated = ~seen & (seen.sum(1) >= LEAST)[:, None]
    for pattern in np.unique(seen[estimated.any(1)], axis=0):
        rows = np.flatnonzero((seen == pattern).all(1))
        values[np.ix_(rows, np.flatnonzero(~pattern))] = _conditional(values[rows][:, pattern], pattern)
    return torch.from_numpy(values).to(joints_px.dtype), torch.from_numpy(estimated)


def turned_by(joints_px: Tensor) -> Tensor:
    """The degrees by which each pose looks turned clockwise: 0, 90, 180 or 270.

    This is the turn under which the 2D pose is most likely, if it is far more likely than unturned. On our data no
    upright pose is called turned, and some turned ones are missed (``docs/unihpe/lift.md``).

    Args:
        joints_px: ``(N, 17, 2)`` pixels, y down.
    Returns: ``(N,)`` int64.
    """
    points, likelihood = joints_px.double(), []
    back = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # a quarter turn counterclockwise
    for _ in range(4):
        likelihood.append(_log_density(in_box(points)))
        points = points @ back.mT
    found = torch.stack(likelihood)
    return torch.where(found.amax(0) > found[0] + _SURE, 90 * found.argmax(0), 0)


def steeply_seen(joints_px: Tensor) -> Tensor:
    """The side from which each pose looks seen: -1 from below, 1 from above, 0 from a level camera.

    It finds most poses from 30 degrees below and 45 above (``docs/unihpe/lift.md``).

    Args:
        joints_px: ``(N, 17, 2)`` pixels, y down.
    Returns: ``(N,)`` int64.
    """
    poses = in_box(joints_px.double())
    below, level, above = (_log_density(poses, view) for view in ("below", "level", "above"))
    steep = torch.maximum(below, above) > level + _SURE_STEEP
    return torch.where(steep, torch.where(above > below, 1, -1), 0)


def in_box(joints: Tensor) -> Tensor:
    """Poses relative to the middle of their boxes, in units of the longer sides."""
    low, high = joints.amin(1, keepdim=True), joints.amax(1, keepdim=True)
    return (joints - (low + high) / 2) / (high - low).amax(-1, keepdim=True).clamp(min=1e-9)


def _log_density(poses: Tensor, view: str = "level") -> Tensor:
    """The log density ``(N,)`` of whole poses ``(N, 17, 2)`` in their boxes."""
    weights, means, covariances = (torch.from_numpy(values) for values in _mixture(view))
    covariances = covariances + 2 * _NOISE * torch.eye(covariances.shape[1], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(means, covariances)
    return torch.logsumexp(weights.log() + normal.log_prob(poses.flatten(1)[:, None]), 1)


def _conditional(points: Array, pattern: Array) -> Array:
    """Expected missing joints ``(N, M, 2)`` given seen ones ``(N, S, 2)``; ``pattern`` ``(17,)`` marks the seen."""
    weights, means, covariances = _mixture()
    seen = np.repeat(pattern, 2)
    middle = points.mean(1, keepdims=True)  # brings the numbers to one size
    size = np.maximum(np.abs(points - middle).max((1, 2), keepdims=True), 1e-9)
    x = ((points - middle) / size).reshape(len(points), -1)
    shifts = np.tile(np.eye(2), (x.shape[1] // 2, 1))
    likelihood, guess = [], []
    for weight, mean, covariance in zip(weights, means, covariances):
        own = covariance[np.ix_(seen, seen)] + _NOISE * np.eye(seen.sum())
        precision = np.linalg.inv(own)
        solve = np.linalg.solve(shifts.T @ precision @ shifts, shifts.T @ precision)  # the best shift of a residual
        centred = precision - precision @ shifts @ solve
        p = np.einsum("ni,ij,nj->n", x, centred, x)
        q = x @ centred @ mean[seen]
        degrees = x.shape[1] - 2
        scale = ((q + np.sqrt(q * q + 4 * p * degrees)) / (2 * p))[:, None]
        shift = (mean[seen] - scale * x) @ solve.T  # (N, 2)
        off = scale * x + shift @ shifts.T - mean[seen]
        fit = -0.5 * np.einsum("ni,ij,nj->n", off, precision, off) - 0.5 * np.linalg.slogdet(own)[1]
        likelihood.append(np.log(weight) + fit + degrees * np.log(scale[:, 0]))
        missing = mean[~seen] + off @ precision @ covariance[np.ix_(seen, ~seen)]
        guess.append((missing.reshape(len(x), -1, 2) - shift[:, None]) / scale[..., None])
    share = np.stack(likelihood)
    share = np.exp(share - share.max(0))
    expected = np.einsum("kn,knmc->nmc", share / share.sum(0), np.stack(guess))
    return expected * size + middle


@cache
def _mixture(view: str = "level") -> tuple[Array, Array, Array]:
    """Weights ``(K,)``, means ``(K, 34)`` and covariances ``(K, 34, 34)`` in units of the box."""
    with as_file(files("unihpe_ref") / "assets" / _ASSET) as path, np.load(path, allow_pickle=False) as held:
        names = ("weights", "means", "covariances")
        return tuple(held[f"{view}_{name}"].astype(float) for name in names)


def fit(recording: Path) -> dict[str, Array]:
    """The mixtures for the training takes of a recording, mirrored and not, from random cameras and from steep ones."""
    source = PoseSource(read_mocap(recording)).split("train")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(source), (_POSES // 2,), generator=generator)
    views = {"level": source.batch(rows, generator).joints_2d}
    world = source.motion.joints[torch.randint(len(source.motion.joints), (_POSES // 2,), generator=generator)]
    for view, elevations in _STEEP.items():
        views[view], _ = seen_from(world, elevations, generator)
    return {f"{view}_{name}": values for view, seen in views.items() for name, values in _fitted(seen).items()}


def seen_from(world: Tensor, elevations: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``world`` ``(N, 17, 3)`` from cameras that face the pelvis, 2.5 to 7 m away, at ``elevations`` between two angles
    in degrees: 2D joints ``(N, 17, 2)`` for a focal length of 1,000 and the principal point 0, and joints ``(N, 17,
    3)`` in camera axes."""
    low, span = elevations[0], elevations[1] - elevations[0]
    azimuth, elevation, distance = torch.rand(3, len(world), 1, generator=generator)
    azimuth, elevation = 2 * math.pi * azimuth, torch.deg2rad(low + span * elevation)
    away = torch.cat([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    pelvis = world[:, 0]
    rotation, translation = look_at(pelvis + (2.5 + 4.5 * distance) * away, pelvis)
    seen = world @ rotation.mT + translation[:, None]
    return 1000 * seen[..., :2] / seen[..., 2:], seen


def _fitted(joints: Tensor) -> dict[str, Array]:
    from sklearn.mixture import GaussianMixture

    poses = in_box(joints.double())
    rows = torch.cat([poses, flip_joints(poses)]).flatten(1).numpy()
    mixture = GaussianMixture(_COMPONENTS, reg_covar=2e-5, max_iter=100, random_state=0, init_params="k-means++")
    mixture.fit(rows)
    return {"weights": mixture.weights_, "means": mixture.means_, "covariances": mixture.covariances_}


if __name__ == "__main__":
    found = {name: array.astype(np.float32) for name, array in fit(Path(sys.argv[1])).items()}
    np.savez_compressed(Path(__file__).parents[1] / "assets" / _ASSET, **found)  # type: ignore[arg-type]
