"""Errors in three beats, and the checks that every door of the library shares.

A check raises before any work is done. It says what was needed, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

_HALF = (torch.float16, torch.bfloat16)


def three_beats(needed: str, came: str, remedy: str) -> str:
    """The text of an error: what was needed, what came, what to do."""
    return f"{needed}; got {came}. {remedy}"


def describe(value: object) -> str:
    """What came, in the words of an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, (int, float, str, bool, type(None))):
        text = (
            repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"an int of {value.bit_length()} bits"
        )
        return text if len(text) <= 80 else text[:77] + "..."
    return f"a {type(value).__name__}"


def check_choice(operation: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the names in ``choices``; suggests the nearest name."""
    names = sorted(choices)
    if isinstance(value, str) and value in names:
        return
    listed = ", ".join(repr(choice) for choice in names)
    near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    remedy = f"Did you mean {near[0]!r}?" if near else "Choose one of those names."
    error = ValueError if isinstance(value, str) else TypeError
    raise error(three_beats(f"`{operation}` needs `{name}` to be one of {listed}", describe(value), remedy))


def check_floating(operation: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense tensor of real floating-point numbers."""
    if not isinstance(value, Tensor):
        remedy = "Convert it with `torch.as_tensor(..., dtype=torch.float32)`."
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be a tensor", describe(value), remedy))
    if not value.dtype.is_floating_point:
        remedy = "Convert it with `.float()`."
        raise TypeError(
            three_beats(f"`{operation}` needs `{name}` to hold real floating-point numbers", describe(value), remedy)
        )
    if value.layout is not torch.strided:
        raise TypeError(
            three_beats(
                f"`{operation}` needs `{name}` to be dense", f"layout {value.layout}", "Call `.to_dense()` first."
            )
        )


def check_same_device(operation: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless all tensors live on one device."""
    devices = [tensor.device for tensor in tensors]
    if any(device != devices[0] for device in devices):
        came = ", ".join(f"`{name}` on {device}" for name, device in zip(names, devices))
        raise ValueError(
            three_beats(f"`{operation}` needs all tensors on one device", came, "Move them with `.to(device)` first.")
        )


def values_are_free(tensor: Tensor) -> bool:
    """Whether looking at the values of ``tensor`` costs nothing: on a CPU, in eager mode, not under a transform, and
    without a forward-mode derivative."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and forward_ad.unpack_dual(tensor).tangent is None
    )


def check_generator(operation: str, generator: object) -> None:
    """Raise unless ``generator`` is None or a generator on the CPU."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            three_beats(
                f"`{operation}` needs `generator` to be a torch.Generator or None",
                describe(generator),
                "Make one with `torch.Generator().manual_seed(seed)`.",
            )
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            three_beats(
                f"`{operation}` draws on the CPU, for the same tuples on every device, and needs a CPU generator",
                f"one on {generator.device}",
                "Make one with `torch.Generator().manual_seed(seed)`.",
            )
        )


def as_float(value: int | float) -> float:
    """A number as a float; infinite where a Python integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: the promoted type of the inputs, and at least float32."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype in _HALF else dtype
