"""Launches every Triton kernel of the library: the device, the configuration, the options of the compiler.

Each kernel has a static table of configurations, one entry per architecture where that matters; nothing is measured at
run time unless asked for with ``MULTICONTRAST_AUTOTUNE=1``, when Triton's autotuner picks among the candidates at the
first launch of each kind. Importing this module calls no driver; a launch does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from multicontrast._backend import KernelUnavailable, is_captured

_AUTOTUNE = "MULTICONTRAST_AUTOTUNE"

# The kernels' error bounds and instruction counts assume that a * b + c is fused, with one rounding. Triton announced
# that this will stop being the default.
_COMPILER_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Tuning:
    """The configurations of one kernel.

    Args:
        default: for every architecture that has no entry of its own.
        by_architecture: maps ``"cuda:90"`` or ``"hip"`` to a configuration. An architecture without an entry uses that
            of the first of its generation: ``"cuda:121"`` uses that of ``"cuda:120"``.
        candidates: for the autotuner, if it is enabled.
    """

    default: triton.Config
    by_architecture: Mapping[str, triton.Config] = field(default_factory=dict)
    candidates: Sequence[triton.Config] = ()

    def __getitem__(self, architecture: str) -> triton.Config:
        family, _, number = architecture.partition(":")
        generation = f"{family}:{int(number) // 10 * 10}" if number.isdigit() else family
        for name in (architecture, generation, family):
            if name in self.by_architecture:
                return self.by_architecture[name]
        return self.default


def config(num_warps: int, num_stages: int = 2, **blocks: Any) -> triton.Config:
    """Compile-time constants of a kernel, with the number of warps and of pipeline stages."""
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def interpreted() -> bool:
    """Whether kernels run under ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def architecture() -> str:
    """``"cuda:90"``, ``"hip:gfx942"``, ...: where the next kernel will run. ``"interpreter"`` without a driver."""
    if interpreted():
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return f"{target.backend}:{target.arch}"


def dot_precision(tf32: bool) -> str:
    """The precision of ``tl.dot`` for float32 on the current device, by its name in this Triton.

    Without TF32, six bfloat16 products or three TF32 products on tensor cores have float32's accuracy, to 1e-7. With
    TF32, three bfloat16 products with an error of 1e-6, or one of TF32. Tensor cores without either type, and the
    interpreter, use ``"ieee"``: the scalar units multiply.
    """
    family, _, number = architecture().partition(":")
    if family == "interpreter" or (family == "cuda" and int(number) < 80):
        return "ieee"
    if VERSION >= (3, 6):
        return "bf16x3" if tf32 else "bf16x6"
    if family == "hip":
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


VERSION = tuple(int(number) for number in triton.__version__.split(".")[:2])
_failed: dict[Any, KernelUnavailable] = {}  # by kernel and device: failures, which are not tried again


def launch(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    tuning: Tuning,
    *arguments: Any,
    key: Sequence[str] = (),
    zeroed: Sequence[str] = (),
    **constants: Any,
) -> None:
    """Launches ``kernel`` on the device of its first argument.

    Args:
        grid: maps the compile-time constants to the number of programs on each axis. Only the first axis may be large.
        tuning: the kernel's configurations.
        arguments: in the kernel's order, tensors and numbers.
        key: names of arguments whose values the autotuner should tell apart.
        zeroed: names of arguments the kernel adds to, which the autotuner must clear between its trials.
        constants: further compile-time constants, and options of the compiler.

    Raises:
        KernelUnavailable: the kernel cannot be built or launched here.
    """
    device = next(argument for argument in arguments if isinstance(argument, Tensor))
    if (kernel, device.device) in _failed:
        raise _failed[kernel, device.device]
    try:
        _launch(kernel, grid, tuning, device, arguments, key, zeroed, constants)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # The interpreter builds nothing, so an error is the kernel's own. During a capture no kernel may be loaded, so
        # a launch that fails then works after a step outside the capture.
        if interpreted() or is_captured(device.device):
            raise
        _failed[kernel, device.device] = unavailable = KernelUnavailable(_cause(kernel, error))
        raise unavailable from error


def _cause(kernel: Any, error: Exception) -> str:
    """The error: what was needed, what it got, and what to do."""
    name = getattr(kernel, "__name__", "a kernel").strip("_")
    text = " ".join(str(error).split()) or type(error).__name__
    remedy = "Another version of Triton may build it; please report this."
    for sign, way_out in _REMEDIES.items():
        if sign in text:
            remedy = way_out
            break
    return f"`{name}` could not be built or launched ({type(error).__name__}: {text[-300:]}). {remedy}"


_REMEDIES = {
    "C compiler": "Triton needs a C compiler for its launcher: install gcc or clang, or name one in the variable CC.",
    "Python.h": "Triton's launcher needs Python's headers: install the package `python3-dev`.",
    "active drivers": "Triton finds no driver: install that of the GPU.",
    "gpu-name": "This Triton does not know the GPU: install a newer Triton, which comes with a newer torch.",
    "out of resource": "The GPU has less shared memory or registers than the kernel needs; please report this.",
}


def _launch(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    tuning: Tuning,
    device: Tensor,
    arguments: Sequence[Any],
    key: Sequence[str],
    zeroed: Sequence[str],
    constants: Mapping[str, Any],
) -> None:
    with torch.cuda.device_of(device):
        if os.environ.get(_AUTOTUNE, "0") == "1" and tuning.candidates and not interpreted():
            tuned = _autotuned(kernel, tuple(tuning.candidates), tuple(key), tuple(zeroed))
            tuned[grid](*arguments, **{**_COMPILER_OPTIONS, **constants})
            return
        chosen = tuning[architecture()]
        options = {**_COMPILER_OPTIONS, **chosen.kwargs, **constants}
        kernel[grid](*arguments, **options, num_warps=chosen.num_warps, num_stages=chosen.num_stages)


@functools.cache
def _autotuned(
    kernel: Any, candidates: tuple[triton.Config, ...], key: tuple[str, ...], zeroed: tuple[str, ...]
) -> Any:
    return triton.autotune(configs=list(candidates), key=list(key), reset_to_zero=list(zeroed))(kernel)
