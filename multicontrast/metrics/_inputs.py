"""What the metrics share: their options, the checks of their input, lengths that cannot overflow, and averages."""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import (
    can_read_values,
    check_choice,
    check_count,
    check_counts,
    check_flag,
    check_floating,
    check_list,
    check_names,
    check_number,
    check_numbers,
    check_same_device,
    check_weights,
    check_whole,
    compute_dtype,
    describe,
    three_beats,
)
from multicontrast.linalg._gram3_torch import power_of_two

Root = int | Sequence[int] | None
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)


class JointErrors(NamedTuple):
    """What a metric measures, before any average: errors ``(..., J)``, and weights unless every joint counts 1."""

    errors: Tensor
    weight: Tensor | None


class Poses(NamedTuple):
    """Checked input, of one shape and type. Hidden joints are 0 in both poses."""

    pred: Tensor  # (..., J, D)
    target: Tensor  # (..., J, D)
    weight: Tensor | None  # (..., J) in the type of the poses; None: every joint counts 1


# --- options --------------------------------------------------------------------------------------------------


class ItemOptions(TypedDict, total=False):
    """The options of every metric of poses."""

    mask: Tensor | None
    reduction: str


class PoseOptions(ItemOptions, total=False):
    """The options of metrics that also move the root to the origin; `mpjpe` documents them."""

    root: Root


class ShareOptions(PoseOptions, total=False):
    """The options of metrics that give shares of joints; `pck` documents them."""

    strict: bool
    average: str


class RankOptions(TypedDict, total=False):
    """The options of every metric of retrieval; `retrieval_ranks` documents them."""

    match: Tensor | None
    ties: str
    normalize: bool


_DEFAULTS = {
    "strict": True, "average": "micro", "match": None, "ties": "pessimistic", "normalize": True,
    "mask": None, "root": None, "reduction": "mean", "group": None, "ids": None,
}  # fmt: skip


def with_options(kind: type, **changed: Any) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Gives a function with ``**options: Unpack[kind]`` a signature that lists the options, and checks what is passed.

    ``changed`` are the defaults that differ from those of `_DEFAULTS`.
    """
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        for hints in [typing.get_type_hints(kind)]
        for name, default in (_DEFAULTS | changed).items()
        if name in hints
    ]

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        written = inspect.signature(function)
        named = [one for one in written.parameters.values() if one.kind is not one.VAR_KEYWORD]
        signature = written.replace(parameters=[*named, *keywords])
        known = tuple(signature.parameters)

        @functools.wraps(function)
        def checked(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            check_names(function.__name__, options, known)
            check_options(function.__name__, **options)
            return function(*args, **(changed | options))

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


class PoseFunction(Protocol[Arguments]):
    """A metric of poses: a call gives averages, and ``measure`` gives the errors and weights behind them."""

    __name__: str
    measure: Callable[..., JointErrors]

    def __call__(self, *args: Arguments.args, **options: Arguments.kwargs) -> Tensor: ...


def pose_metric(
    kind: type = PoseOptions, *, pooled: bool = False, **changed: Any
) -> Callable[[Callable[Arguments, JointErrors]], PoseFunction[Arguments]]:
    """Turns a function that measures joints into a metric, which checks its options and averages over items.

    Args:
        kind, changed: as for `with_options`.
        pooled: the average is over the visible joints of all items.
    """

    def decorate(measure: Callable[Arguments, JointErrors]) -> PoseFunction[Arguments]:
        @with_options(kind, **changed)
        @functools.wraps(measure)
        def metric(*poses: Any, reduction: str = "mean", **options: Any) -> Tensor:
            errors, weight = measure(*poses, **options)
            if pooled:
                return reduce_joints(errors, weight, reduction, options.get("average", "micro"))
            return reduce_items(errors, weight, reduction)

        metric.__signature__ = inspect.signature(metric).replace(return_annotation=Tensor)  # type: ignore[attr-defined]
        metric.measure = measure  # type: ignore[attr-defined]
        return metric  # type: ignore[return-value]

    return decorate


_OPTIONAL = ("root", "joints", "fps", "dim")


def check_options(operation: str, **options: object) -> None:
    """Raises unless every option is valid. Options that are not in the table are data, or a user's own function's."""
    for name, value in options.items():
        if name in _CHECKS and not (value is None and name in _OPTIONAL):
            check, settings = _CHECKS[name]
            check(operation, name, value, **settings)
    if options.get("average") == "macro" and options.get("reduction") == "sum":
        remedy = 'Take average="micro" for the number of correct joints, or "none" for that of each joint.'
        raise ValueError(three_beats(f"`{operation}` can average joints only in a mean", 'reduction="sum"', remedy))


def _check_joints(operation: str, name: str, value: object) -> None:
    check_list(operation, name, value, remedy="List the joints that are checked, or pass None for all.")
    list_joints(operation, name, value)


def read_sigmas(operation: str, name: str, value: Any) -> Tensor | list[float]:
    """One deviation per joint. The values of a tensor on a GPU or in a graph cannot be read and are not checked."""
    if isinstance(value, Tensor) and not can_read_values(value):
        check_floating(operation, name, value)
        return value
    return check_numbers(operation, name, value, above=0, remedy="Pass one deviation per joint.")


def list_joints(operation: str, name: str, value: object, joints: int | None = None) -> list[int]:
    """The joints of ``value``, one or several, as non-negative indices where their number is known."""
    remedy = "Name one joint, several whose mean is the root, or None for no alignment."
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    listed = check_counts(operation, name, value, -(2**63), remedy=remedy)
    if joints is None:
        return listed
    for joint in listed:
        if not -joints <= joint < joints:
            needed = f"`{operation}` needs `{name}` within {joints} joints"
            raise ValueError(three_beats(needed, describe(joint), remedy))
    return [joint % joints for joint in listed]


_UNIT = "Pass a share of the norm, or a length in the unit of the poses"
_CHECKS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "reduction": (check_choice, {"choices": ("none", "mean", "sum")}),
    "average": (check_choice, {"choices": ("micro", "macro", "none")}),
    "ties": (check_choice, {"choices": ("pessimistic", "optimistic", "mean")}),
    "mode": (check_choice, {"choices": ("pose", "joint")}),
    "kind": (check_choice, {"choices": ("max", "diagonal")}),
    **dict.fromkeys(("scale", "allow_reflection", "strict", "procrustes", "normalize"), (check_flag, {})),
    **dict.fromkeys(("alpha", "t"), (check_number, {"above": 0, "remedy": "The paper's is 2."})),
    "fps": (
        check_number,
        {"above": 0, "below": 1e9, "remedy": "Pass frames per second, or None for differences per frame."},
    ),
    "threshold": (check_number, {"least": 0, "remedy": f"{_UNIT}."}),
    "thresholds": (check_numbers, {"least": 0, "remedy": f"{_UNIT}, several of them."}),
    "sigmas": (read_sigmas, {}),
    "root": (list_joints, {}),
    "joints": (_check_joints, {}),
    "k": (check_counts, {"least": 1, "remedy": "Ranks count from 1: pass k=1, or several such as (1, 5, 10)."}),
    "dim": (check_count, {"least": -(2**63), "remedy": "Name the axis of the hypotheses."}),
}


# --- poses ----------------------------------------------------------------------------------------------------


def read_poses(
    operation: str,
    pred: Tensor,
    target: Tensor,
    *,
    flags: bool = False,
    blank: bool = True,
    **options: Unpack[PoseOptions],
) -> Poses:
    """Poses ``(..., J, D)`` of one shape and at least one joint, promoted, with the root at the origin.

    Hidden joints are set to 0, or left as they are for a caller who does that.
    """
    check_floating(operation, "pred", pred)
    check_floating(operation, "target", target)
    if target.dim() < 2 or target.shape[-1] not in (2, 3):
        remedy = "Put the coordinates last and the joints before them."
        needed = f"`{operation}` needs `target` of shape (..., J, 2) or (..., J, 3)"
        raise ValueError(three_beats(needed, describe(target), remedy))
    if pred.shape != target.shape:
        remedy = "Bring both to one shape (`expand`, `unsqueeze`); broadcasting could pair the wrong poses."
        came = f"`pred` {tuple(pred.shape)} and `target` {tuple(target.shape)}"
        needed = f"`{operation}` needs `pred` of shape {tuple(target.shape)} for this target"
        raise ValueError(three_beats(needed, came, remedy))
    if target.numel() == 0:
        remedy = "Skip empty batches; the accumulating classes do."
        raise ValueError(three_beats(f"`{operation}` needs at least one pose with one joint", describe(target), remedy))
    check_same_device(operation, ("pred", "target"), (pred, target))
    root, mask = options.get("root"), options.get("mask")
    dtype = compute_dtype(pred, target)
    pred, target = pred.to(dtype), target.to(dtype)
    if root is not None:
        joints = list_joints(operation, "root", root, target.shape[-2])
        pred, target = (pose - take_joints(pose, joints, -2).mean(-2, keepdim=True) for pose in (pred, target))
    weight = None if mask is None else read_mask(operation, mask, target.shape[:-1], target, flags=flags)
    if weight is not None and blank:
        hidden = (weight == 0).unsqueeze(-1)
        pred, target = pred.masked_fill(hidden, 0.0), target.masked_fill(hidden, 0.0)
    return Poses(pred, target, weight)


def read_mask(operation: str, mask: Tensor, shape: Sequence[int], like: Tensor, *, flags: bool = False) -> Tensor:
    """The mask as weights of that shape.

    Bools and COCO's visibility flags (integers 0, 1, 2; above 0 is visible) give 0 and 1. Any other integer, a negative
    weight and, with ``flags``, a weight above 1 raise an error, or give NaN where values are not checked.
    """
    check_weights(operation, "mask", mask, "Pass bools (True where the joint is visible) or non-negative weights.")
    check_same_device(operation, ("target", "mask"), (like, mask))
    try:
        mask = mask.expand(tuple(shape))
    except RuntimeError:
        remedy = "Give one entry per joint: the shape of the poses without the coordinates, or just (J,)."
        needed = f"`{operation}` needs `mask` to expand to {tuple(shape)}"
        raise ValueError(three_beats(needed, describe(mask), remedy)) from None
    weight = mask.to(like.dtype)
    if mask.dtype is torch.bool:
        return weight
    if not mask.is_floating_point():
        needed, remedy = "flags 0, 1 or 2 if it is integer", "Weights are floating-point numbers: `mask.float()`."
        wrong, weight = (mask < 0) | (mask > 2), (mask > 0).to(like.dtype)
    elif flags:
        needed = "weights from 0 to 1"
        remedy = "Pass COCO's flags as integers, or `mask > 0`; divide weights by the largest."
        wrong = (weight < 0) | (weight > 1)
    else:
        needed, remedy, wrong = "weights of at least 0", "Hidden joints have weight 0.", weight < 0
    check_values(operation, "mask", mask, wrong, needed, remedy)
    return torch.where(wrong, torch.nan, weight)


def take_joints(tensor: Tensor, joints: Sequence[int], axis: int) -> Tensor:
    """Some joints along ``axis``, by slices: a list as index would be copied to a GPU, which makes the host wait."""
    return torch.cat([tensor.narrow(axis, joint, 1) for joint in joints], axis)


def read_lengths(operation: str, name: str, value: object, items: Sequence[int], like: Tensor) -> Tensor:
    """A number, or one per item, as a tensor in the type of the poses. The caller checks the signs."""
    if not isinstance(value, Tensor):
        remedy = "Pass a number, or a tensor with one per item."
        number = check_number(operation, name, value, remedy=remedy)
        number = number if abs(number) <= torch.finfo(like.dtype).max else math.copysign(math.inf, number)
        return torch.full((), number, dtype=like.dtype, device=like.device)
    if value.dtype is torch.bool or value.is_floating_point():
        check_floating(operation, name, value)
    else:
        check_whole(operation, name, value)
    check_same_device(operation, ("target", name), (like, value))
    if tuple(value.shape) not in ((), tuple(items)):
        remedy = "Give one per item: the shape of the poses without joints and coordinates."
        raise ValueError(three_beats(f"`{operation}` needs `{name}` of shape {tuple(items)}", describe(value), remedy))
    return value.to(like.dtype)


def check_values(operation: str, name: str, tensor: Tensor, wrong: Tensor, needed: str, remedy: str) -> None:
    """Raises if any of ``wrong`` is True. On a GPU, in a graph and under a transform values are not checked."""
    if can_read_values(tensor, wrong) and bool(wrong.any()):
        bad = tensor[wrong].flatten()[0].item()
        raise ValueError(three_beats(f"`{operation}` needs `{name}` to hold {needed}", f"{bad:g}", remedy))


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis for vectors of any finite scale; the gradient at 0 is 0."""
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    unit = torch.where(largest == 0, 1.0, largest)
    return torch.linalg.vector_norm(vectors / unit, dim=-1) * unit.squeeze(-1)


def average_joints(errors: Tensor, weight: Tensor | None) -> Tensor:
    """``(..., J)`` to ``(...)``: the weighted mean over an item's joints, NaN for an item without a visible one."""
    if weight is None:
        return errors.mean(-1)
    weight = relative_weights(weight, -1)
    counted = (weight != 0).any(-1)  # a NaN weight does not hide a joint: it makes the item NaN
    total = torch.where(counted, weight.sum(-1), 1.0)
    return torch.where(counted, weighted(errors, weight).sum(-1) / total, torch.nan)


def relative_weights(weight: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Weights times a power of two that brings the largest to 1/8 to 2. A mean needs only their ratios, and this keeps
    sums of weights and of weighted errors as finite as those of the errors."""
    power, _ = power_of_two(weight.detach().amax(axes, keepdim=True))
    return weight * power / 4  # True becomes 1


def weighted(errors: Tensor, weight: Tensor) -> Tensor:
    """Errors times weights; 0 where the weight is 0, even for NaN or infinite errors."""
    return (errors * weight).masked_fill(weight == 0, 0.0)


def reduce_items(errors: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Averages joints, then items. Items without a visible joint are left out of the sum and of the mean."""
    return reduce_values(average_joints(errors, weight), None if weight is None else (weight != 0).any(-1), reduction)


def reduce_values(values: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """Reduces one value per item, over the items that are ``counted``."""
    if reduction == "none":
        return values
    if counted is None:
        return values.mean() if reduction == "mean" else values.sum()
    total = torch.where(counted, values, 0.0).sum()
    return total / counted.sum() if reduction == "mean" else total


def reduce_joints(errors: Tensor, weight: Tensor | None, reduction: str, average: str) -> Tensor:
    """Pools the visible joints of all items; each joint separately unless ``average`` is ``"micro"``."""
    if reduction == "none":
        return average_joints(errors, weight)
    if average == "micro":
        errors, weight = errors.flatten(), None if weight is None else weight.flatten()
    else:
        errors, weight = errors.flatten(0, -2).mT, None if weight is None else weight.flatten(0, -2).mT  # (J, items)
    if reduction == "sum":
        return (errors if weight is None else weighted(errors, weight)).sum(-1)
    if average == "macro":
        return reduce_items(errors, weight, reduction)
    return average_joints(errors, weight)


def state_device(device: torch.device) -> torch.device:
    """Where states of a metric on ``device`` live: there, or on the CPU where the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
