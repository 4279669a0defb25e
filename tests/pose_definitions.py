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


# --- the others, in NumPy float64, joint by joint -----------------------------------------------------------

Root = int | Sequence[int] | None


def rooted(pose: np.ndarray, root: Root) -> np.ndarray:
    """One pose less its root joint, or less the mean of several."""
    if root is None:
        return pose
    joints = [root] if isinstance(root, int) else list(root)
    return pose - sum(pose[j] for j in joints) / len(joints)


def distances(pred: np.ndarray, target: np.ndarray, root: Root = None) -> list[float]:
    x, y = rooted(pred, root), rooted(target, root)
    return [float(np.sqrt(sum((a - b) ** 2 for a, b in zip(x[j], y[j])))) for j in range(len(x))]


def weighted_mean(values: Sequence[float], weight: Sequence[float]) -> float:
    """NaN where every weight is 0; a value without weight is not looked at."""
    used = [(w, v) for w, v in zip(weight, values) if w != 0]
    return sum(w * v for w, v in used) / sum(w for w, _ in used) if used else float("nan")


def mean_of_items(values: Sequence[float], weights: Sequence[Sequence[float]]) -> float:
    """Over the items that have a visible joint."""
    kept = [v for v, weight in zip(values, weights) if any(w != 0 for w in weight)]
    return sum(kept) / len(kept) if kept else float("nan")


def motion(
    pred: np.ndarray, target: np.ndarray, weight: np.ndarray, order: int
) -> tuple[list[float], list[list[float]]]:
    """Errors of first or second differences of one clip ``(T, J, D)``, and their weights: one row per difference."""
    values, weights = [], []
    for t in range(len(pred) - order):
        if order == 1:
            moved = [pose[t + 1] - pose[t] for pose in (pred, target)]
        else:
            moved = [pose[t + 2] - 2 * pose[t + 1] + pose[t] for pose in (pred, target)]
        weights.append([min(weight[t : t + order + 1, j]) for j in range(pred.shape[1])])
        values.append(weighted_mean(distances(*moved), weights[-1]))
    return values, weights


def correct(values: Sequence[float], threshold: float, strict: bool = True) -> list[float]:
    return [float(v < threshold if strict else v <= threshold) for v in values]


def correct_poses_area(worst: float, thresholds: Sequence[float]) -> float:
    """Trapezoid over the thresholds of [worst < threshold]."""
    heights = [float(worst < threshold) for threshold in thresholds]
    return sum((b - a) * (low + high) / 2 for a, b, low, high in zip(thresholds, thresholds[1:], heights, heights[1:]))


def oks(pred: np.ndarray, target: np.ndarray, area: float, sigmas: Sequence[float], weight: Sequence[float]) -> float:
    terms = []
    for j, sigma in enumerate(sigmas):
        squared = sum((a - b) ** 2 for a, b in zip(pred[j], target[j])) if weight[j] else 0.0
        terms.append(np.exp(-squared / (2 * (2 * sigma) ** 2 * (area + np.spacing(1)))))
    return weighted_mean(terms, weight)


def average_precision(found: Sequence[tuple[float, bool]], objects: int) -> float:
    """From detections ``(score, hit)``: the mean over 101 recalls of the best precision at that recall or beyond."""
    ordered = [hit for _, hit in sorted(found, key=lambda pair: -pair[0])]
    points = []
    for n in range(1, len(ordered) + 1):
        hits = sum(ordered[:n])
        points.append((hits / objects, hits / n))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((precision for r, precision in points if r >= recall), default=0.0)
    return total / 101


def ranks(query: np.ndarray, gallery: np.ndarray, match: Sequence[int], ties: str) -> list[float]:
    """Ranks by inner product, one comparison at a time."""
    out = []
    for q, own in zip(query, match):
        similarity = [float(q @ g) for g in gallery]
        above = sum(s > similarity[own] for s in similarity)
        equal = sum(s == similarity[own] for s in similarity) - 1
        out.append(1 + above + {"pessimistic": equal, "optimistic": 0, "mean": equal / 2}[ties])
    return out
