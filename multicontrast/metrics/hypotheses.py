"""Errors of the best of several hypotheses."""

from __future__ import annotations

from torch import Tensor

from multicontrast._checks import check_count, check_floating, describe, three_beats
from multicontrast.metrics._inputs import Root, average_joints, check_options, read_mask, reduce_items
from multicontrast.metrics.joint_errors import distances
from multicontrast.metrics.procrustes import aligned_distances


def min_mpjpe(
    pred: Tensor,
    target: Tensor,
    *,
    dim: int = 0,
    mode: str = "pose",
    procrustes: bool = False,
    mask: Tensor | None = None,
    root: Root = None,
    reduction: str = "mean",
) -> Tensor:
    """MPJPE of the best of several hypotheses: an oracle, to be labelled as such.

    Args:
        pred: hypotheses along axis ``dim``, otherwise the shape of ``target``: ``(H, ..., J, 3)`` by default.
        target: ``(..., J, 3)`` or ``(..., J, 2)``.
        dim: the axis of ``pred`` that holds the hypotheses.
        mode: ``"pose"`` takes the best whole pose (the usual "minMPJPE"); ``"joint"`` the best of each joint apart,
            a lower number that no single hypothesis attains.
        procrustes: align each hypothesis first, as `pa_mpjpe` does.
        mask, root, reduction: as for `mpjpe`; ``mask`` has the shape of ``target`` without the coordinates.

    Returns, Raises: as for `mpjpe`. A hypothesis with NaN makes its item NaN: it is not passed over as a worse one.

    Reference:
        Li and Lee, Generating Multiple Hypotheses for 3D Human Pose Estimation with Mixture Density Network, CVPR 2019.

    Example:
        >>> target = torch.zeros(3, 17, 3)
        >>> hypotheses = torch.stack((target + 1.0, target + 2.0))
        >>> min_mpjpe(hypotheses, target)
        tensor(1.7321)
    """
    check_options("min_mpjpe", dim=dim, mode=mode, procrustes=procrustes, root=root, reduction=reduction)
    pred, target, mask = hypotheses_first("min_mpjpe", pred, target, dim, mask)
    measure = aligned_distances if procrustes else distances
    errors, weight = measure("min_mpjpe", pred, target, mask, root)
    if mode == "joint":
        best = errors.min(0).values
    else:
        chosen = average_joints(errors, weight).argmin(0, keepdim=True)  # NaN counts as the smallest, and so is kept
        best = errors.gather(0, chosen.unsqueeze(-1).expand(1, *errors.shape[1:])).squeeze(0)
    return reduce_items(best, None if weight is None else weight[0], reduction)


def hypotheses_first(
    operation: str, pred: Tensor, target: Tensor, dim: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Moves the hypotheses to axis 0 and expands target and mask to them."""
    check_count(operation, "dim", dim, -(2**63), remedy="Name the axis of the hypotheses.")
    check_floating(operation, "pred", pred)
    check_floating(operation, "target", target)
    if pred.dim() != target.dim() + 1 or not -pred.dim() <= dim < pred.dim() or dim % pred.dim() >= pred.dim() - 2:
        needed = f"`{operation}` needs `pred` with one axis more than `target`, hypotheses along axis {dim}"
        came = f"`pred` {tuple(pred.shape)} and `target` {tuple(target.shape)}"
        raise ValueError(three_beats(needed, came, "Stack the hypotheses: (H, ..., J, 3), or name their axis `dim`."))
    pred = pred.movedim(dim, 0)
    if len(pred) == 0:
        raise ValueError(
            three_beats(f"`{operation}` needs at least one hypothesis", describe(pred), "Sample at least one.")
        )
    if mask is not None:
        read_mask(operation, mask, target.shape[:-1], target)  # its shape is the target's: no mask per hypothesis
    return pred, target.expand(len(pred), *target.shape), mask
