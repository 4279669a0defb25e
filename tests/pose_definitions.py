"""The pose and alignment metrics straight from their equations, one item at a time.

These are what the library is compared with. They share no code with it: loops over joints and items in NumPy float64,
and for Procrustes alignment 60-digit arithmetic, since float64 is itself under test there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
from torch import Tensor

DIGITS = 60
mp = mpmath.mp.clone()
mp.dps = DIGITS


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# --- Procrustes alignment, in 60 digits ---------------------------------------------------------------------


class Aligned(NamedTuple):
    """The best alignment of one pose: joints, rotation for column vectors, scale, translation."""

    joints: Any  # J x D mpmath matrix
    rotation: Any
    scale: Any
    translation: Any
    singular: list[Any]  # of the covariance, largest first; the last one signed under det R = +1


def align(
    pred: np.ndarray,
    target: np.ndarray,
    weight: Sequence[float] | None = None,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
) -> Aligned:
    """Umeyama's solution for one pose ``(J, D)``: singular value decomposition of the covariance."""
    joints, size = pred.shape
    w = [mp.mpf(1)] * joints if weight is None else [mp.mpf(float(x)) for x in weight]
    used = [j for j in range(joints) if w[j] != 0]
    total = mp.fsum(w)
    x, y = _exact(pred, used), _exact(target, used)
    mean_x = [mp.fsum(w[j] * x[j][d] for j in used) / total for d in range(size)]
    mean_y = [mp.fsum(w[j] * y[j][d] for j in used) / total for d in range(size)]
    cx = {j: [x[j][d] - mean_x[d] for d in range(size)] for j in used}
    cy = {j: [y[j][d] - mean_y[d] for d in range(size)] for j in used}
    covariance = mp.matrix(size, size)  # sum w y x^T
    for a, b in itertools.product(range(size), repeat=2):
        covariance[a, b] = mp.fsum(w[j] * cy[j][a] * cx[j][b] for j in used)
    variance = mp.fsum(w[j] * cx[j][d] ** 2 for j in used for d in range(size))
    if all(covariance[a, b] == 0 for a in range(size) for b in range(size)):
        rotation, singular = mp.eye(size), [mp.mpf(0)] * size
    else:
        u, s, v = mp.svd_r(covariance)
        sign = mp.eye(size)
        if not allow_reflection and mp.det(u) * mp.det(v) < 0:
            sign[size - 1, size - 1] = -1
        rotation = u * sign * v
        singular = [s[i] * sign[i, i] for i in range(size)]
    factor = mp.mpf(1)
    if scale:
        factor = mp.fsum(singular) / variance if variance != 0 else mp.mpf(0)
    linear = factor * rotation
    translation = [mean_y[a] - mp.fsum(linear[a, b] * mean_x[b] for b in range(size)) for a in range(size)]
    moved = {j: [mp.fsum(linear[a, b] * cx[j][b] for b in range(size)) + mean_y[a] for a in range(size)] for j in used}
    return Aligned(moved, rotation, factor, translation, singular)


def pa_mpjpe(pred: np.ndarray, target: np.ndarray, weight: Sequence[float] | None = None, **options: bool) -> Any:
    """The mean distance after the alignment, a 60-digit number."""
    weight = [1.0] * len(pred) if weight is None else list(weight)
    aligned = align(pred, target, weight, **options)
    used = [j for j in range(len(pred)) if weight[j] != 0]
    y = _exact(target, used)
    total = mp.fsum(mp.mpf(float(weight[j])) for j in used)
    distances = {j: mp.sqrt(mp.fsum((aligned.joints[j][d] - y[j][d]) ** 2 for d in range(pred.shape[1]))) for j in used}
    return mp.fsum(mp.mpf(float(weight[j])) * distances[j] for j in used) / total


def extent(pose: np.ndarray, weight: Sequence[float] | None = None) -> float:
    """Largest distance of a visible joint from their centroid, along any axis."""
    visible = np.asarray([1.0] * len(pose) if weight is None else weight, dtype=float)
    used = pose[visible != 0].astype(np.longdouble)
    return float(np.abs(used - used.mean(0)).max())


def pa_condition(
    pred: np.ndarray, target: np.ndarray, weight: Sequence[float] | None = None, seed: int = 0, **options: bool
) -> float:
    """How far PA-MPJPE moves, in units of the target's extent, for relative changes of the poses: the largest of six.

    The changes are so small (1e-25) that only 60-digit arithmetic sees them, and so the quotient is a derivative.
    """
    rng = np.random.default_rng(seed)
    step = mp.mpf(10) ** -25
    value = pa_mpjpe(pred, target, weight, **options)
    sizes = extent(pred, weight), extent(target, weight)
    worst = mp.mpf(0)
    for _ in range(6):
        moved = []
        for pose, size in zip((pred, target), sizes):
            noise = rng.uniform(-1, 1, pose.shape)
            exact = np.array([[mp.mpf(float(v)) for v in row] for row in np.nan_to_num(pose)], dtype=object)
            moved.append(exact + step * mp.mpf(size) * np.vectorize(mp.mpf, otypes=[object])(noise))
        worst = max(worst, abs(pa_mpjpe(*moved, weight, **options) - value))
    return float(worst / (step * mp.mpf(sizes[1]))) if sizes[1] > 0 else 0.0


def _exact(pose: np.ndarray, used: Sequence[int]) -> dict[int, list[Any]]:
    return {j: [v if isinstance(v, mp.mpf) else mp.mpf(float(v)) for v in pose[j]] for j in used}


# --- distances without rotation -----------------------------------------------------------------------------


def mpjpe(pred: np.ndarray, target: np.ndarray, weight: Sequence[float] | None = None) -> Any:
    """Weighted mean distance of one pose, in 60 digits."""
    weight = [1.0] * len(pred) if weight is None else list(weight)
    used = [j for j in range(len(pred)) if weight[j] != 0]
    x, y = _exact(pred, used), _exact(target, used)
    terms = [mp.mpf(weight[j]) * mp.sqrt(mp.fsum((a - b) ** 2 for a, b in zip(x[j], y[j]))) for j in used]
    return mp.fsum(terms) / mp.fsum(mp.mpf(weight[j]) for j in used)


def n_mpjpe(pred: np.ndarray, target: np.ndarray, weight: Sequence[float] | None = None) -> Any:
    """The same after the scale <p, q> / <p, p>."""
    weight = [1.0] * len(pred) if weight is None else list(weight)
    used = [j for j in range(len(pred)) if weight[j] != 0]
    x, y = _exact(pred, used), _exact(target, used)
    inner = mp.fsum(mp.mpf(weight[j]) * a * b for j in used for a, b in zip(x[j], y[j]))
    norm = mp.fsum(mp.mpf(weight[j]) * a * a for j in used for a in x[j])
    scale = inner / norm if norm != 0 else mp.mpf(0)
    scaled = np.zeros(pred.shape, dtype=object)
    for j in used:
        scaled[j] = [scale * a for a in x[j]]
    return mpjpe(scaled, target, weight)
