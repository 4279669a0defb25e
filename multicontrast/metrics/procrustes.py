"""Procrustes alignment and PA-MPJPE: masked, batched, differentiable, and exact on degenerate poses.

The steps, per pose, with visible joints only (hidden ones have weight 0):

1. centre both poses twice: on a joint of the largest weight, which is exact enough to remove any offset, then on the
   mean;
2. divide each by a power of two, so that no product can overflow or underflow at any scale;
3. ``K = sum_j w_j y_j x_j^T`` and its nearest proper rotation ``R`` (`multicontrast.linalg.proper_rotation`);
4. ``s = <R, K> / sum_j w_j |x_j|^2``, or 0 for a collapsed prediction;
5. the distances ``|y_j - s R x_j|`` and their weighted mean.

Nothing is clamped by an absolute epsilon and nothing depends on a branch over the data.

Two roads lead over these steps: the differentiable one here, which also serves GPUs and compilers, and for values alone
on a CPU the one of ``_procrustes_in_place``. They agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multicontrast._backend import use_triton
from multicontrast._checks import check_choice, values_are_free
from multicontrast.linalg._glue import fold_last, is_differentiated, unfold_last
from multicontrast.linalg.rotation import batch_last_rotation
from multicontrast.metrics._inputs import (
    REDUCTIONS,
    Poses,
    Root,
    blank_hidden,
    power_of_two,
    read_poses,
    reduce_items,
    reduce_values,
    relative_weights,
    root_joints,
)
from multicontrast.metrics._procrustes_in_place import measure
from multicontrast.metrics.joint_errors import JointErrors


class Alignment(NamedTuple):
    """``aligned = scale * pred @ rotation.mT + translation``, joint by joint ``s R p + t``."""

    aligned: Tensor  # (..., J, D)
    rotation: Tensor  # (..., D, D), acts on columns
    scale: Tensor  # (...)
    translation: Tensor  # (..., D)


def pa_mpjpe(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    mask: Tensor | None = None,
    root: Root = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean per-joint error after Procrustes alignment ("Protocol 2", PA-MPJPE, P-MPJPE, "reconstruction error").

    Aligns with the similarity :math:`(s, R, t)` that minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2`,
    then averages the *distances*, not their squares.

    Conventions, and who differs: reflections are excluded, so a mirrored pose keeps its error
    (``scipy.spatial.procrustes`` and torchmetrics' ``procrustes_disparity`` allow them and give it 0, on a standardised
    squared scale that is not millimetres). Hidden joints enter neither the alignment nor the average (mmpose aligns on
    all). Weights are linear (PyTorch3D's alignment squares them). A collapsed prediction aligns to the centroid and
    keeps the target's mean distance from it, where other code gives NaN, raises, or reports 0.

    Args:
        pred, target: ``(..., J, 3)`` or ``(..., J, 2)``, any unit, one shape. Half precision is computed in float32.
        scale: False for the rigid variant, rotation and translation alone.
        allow_reflection: let the alignment mirror the pose.
        mask: ``(..., J)`` or ``(J,)``, bool or non-negative weights; a hidden joint may hold anything, even NaN.
        root: accepted so that all pose errors are called alike; alignment undoes any translation.
        reduction: ``"none"`` for one value per item, ``"mean"`` or ``"sum"`` over the items.

    Returns:
        ``(...)`` or a scalar, in the unit of ``target``. An item without a visible joint is NaN, and left out of mean
        and sum; NaN in a pose stays in that pose. Error at most 16 eps x size x (1 + condition), where size is the
        target's extent and the condition that of the alignment; see the page on accuracy for the one family, two
        nearly straight poses, whose condition is that of the 3x3 covariance. The gradient is finite everywhere.

    Raises:
        ValueError, TypeError: shapes, types or devices that do not fit; an empty batch; a negative weight (on the CPU;
            elsewhere the item is NaN).

    Reference:
        Umeyama, TPAMI 1991. On which paper reports what: docs/metrics/which-metric.

    Example:
        >>> target = torch.rand(4, 17, 3)
        >>> turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> bool(pa_mpjpe(2.0 * target @ turn + 5.0, target) < 1e-5)
        True
    """
    check_choice("pa_mpjpe", "reduction", reduction, REDUCTIONS)
    poses = _read("pa_mpjpe", pred, target, mask, root)
    if not _values_alone(poses):
        return reduce_items("pa_mpjpe", _distances(poses, scale, allow_reflection), poses.weight, reduction)
    values = poses.target.new_empty(poses.target.shape[:-2])
    flat = values.view(-1)
    for chunk in measure(*poses, scale, allow_reflection):
        flat[chunk.rows] = chunk.mean_()
    if reduction == "none" or poses.weight is None:
        return reduce_values(values, None, reduction)
    return reduce_values(values, (poses.weight != 0).any(-1), reduction)


def pa_mpjpe_joints(
    operation: str,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    root: Root,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
) -> JointErrors:
    """The distances after alignment, ``(..., J)``."""
    poses = _read(operation, pred, target, mask, root)
    if not _values_alone(poses):
        return JointErrors(_distances(poses, scale, allow_reflection), poses.weight)
    batch, joints = poses.target.shape[:-2], poses.target.shape[-2]
    errors = poses.target.new_empty(joints, batch.numel())
    for chunk in measure(*poses, scale, allow_reflection):
        errors[:, chunk.rows] = chunk.distances
    return JointErrors(errors.mT.reshape(*batch, joints), poses.weight)


def _read(operation: str, pred: Tensor, target: Tensor, mask: Tensor | None, root: Root) -> Poses:
    """Checked poses, in which hidden joints still hold what they held."""
    poses = read_poses(operation, pred, target, mask, blank=False)
    if root is not None:  # checked and no more: the alignment undoes any translation
        root_joints(operation, root, target.shape[-2])
    return poses


def _values_alone(poses: Poses) -> bool:
    """Whether to go in place: on a CPU, if nobody asks for a derivative, traces, or wants the Triton kernels."""
    tensors = [tensor for tensor in poses if tensor is not None]
    free = all(values_are_free(tensor) for tensor in tensors)
    return free and not is_differentiated(*tensors) and not use_triton(poses.target)


def _distances(poses: Poses, scale: bool, allow_reflection: bool) -> Tensor:
    """The distances after alignment ``(..., J)``, with a gradient."""
    parts = []
    for pieces in _chunks(*blank_hidden(poses)):
        fit = _fit(pieces, scale, allow_reflection)
        linears = torch.split(fit.linear, [piece.pred.shape[-1] for piece in pieces], -1)
        for piece, linear in zip(pieces, linears):
            parts.append(_Distances.apply(piece.pred, piece.target, linear) * piece.target_size)
    return torch.cat(parts, -1).mT.reshape(poses.target.shape[:-1])


def procrustes_align(
    pred: Tensor,
    target: Tensor,
    *,
    scale: bool = True,
    allow_reflection: bool = False,
    mask: Tensor | None = None,
) -> Alignment:
    r"""The similarity (or, with ``scale=False``, the rigid motion) that best lays ``pred`` over ``target``.

    Minimises :math:`\sum_j w_j \lVert s R\,p_j + t - q_j \rVert^2` over ``s``, ``R`` with ``det R = +1`` (any sign with
    ``allow_reflection``) and ``t``.

    Args:
        pred, target, scale, allow_reflection, mask: as for `pa_mpjpe`.

    Returns:
        `Alignment` of ``aligned (..., J, D)``, ``rotation (..., D, D)`` for column vectors, ``scale (...)`` and
        ``translation (..., D)``: ``aligned = scale * pred @ rotation.mT + translation``. Hidden joints do not steer the
        alignment but are carried along by it. An item without a visible joint is NaN. Differentiable once. ``aligned``
        is computed about the centroids, and so stays accurate far from the origin, where ``translation`` cancels.

    Raises:
        ValueError, TypeError: as for `pa_mpjpe`.

    Example:
        >>> target = torch.rand(17, 3)
        >>> fit = procrustes_align(2.0 * target + 1.0, target)
        >>> round(fit.scale.item(), 4), bool((fit.aligned - target).abs().max() < 1e-5)
        (0.5, True)
    """
    original = pred
    pred, target, weight = read_poses("procrustes_align", pred, target, mask)
    joints, size = target.shape[-2:]
    everywhere = original.to(pred.dtype).reshape(-1, joints, size)
    outputs = []
    start = 0
    for pieces in _chunks(pred, target, weight):
        fit = _fit(pieces, scale, allow_reflection)
        centres = [torch.cat(parts, -1).mT for parts in zip(*((p.pred_centre, p.target_centre) for p in pieces))]
        linear = (fit.scale * fit.rotation).permute(2, 0, 1)  # (n, D, D)
        stop = start + len(linear)
        # Sums of products, not `@`: that would follow autocast and the settings for TF32.
        turned = (linear[:, None] * (everywhere[start:stop] - centres[0][:, None])[..., None, :]).sum(-1)
        moved = (linear * centres[0][:, None]).sum(-1)
        rotation = fit.rotation.permute(2, 0, 1)
        outputs.append((turned + centres[1][:, None], rotation, fit.scale, centres[1] - moved))
        start = stop
    aligned, rotation, factor, translation = (torch.cat(parts) for parts in zip(*outputs))
    batch = target.shape[:-2]
    return Alignment(
        aligned.reshape(target.shape),
        rotation.reshape(*batch, size, size),
        factor.reshape(batch),
        translation.reshape(*batch, size),
    )


# Two sizes of chunk on a CPU: poses in pieces that a core's cache can hold, and their rotations, which are several
# times smaller and hundreds of short operations long, a few pieces at a time.
_PIECE_BYTES = 1_600_000
_PIECES = 4


class _Piece(NamedTuple):
    """Some poses, batch innermost, centred and divided by powers of two; and what was taken away."""

    pred: Tensor  # (J, D, n)
    target: Tensor  # (J, D, n)
    covariance: Tensor  # (D, D, n): K = sum_j w_j y_j x_j^T
    variance: Tensor  # (n,): sum_j w_j |x_j|^2
    pred_size: Tensor  # (n,)
    target_size: Tensor  # (n,)
    pred_centre: Tensor  # (D, n)
    target_centre: Tensor  # (D, n)


class _Fit(NamedTuple):
    """The alignment of some pieces."""

    linear: Tensor  # (D, D, n): s R between the poses of the pieces
    rotation: Tensor  # (D, D, n)
    scale: Tensor  # (n,): s between the poses that came


def _chunks(pred: Tensor, target: Tensor, weight: Tensor | None) -> Iterator[list[_Piece]]:
    joints, size = target.shape[-2:]
    pred, target = pred.reshape(-1, joints, size), target.reshape(-1, joints, size)
    weight = None if weight is None else relative_weights(weight, -1).reshape(-1, joints)
    if target.device.type != "cpu" or torch.compiler.is_compiling():  # a graph would hold every piece, and their number
        yield [_piece(pred, target, weight)]
        return
    length = max(_PIECE_BYTES // (joints * size * target.element_size()), 1)
    for start in range(0, len(target), length * _PIECES):
        firsts = range(start, min(start + length * _PIECES, len(target)), length)
        rows = [slice(first, first + length) for first in firsts]
        yield [_piece(pred[row], target[row], None if weight is None else weight[row]) for row in rows]


def _piece(pred: Tensor, target: Tensor, weight: Tensor | None) -> _Piece:
    w = None if weight is None else weight.mT.contiguous()
    x, x_centre, x_size = _Standardise.apply(pred.permute(1, 2, 0), w)
    y, y_centre, y_size = _Standardise.apply(target.permute(1, 2, 0), w)
    wx = x if w is None else x * w[:, None]
    covariance = torch.stack([(y * coordinate[:, None]).sum(0) for coordinate in wx.unbind(1)], 1)
    return _Piece(x, y, covariance, (wx * x).sum((0, 1)), x_size, y_size, x_centre, y_centre)


class _Standardise(torch.autograd.Function):
    """``(J, D, n)`` to the same, contiguous, centred and scaled; the centre ``(D, n)``; and the size ``(n,)``.

    Centred twice, on a joint of the largest weight and then on the mean, so that a distant origin costs no digits. The
    size is a power of two: dividing by it is exact, and afterwards no product overflows or underflows. A function of
    its own so that the passes can be in place; its derivative is linear, and that of any centring.
    """

    @staticmethod
    def forward(pose: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # Two axes rather than three: PyTorch transposes matrices in blocks.
        x = pose.flatten(0, 1).clone(memory_format=torch.contiguous_format).view(pose.shape)
        if w is None:
            first = x[0].clone()
            x.sub_(first)
        else:
            hidden = (w == 0)[:, None]
            first = x.gather(0, w.argmax(0).expand(1, *x.shape[1:]))[0]
            x.sub_(first).masked_fill_(hidden, 0.0)
        size = power_of_two(torch.maximum(x.amax((0, 1)), x.amin((0, 1)).neg_()))
        x.mul_(size.reciprocal())  # exact, as is the product
        if w is None:
            mean = x.mean(0)
            x.sub_(mean)
        else:
            mean = (x * w[:, None]).sum(0) / w.sum(0)  # 0 / 0, NaN, without a visible joint
            x.sub_(mean).masked_fill_(hidden, 0.0)
        return x, mean.mul_(size).add_(first), size

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2], inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, centre_grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        size, w = ctx.saved_tensors
        grad = grad * size.reciprocal()
        if w is None:
            return grad + (centre_grad - grad.sum(0)) / len(grad), None
        grad = grad.masked_fill((w == 0)[:, None], 0.0)
        return grad + (w / w.sum(0))[:, None] * (centre_grad - grad.sum(0)), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], pose: Tensor, w: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = fold_last(info.batch_size, in_dims, (pose, w))
        return unfold_last(info.batch_size, _Standardise.apply(*folded))


def _fit(pieces: list[_Piece], with_scale: bool, allow_reflection: bool) -> _Fit:
    covariance, variance, x_size, y_size = (
        torch.cat(parts, -1) for parts in zip(*((p.covariance, p.variance, p.pred_size, p.target_size) for p in pieces))
    )
    rotation = batch_last_rotation(covariance, allow_reflection)
    if not with_scale:
        return _Fit(x_size / y_size * rotation, rotation, torch.where(variance.isnan(), torch.nan, 1.0))
    # R maximises <R, K>: its change adds nothing to the change of the maximum, and it is a constant here.
    trace = (rotation.detach() * covariance).sum((0, 1))
    ratio = trace / torch.where(variance == 0, 1.0, variance)
    return _Fit(ratio * rotation, rotation, ratio * (y_size / x_size))


class _Distances(torch.autograd.Function):
    """``|y - L x|``: joints ``x, y (J, D, n)`` and ``L (D, D, n)`` to ``(J, n)``; the gradient is 0 at distance 0."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, linear: Tensor) -> Tensor:
        squared: Tensor | None = None
        for rest in _rests(x, y, linear):
            squared = rest.square_() if squared is None else squared.addcmul_(rest, rest)
        assert squared is not None
        return squared.sqrt_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, linear, distances = ctx.saved_tensors
        grad = torch.where(distances == 0, 0.0, grad / distances)
        y_grad = torch.stack([rest * grad for rest in _rests(x, y, linear)], 1)
        x_grad = torch.stack([-(column * y_grad).sum(1) for column in linear.unbind(1)], 1)
        linear_grad = torch.stack([-(y_grad * coordinate[:, None]).sum(0) for coordinate in x.unbind(1)], 1)
        return x_grad, y_grad, linear_grad

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        folded = fold_last(info.batch_size, in_dims, tensors)
        (distances,), (place,) = unfold_last(info.batch_size, (_Distances.apply(*folded),))
        return distances, place


def _rests(x: Tensor, y: Tensor, linear: Tensor) -> Iterator[Tensor]:
    """``y - L x``, one coordinate ``(J, n)`` at a time."""
    first, *others = x.unbind(1)
    for row, coordinate in zip(linear, y.unbind(1)):
        rest = torch.addcmul(coordinate, row[0], first, value=-1)
        for factor, other in zip(row[1:], others):
            rest = torch.addcmul(rest, factor, other, value=-1)  # in place there is no rule for `vmap`
        yield rest
