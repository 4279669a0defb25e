"""Distances after Procrustes alignment where values alone are asked for, on a CPU: in place, in one set of buffers.

The steps are those of `procrustes`, which says why they are taken. Here a chunk of poses is turned so that the batch is
innermost, and stays in the cache until its distances are known; nothing is allocated for a second chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.linalg import _rotation_torch
from multicontrast.metrics._inputs import power_of_two

# All buffers of a chunk. Longer chunks are fewer calls, three hundred for each whatever its length; shorter ones stay
# in a core's own caches.
_BYTES = 8_000_000
_ROTATION = 64  # rows of buffers beside two poses and their distances

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Chunk(NamedTuple):
    """What was measured of some poses; the next chunk overwrites it."""

    rows: slice  # of the flattened batch
    distances: Tensor  # (J, n); 0 for hidden joints
    weight: Tensor | None  # (J, n), relative to a power of two near the pose's largest

    def mean_(self) -> Tensor:
        """The weighted mean over the joints, ``(n,)``; NaN without a visible one. The distances are spent on it."""
        if self.weight is None:
            return self.distances.mean(0)
        return self.distances.mul_(self.weight).sum(0) / self.weight.sum(0)


class _Weights(NamedTuple):
    """The joints' weights, in the forms that the steps need."""

    weight: Tensor  # (J, n)
    total: Tensor  # (n,); 1 where it is 0
    visible: Tensor  # (J, 1, n): integers, all bits or none
    heavier: Tensor  # (J, n): 1 where a joint weighs more than every one before it, else 0


def measure(
    pred: Tensor, target: Tensor, weight: Tensor | None, with_scale: bool, allow_reflection: bool
) -> Iterator[Chunk]:
    """Distances between the joints of poses ``(..., J, D)`` after alignment, chunk by chunk.

    Joints of weight 0 are hidden and may hold anything.
    """
    joints, size = target.shape[-2:]
    pred, target = pred.reshape(-1, joints, size), target.reshape(-1, joints, size)
    weight = None if weight is None else weight.reshape(-1, joints)
    length = max(_BYTES // ((2 * joints * size + joints + _ROTATION) * target.element_size()), 1)
    buffers = Workspace()
    for start in range(0, len(target), length):
        rows = slice(start, min(start + length, len(target)))
        w = None if weight is None else _read_weights(weight[rows], buffers)
        distances = _measure(pred[rows], target[rows], w, with_scale, allow_reflection, buffers)
        yield Chunk(rows, distances, None if w is None else w.weight)


def _read_weights(weight: Tensor, buffers: Workspace) -> _Weights:
    count, joints = weight.shape
    w, heavier = buffers.take("weights", (2, joints, count), weight)
    w.copy_(weight.mT)
    heaviest, total = buffers.take("totals", (2, count), weight)
    w.div_(power_of_two(torch.amax(w, 0, out=heaviest)))  # exact, and their sum is finite
    torch.sum(w, 0, out=total)
    total.add_(total == 0)
    visible = (w != 0).to(_INTEGERS[w.dtype]).neg_()
    heavier[0] = 0.0
    heaviest.copy_(w[0])
    for w_j, heavier_j in zip(w[1:], heavier[1:]):
        torch.gt(w_j, heaviest, out=heavier_j)
        torch.maximum(w_j, heaviest, out=heaviest)
    return _Weights(w, total, visible[:, None], heavier)


def _measure(
    pred: Tensor,
    target: Tensor,
    w: _Weights | None,
    with_scale: bool,
    allow_reflection: bool,
    buffers: Workspace,
) -> Tensor:
    count, joints, size = target.shape
    x, y = buffers.take("poses", (2, joints, size, count), target)
    covariance = buffers.take("covariance", (size, size, count), target)
    vectors = buffers.take("vectors", (2, size, count), target)
    x_size, y_size, variance = buffers.take("sizes", (3, count), target)
    for raw, pose, its_size in ((pred, x, x_size), (target, y, y_size)):
        pose.flatten(0, 1).copy_(raw.flatten(1).mT)  # in two axes: PyTorch transposes those in blocks
        _standardise(pose, w, its_size, vectors)
    _correlate(x, y, w, covariance, variance, vectors)
    linear = _rotation_torch.nearest(covariance, allow_reflection, buffers)
    if with_scale:
        trace = covariance.mul_(linear).sum((0, 1))
        linear.mul_(trace / torch.where(variance == 0, 1.0, variance))
    else:
        linear.mul_(x_size / y_size)
    distances = buffers.take("distances", (joints, count), target)
    _subtract(x, y, linear, distances)
    return distances.mul_(y_size)


def _standardise(x: Tensor, w: _Weights | None, size: Tensor, vectors: Tensor) -> None:
    """Centres ``x`` on a joint of the largest weight, scales it by ``1 / size``, and centres it on the mean."""
    first, mean = vectors
    if w is not None:
        _blank(x, w)
    first.copy_(x[0])
    if w is not None:
        for x_j, heavier in zip(x[1:], w.heavier[1:]):
            torch.lerp(first, x_j, heavier, out=first)  # a choice, for weights of 0 and 1
    x.sub_(first)
    if w is not None:
        _blank(x, w)
    size.copy_(power_of_two(torch.maximum(x.amax((0, 1)), x.amin((0, 1)).neg_())))
    x.mul_(size.reciprocal())
    if w is None:
        x.sub_(torch.mean(x, 0, out=mean))
        return
    mean.zero_()
    for x_j, w_j in zip(x, w.weight):
        mean.addcmul_(x_j, w_j)
    x.sub_(mean.div_(w.total))
    _blank(x, w)


def _blank(x: Tensor, w: _Weights) -> None:
    """Hidden joints become 0, whatever they hold: bits know no NaN."""
    x.view(w.visible.dtype).bitwise_and_(w.visible)


def _correlate(x: Tensor, y: Tensor, w: _Weights | None, covariance: Tensor, variance: Tensor, vectors: Tensor) -> None:
    """Writes ``K = sum_j w_j y_j x_j^T`` ``(D, D, n)`` and ``sum_j w_j |x_j|^2`` ``(n,)``."""
    squares, weighted = vectors
    covariance.zero_()
    squares.zero_()
    for j, (x_j, y_j) in enumerate(zip(x, y)):
        wx_j = x_j if w is None else torch.mul(x_j, w.weight[j], out=weighted)
        covariance.addcmul_(y_j[:, None], wx_j)
        squares.addcmul_(x_j, wx_j)
    torch.sum(squares, 0, out=variance)


def _subtract(x: Tensor, y: Tensor, linear: Tensor, distances: Tensor) -> None:
    """Writes ``|y - L x|`` ``(J, n)``; ``y`` becomes the difference."""
    for column, coordinate in zip(linear.unbind(1), x.split(1, 1)):
        y.addcmul_(column, coordinate, value=-1)
    distances.zero_()
    for rest in y.unbind(1):
        distances.addcmul_(rest, rest)
    distances.sqrt_()
