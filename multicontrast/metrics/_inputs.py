"""What the pose metrics share: checks, the origin, distances that cannot overflow, and averages over visible joints."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_floating,
    check_same_device,
    compute_dtype,
    describe,
    three_beats,
    values_are_free,
)

Root = int | Sequence[int] | None
REDUCTIONS = ("none", "mean", "sum")


class Poses(NamedTuple):
    """Checked input, of one shape and type. Hidden joints are 0 in both poses, whatever they held."""

    pred: Tensor  # (..., J, D)
    target: Tensor  # (..., J, D)
    weight: Tensor | None  # (..., J) in the type of the poses; None: every joint counts 1


def read_poses(
    operation: str,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    root: Root = None,
    *,
    sizes: Sequence[int] = (2, 3),
    shape: Sequence[int] | None = None,
    blank: bool = True,
) -> Poses:
    """Checks, promotes, moves the root to the origin, and blanks the hidden joints, or leaves that to the caller.

    ``shape`` is what `pred` must have for this target, where it is not the target's own.
    """
    check_poses(operation, pred, target, sizes=sizes, shape=shape)
    check_same_device(operation, ("pred", "target"), (pred, target))
    dtype = compute_dtype(pred, target)
    pred, target = pred.to(dtype), target.to(dtype)
    if root is not None:
        joints = root_joints(operation, root, target.shape[-2])
        pred, target = pred - mean_position(pred, joints), target - mean_position(target, joints)
    poses = Poses(pred, target, None if mask is None else read_mask(operation, mask, target.shape[:-1], target))
    return blank_hidden(poses) if blank else poses


def blank_hidden(poses: Poses) -> Poses:
    """Hidden joints become 0 in both poses, whatever they held."""
    if poses.weight is None:
        return poses
    hidden = (poses.weight == 0).unsqueeze(-1)
    return Poses(poses.pred.masked_fill(hidden, 0.0), poses.target.masked_fill(hidden, 0.0), poses.weight)


def check_poses(
    operation: str,
    pred: Tensor,
    target: Tensor,
    *,
    sizes: Sequence[int] = (2, 3),
    shape: Sequence[int] | None = None,
) -> None:
    """Raises unless both are floating-point tensors ``(..., J, D)`` of one shape, with at least one joint in them."""
    check_floating(operation, "pred", pred)
    check_floating(operation, "target", target)
    if target.dim() < 2 or target.shape[-1] not in sizes:
        allowed = " or ".join(f"(..., J, {size})" for size in sizes)
        remedy = "Put the coordinates last and the joints before them."
        raise ValueError(three_beats(f"`{operation}` needs `target` of shape {allowed}", describe(target), remedy))
    expected = tuple(target.shape if shape is None else shape)
    if tuple(pred.shape) != expected:
        remedy = "Bring both to one shape (`expand`, `unsqueeze`); nothing is broadcast, as that pairs the wrong poses."
        came = f"`pred` {tuple(pred.shape)} and `target` {tuple(target.shape)}"
        raise ValueError(three_beats(f"`{operation}` needs `pred` of shape {expected} for this target", came, remedy))
    if target.numel() == 0:
        remedy = "Skip empty batches; the accumulating classes do."
        raise ValueError(three_beats(f"`{operation}` needs at least one pose with one joint", describe(target), remedy))


def read_mask(operation: str, mask: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """The mask as weights of that shape: bool gives 0 and 1. A negative weight raises, or is NaN where a look costs."""
    if not isinstance(mask, Tensor) or mask.is_complex():
        remedy = "Pass a bool tensor (True where the joint is visible) or non-negative weights."
        raise TypeError(
            three_beats(f"`{operation}` needs `mask` to be a tensor of bools or weights", describe(mask), remedy)
        )
    check_same_device(operation, ("target", "mask"), (like, mask))
    try:
        weight = mask.to(like.dtype).expand(tuple(shape))
    except RuntimeError:
        remedy = "Give one entry per joint: the shape of the poses without the coordinates, or just (J,)."
        raise ValueError(
            three_beats(f"`{operation}` needs `mask` to expand to {tuple(shape)}", describe(mask), remedy)
        ) from None
    if mask.dtype is torch.bool:
        return weight
    check_values(operation, "mask", weight, weight < 0, "weights of at least 0", "Hidden joints have weight 0.")
    return torch.where(weight < 0, torch.nan, weight)


def root_joints(operation: str, root: int | Sequence[int], joints: int, name: str = "root") -> list[int]:
    """The joints whose mean is the origin, as non-negative indices."""
    try:
        listed = [operator.index(joint) for joint in ([root] if isinstance(root, int) else root)]
    except TypeError:
        listed = []
    if not listed or any(not -joints <= joint < joints for joint in listed):
        remedy = "Name one joint, several whose mean is the root, or None for no alignment."
        raise ValueError(three_beats(f"`{operation}` needs `{name}` within {joints} joints", repr(root), remedy))
    return [joint % joints for joint in listed]


def mean_position(pose: Tensor, joints: Sequence[int]) -> Tensor:
    """The mean of some joints, ``(..., J, D)`` to ``(..., 1, D)``."""
    return take_joints(pose, joints, -2).mean(-2, keepdim=True)


def take_joints(tensor: Tensor, joints: Sequence[int], axis: int) -> Tensor:
    """Some joints along ``axis``. In slices: a list as index would be copied to a GPU, which makes the host wait."""
    return torch.cat([tensor.narrow(axis, joint, 1) for joint in joints], axis)


def check_values(operation: str, name: str, tensor: Tensor, wrong: Tensor, needed: str, remedy: str) -> None:
    """Raises where any of ``wrong`` holds, if a look is free: on the CPU, in eager mode, not under a transform."""
    if values_are_free(tensor) and values_are_free(wrong) and bool(wrong.any()):
        bad = tensor[wrong].flatten()[0].item()
        raise ValueError(three_beats(f"`{operation}` needs `{name}` to hold {needed}", f"{bad:g}", remedy))


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis for vectors of any finite scale; the gradient at 0 is 0."""
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    unit = torch.where(largest == 0, 1.0, largest)
    return torch.linalg.vector_norm(vectors / unit, dim=-1) * unit.squeeze(-1)


_EXPONENT_BITS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def power_of_two(values: Tensor) -> Tensor:
    """The power of two next below each non-negative value, 1 for 0: dividing by it is exact, and so is the product."""
    integers, mask = _EXPONENT_BITS[values.dtype]
    power = torch.bitwise_and(values.detach().view(integers), mask).view(values.dtype)
    power = power.clamp_min(torch.finfo(values.dtype).tiny)  # subnormal values; infinity and NaN give infinity
    return torch.where(values == 0, 1.0, power)


def average_joints(errors: Tensor, weight: Tensor | None) -> Tensor:
    """``(..., J)`` to ``(...)``: the weighted mean over an item's joints, NaN for an item without a visible one."""
    if weight is None:
        return errors.mean(-1)
    weight = relative_weights(weight, -1)
    seen = (weight != 0).any(-1)  # a NaN weight is not "hidden": it spoils the item
    total = torch.where(seen, weight.sum(-1), 1.0)
    return torch.where(seen, weighted(errors, weight).sum(-1) / total, torch.nan)


def relative_weights(weight: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Weights over a power of two near their largest: a mean knows their ratios alone, and sums of these are finite."""
    return weight / power_of_two(weight.amax(axes, keepdim=True))


def weighted(errors: Tensor, weight: Tensor) -> Tensor:
    """Errors times weights, 0 where the weight is 0, whatever the error."""
    return (errors * weight).masked_fill(weight == 0, 0.0)


def reduce_items(operation: str, errors: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Averages joints, then items. Items without a visible joint are left out of the sum and of the mean."""
    check_choice(operation, "reduction", reduction, REDUCTIONS)
    return reduce_values(average_joints(errors, weight), None if weight is None else (weight != 0).any(-1), reduction)


def reduce_values(values: Tensor, seen: Tensor | None, reduction: str) -> Tensor:
    """One value per item to the value asked for; only items that are ``seen`` enter."""
    if reduction == "none":
        return values
    if seen is None:
        return values.mean() if reduction == "mean" else values.sum()
    total = torch.where(seen, values, 0.0).sum()
    return total / seen.sum() if reduction == "mean" else total


def reduce_joints(operation: str, errors: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Pools the visible joints of all items: sum of weighted errors, over the sum of weights for the mean."""
    check_choice(operation, "reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return average_joints(errors, weight)
    if weight is None:
        return errors.mean() if reduction == "mean" else errors.sum()
    if reduction == "mean":
        weight = relative_weights(weight, tuple(range(weight.dim())))
        return weighted(errors, weight).sum() / weight.sum()
    return weighted(errors, weight).sum()


def state_device(device: torch.device) -> torch.device:
    """Where states of a metric on ``device`` live: there, or on the CPU where the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
