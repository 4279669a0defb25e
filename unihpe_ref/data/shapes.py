"""Arrays: their type, whether they are finite, and the shape check of cameras, boxes and joints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multicontrast._checks import check_same_device, check_shape, describe, three_beats

Array = NDArray[Any]
Shape = tuple[int | str, ...]


def all_finite(array: Array, axes: int | tuple[int, ...]) -> Array:
    """True where all numbers along the axes are finite."""
    return np.asarray(np.isfinite(array).all(axes))


def check_tensors(operation: str, tensors: dict[str, tuple[Tensor, Shape]], *, one_type: bool = False) -> None:
    """Raise unless every tensor ends in its shape, their leading shapes broadcast, and all are on one device.

    Args:
        tensors: maps a name to a tensor and its last sizes, as for ``check_shape``.
        one_type: whether all must have one dtype, too, as for a matrix product.
    """
    leading = []
    for name, (value, shape) in tensors.items():
        check_shape(operation, name, value, ("...", *shape))
        leading.append(value.shape[: value.ndim - len(shape)])
        if value._is_zerotensor():  # torch divides by one silently
            needed = f"`{operation}` needs `{name}` in memory"
            raise ValueError(three_beats(needed, "torch's zero tensor without memory", "Call `.clone()` first."))
    values = [value for value, _ in tensors.values()]
    check_same_device(operation, list(tensors), values)
    needed = "leading shapes that broadcast"
    try:
        torch.broadcast_shapes(*leading)
    except RuntimeError:
        fits = False
    else:
        fits, needed = not one_type or len({value.dtype for value in values}) == 1, "one type of numbers"
    if not fits:
        came = ", ".join(f"`{name}`: {describe(value)}" for name, (value, _) in tensors.items())
        raise ValueError(three_beats(f"`{operation}` needs {needed}", came, "Convert or reshape them."))
