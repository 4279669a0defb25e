"""Errors in three parts, and the checks that every function of the library shares.

A check raises before any work is done. It says what was needed, what came, and what to do. There is one check for each
kind of argument: a choice, a flag, a count, a number, a list of numbers, a tensor. A check of a Python value returns it
as plain Python: a NumPy scalar counts as its number, a bool does not count as a number.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_HALF = (torch.float16, torch.bfloat16)
_FLOATING = (*_HALF, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def three_beats(needed: str, came: str, remedy: str) -> str:
    """The text of an error: what was needed, what came, what to do."""
    return f"{needed}; got {came}. {remedy}"


def describe(value: object) -> str:
    """``value`` as an error message names it."""
    if isinstance(value, Tensor):
        try:
            shape = tuple(value.shape)
        except RuntimeError:
            return "a nested tensor" if value.is_nested else "a tensor that has no shape yet"
        layout = "" if value.layout is torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        return f"a {layout}{str(value.dtype).removeprefix('torch.')} tensor of shape {shape} on {value.device}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"an int of {int(value).bit_length()} bits"
    if isinstance(value, (int, float, str, np.generic, type(None))):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    return f"a {type(value).__name__}"


def check_choice(operation: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the names in ``choices``; suggests the nearest name."""
    names = sorted(choices)
    if isinstance(value, str) and value in names:
        return
    listed = ", ".join(repr(choice) for choice in names)
    near = difflib.get_close_matches(value[:80], names, n=1) if isinstance(value, str) else []
    remedy = f"Did you mean {near[0]!r}?" if near else "Choose one of those names."
    error = ValueError if isinstance(value, str) else TypeError
    raise error(three_beats(f"`{operation}` needs `{name}` to be one of {listed}", describe(value), remedy))


def check_names(operation: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise ``TypeError`` for an option that ``operation`` does not have; suggests the nearest name."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"Did you mean `{near[0]}`?" if near else "Leave it out."
            raise TypeError(three_beats(f"`{operation}` takes the options {', '.join(known)}", f"`{name}`", remedy))


def check_flag(operation: str, name: str, value: object) -> bool:
    """``value`` as a bool; raises for anything else, such as 1 or ``"false"``."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    remedy = f"Pass `{name}=True` or `{name}=False`."
    raise TypeError(three_beats(f"`{operation}` needs `{name}` to be True or False", describe(value), remedy))


def check_count(
    operation: str, name: str, value: object, least: int = 0, most: int = 2**63 - 1, *, remedy: str = ""
) -> int:
    """``value`` as an int from ``least`` to ``most``; raises for bools, floats, text and tensors."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        needed = f"`{operation}` needs `{name}` to be an int"
        raise TypeError(three_beats(needed, describe(value), remedy or f"Pass a whole number of at least {least}."))
    whole = int(value)
    if whole < least:
        needed = f"`{operation}` needs `{name}` >= {least}"
        raise ValueError(three_beats(needed, describe(whole), remedy or "Pass a larger number."))
    if whole > most:
        needed = f"`{operation}` needs `{name}` <= {most}"
        raise ValueError(three_beats(needed, describe(whole), remedy or "Pass a smaller number."))
    return whole


def check_number(
    operation: str,
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    remedy: str = "Pass a number.",
) -> float:
    """``value`` as a finite float within those bounds; raises for bools, text and tensors."""
    needed = f"`{operation}` needs `{name}` to be a finite number"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(three_beats(needed, describe(value), remedy))
    bounds = [f">= {least:g}"] * (least > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
    needed = " and ".join([needed, *bounds, *[f"< {below:g}"] * (below < math.inf)])
    number = as_float(value)
    if not (least <= number and above < number < below):
        raise ValueError(three_beats(needed, describe(value), remedy))
    return number


def check_list(operation: str, name: str, values: object, *, remedy: str = "Pass a list or tuple.") -> Sequence[object]:
    """``values``, a list, tuple or range; text, mappings, sets and iterators raise ``TypeError``."""
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes, bytearray, memoryview)):
        return values
    raise TypeError(three_beats(f"`{operation}` needs `{name}` to be a list or tuple", describe(values), remedy))


def check_numbers(
    operation: str, name: str, values: object, *, remedy: str = "Pass a list of numbers.", **bounds: float
) -> list[float]:
    """A list, 1-dim array or 1-dim dense tensor, not empty, as floats; :func:`check_number` checks each."""
    if isinstance(values, Tensor):
        check_dense(operation, name, values)
        values = values.tolist() if values.ndim == 1 and values.device.type != "meta" else object()
    elif isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 else object()
    listed = check_list(operation, name, values, remedy=remedy)
    if not listed:
        raise ValueError(three_beats(f"`{operation}` needs `{name}` to hold a number", "none", remedy))
    return [check_number(operation, f"{name}[{k}]", value, remedy=remedy, **bounds) for k, value in enumerate(listed)]


def check_counts(
    operation: str, name: str, values: object, least: int = 0, most: int = 2**63 - 1, *, remedy: str = ""
) -> list[int]:
    """One int, or a list of them that is not empty; :func:`check_count` checks each."""
    if isinstance(values, numbers.Integral):
        return [check_count(operation, name, values, least, most, remedy=remedy)]
    listed = check_list(operation, name, values, remedy=remedy or "Pass an int, or a list of them.")
    if not listed:
        raise ValueError(three_beats(f"`{operation}` needs `{name}` to hold an int", "none", remedy or "Pass an int."))
    return [check_count(operation, f"{name}[{k}]", value, least, most, remedy=remedy) for k, value in enumerate(listed)]


def check_size(
    operation: str,
    name: str,
    value: object,
    least: int = 1,
    most: int = 2**16,
    *,
    remedy: str = "Pass `(height, width)`, as `(256, 192)`.",
) -> tuple[int, int]:
    """Two whole numbers, each from ``least`` to ``most``."""
    size = check_counts(operation, name, value, least, most, remedy=remedy)
    if len(size) != 2:
        raise ValueError(three_beats(f"`{operation}` needs `{name}` of two numbers", f"{len(size)}", remedy))
    return size[0], size[1]


def check_texts(operation: str, name: str, values: object, *, remedy: str = "Pass a list of text.") -> list[str]:
    """A list of strings; a single string raises ``TypeError``."""
    listed = check_list(operation, name, values, remedy=remedy)
    for k, value in enumerate(listed):
        if not isinstance(value, str):
            raise TypeError(three_beats(f"`{operation}` needs `{name}[{k}]` to be text", describe(value), remedy))
    return [str(value) for value in listed]


def check_callable(operation: str, name: str, value: object, remedy: str, kind: str = "a callable") -> None:
    """Raise ``TypeError`` unless ``value`` can be called; a class raises too, because an instance is meant."""
    if not callable(value) or isinstance(value, type):
        came = f"the class {value.__name__}" if isinstance(value, type) else describe(value)
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be {kind}", came, remedy))


def call(needed: str, function: Callable[..., Any], *arguments: Any, remedy: str) -> Any:
    """Calls a user's function. Its ``TypeError``, as for a wrong number of arguments, becomes one that says what was
    called; other exceptions pass."""
    try:
        return function(*arguments)
    except TypeError as error:
        if "; got " in str(error):  # already in three parts
            raise
        raise TypeError(three_beats(needed, f"TypeError: {describe(str(error))}", remedy)) from error


def check_type(operation: str, name: str, value: object, kind: type, remedy: str, *, optional: bool = False) -> None:
    """Raise ``TypeError`` unless ``value`` is of that class, or None where it is ``optional``."""
    if not isinstance(value, kind) and not (optional and value is None):
        needed = f"`{operation}` needs `{name}` to be a {kind.__name__}" + " or None" * optional
        raise TypeError(three_beats(needed, describe(value), remedy))


def check_path(operation: str, name: str, value: object) -> Path:
    """``value``, text or a path, as a path, which need not exist."""
    if not isinstance(value, (str, Path)):
        needed = f"`{operation}` needs `{name}` to be a path"
        raise TypeError(three_beats(needed, describe(value), "Pass text or a `pathlib.Path`."))
    return Path(value)


def check_dense(operation: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor that is not sparse, nested, quantised or uninitialised."""
    if not isinstance(value, Tensor):
        remedy = "Convert it with `torch.as_tensor(...)`."
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be a tensor", describe(value), remedy))
    if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
        remedy = "Run the lazy module once, so that its parameters get a shape."
    elif value.is_nested:
        remedy = "Pad it with `torch.nested.to_padded_tensor`."
    elif value.is_quantized:
        remedy = "Call `.dequantize()` first."
    elif value.layout is not torch.strided:
        remedy = "Call `.to_dense()` first."
    else:
        return
    raise TypeError(three_beats(f"`{operation}` needs `{name}` to be dense", describe(value), remedy))


def _check_types(
    operation: str, name: str, value: object, dtypes: Collection[torch.dtype], kind: str, remedy: str
) -> None:
    check_dense(operation, name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in dtypes:
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to {kind}", describe(value), remedy))


def check_floating(operation: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense tensor of float16, bfloat16, float32 or float64."""
    kind = "hold real floating-point numbers"  # float8 is a storage format without arithmetic
    _check_types(operation, name, value, _FLOATING, kind, "Convert it with `.float()`.")


def check_whole(operation: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense tensor of integers, of a type that torch computes with."""
    _check_types(operation, name, value, _WHOLE, "be integers", "Convert it with `.long()`.")


def check_weights(operation: str, name: str, value: object, remedy: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense tensor of bools, integers or floating-point numbers."""
    _check_types(operation, name, value, (torch.bool, *_WHOLE, *_FLOATING), "hold bools or real numbers", remedy)


def check_bools(operation: str, name: str, value: object, remedy: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense tensor of bools."""
    _check_types(operation, name, value, (torch.bool,), "be bool", remedy)


def check_shape(
    operation: str, name: str, value: object, shape: Sequence[int | str], remedy: str = "Reshape it."
) -> None:
    """Raise unless ``value`` passes :func:`check_floating` and has that shape.

    In ``shape`` a name stands for any size, and a leading ``"..."`` for any number of axes.
    """
    check_floating(operation, name, value)
    assert isinstance(value, Tensor)
    last = shape[1:] if shape[:1] == ("...",) else shape
    own = value.shape[max(value.ndim - len(last), 0) :] if last is not shape else value.shape
    if len(own) != len(last) or any(isinstance(n, int) and n != m for n, m in zip(last, own)):
        needed = f"`{operation}` needs `{name}` of shape ({', '.join(map(str, shape))})"
        raise ValueError(three_beats(needed, describe(value), remedy))


def check_like(operation: str, name: str, value: Tensor, weight: Tensor) -> None:
    """Raise unless ``value`` has the type and device of a model's ``weight``; under autocast any type is accepted."""
    kind = value.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if value.device != weight.device or (value.dtype != weight.dtype and not casts):
        dtype = str(weight.dtype).removeprefix("torch.")
        needed = f"`{operation}` needs `{name}` to be {dtype} on {weight.device}, as the model is"
        remedy = f"Call `.to({str(weight.device)!r}, torch.{dtype})`."
        raise ValueError(three_beats(needed, describe(value), remedy))


def check_same_device(operation: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless all tensors live on one device."""
    devices = [tensor.device for tensor in tensors]
    if len(set(devices)) > 1:
        came = ", ".join(f"`{name}` on {device}" for name, device in zip(names, devices))
        raise ValueError(
            three_beats(f"`{operation}` needs all tensors on one device", came, "Move them with `.to(device)` first.")
        )


def can_read_values(*tensors: Tensor) -> bool:
    """Whether reading the values of the tensors costs nothing: on a CPU, in eager mode, not under a transform, and
    without a forward-mode derivative."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.is_cpu:
            return False
        if torch._C._functorch.is_legacy_batchedtensor(tensor):  # made by `is_grads_batched`
            return False
    return forward_ad._current_level < 0 or all(forward_ad.unpack_dual(x).tangent is None for x in tensors)


def check_device(operation: str, device: object) -> torch.device:
    """``device`` as a ``torch.device``; torch's default for None."""
    if device is None:
        return torch.get_default_device()
    if isinstance(device, torch.device):
        return device
    needed, remedy = f"`{operation}` needs `device` to be a device", "For example 'cpu', 'cuda:0' or a `torch.device`."
    if not isinstance(device, str):
        raise TypeError(three_beats(needed, describe(device), remedy))
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(three_beats(needed, repr(device), remedy)) from None


def check_dtype(operation: str, dtype: object) -> None:
    """Raise ``TypeError`` unless ``dtype`` is float16, bfloat16, float32 or float64."""
    if not isinstance(dtype, torch.dtype) or dtype not in _FLOATING:
        came = str(dtype) if isinstance(dtype, torch.dtype) else describe(dtype)
        needed = f"`{operation}` needs `dtype` to be a floating-point type of torch"
        raise TypeError(three_beats(needed, came, "For example `torch.float32`."))


def check_generator(operation: str, generator: object) -> None:
    """Raise unless ``generator`` is None or a generator, on any device."""
    remedy = "Make one with `torch.Generator().manual_seed(seed)`."
    check_type(operation, "generator", generator, torch.Generator, remedy, optional=True)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Disables autocast where it is enabled; meta tensors have none."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def as_float(value: Any) -> float:
    """A number as a float; infinite if it is too large for one."""
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
