"""Which back end runs an operation: plain PyTorch, or Triton.

``MULTICONTRAST_BACKEND`` is read at each call:

``auto``
    Triton for CUDA tensors where Triton is installed, plain PyTorch elsewhere. The default. If a kernel cannot be
    built or launched, plain PyTorch replaces it, with one warning.
``torch``
    Plain PyTorch everywhere.
``triton``
    The Triton kernels everywhere, and an error if one cannot be built or launched. On CPU tensors this works under
    ``TRITON_INTERPRET=1`` and with a driver that runs compiled kernels on the CPU.

``MULTICONTRAST_ROUNDING``, also read at each call, chooses how kernels divide and take square roots in the float32
gradient of the 3x3 Gram eigenvalue:

``device``
    With the device's approximate operations: the gradient errs by at most 5.5 eps. The default.
``nearest``
    Correctly rounded, as a CPU does: at most 3 eps, for nearly twice the instructions.

This module does not import Triton or call a driver; the modules of the kernels do, when first used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multicontrast._checks import check_choice, three_beats

_VARIABLE = "MULTICONTRAST_BACKEND"
_CHOICES = ("auto", "torch", "triton")
_ROUNDING = "MULTICONTRAST_ROUNDING"
_ROUNDINGS = ("device", "nearest")

_warned: set[str] = set()
T = TypeVar("T")


class KernelUnavailable(RuntimeError):
    """A Triton kernel could not be built or launched here; the message names the cause and the remedy."""


# Whether the package is installed, not whether a device can run it; `find_spec` does not import it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` should launch the Triton kernels."""
    choice = os.environ.get(_VARIABLE, "auto")
    if choice == "auto":
        return tensor.is_cuda and _HAS_TRITON
    check_choice("multicontrast", _VARIABLE, choice, _CHOICES)
    if choice == "triton" and not _HAS_TRITON:
        raise ModuleNotFoundError(
            f"{_VARIABLE}=triton needs the package `triton`; it is not installed. "
            "Install `multicontrast[triton]`, or set the variable to `auto`."
        )
    return choice == "triton"


def run_kernel(kernel: Callable[..., T], plain: Callable[..., T], *arguments: object) -> T:
    """The result of ``kernel``; under ``auto`` that of ``plain`` where the kernel cannot be built or launched.

    Every operator that has a kernel calls it through this function, so none fails where plain PyTorch would work.
    """
    try:
        return kernel(*arguments)
    except (KernelUnavailable, ImportError) as error:
        give_way(error)
        return plain(*arguments)


def give_way(error: Exception) -> None:
    """Warn of a kernel that cannot be built or launched; unless the back end is ``auto``, raise."""
    if os.environ.get(_VARIABLE, "auto") != "auto":
        raise error
    cause = str(error.__cause__ or error)  # many kernels fail for one reason
    if cause in _warned:
        return
    _warned.add(cause)
    warnings.warn(
        f"Plain PyTorch takes the place of a Triton kernel: {error} "
        f"Set {_VARIABLE}=torch to choose that without this warning, or {_VARIABLE}=triton to raise instead.",
        RuntimeWarning,
        stacklevel=3,
    )


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a ``torch.func`` transform or a forward-mode derivative is active; custom operators refuse both."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def is_captured(device: torch.device) -> bool:
    """Whether the device's current stream is being captured in a CUDA graph, whose replays run no Python."""
    if device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device, needed: str, came: str, remedy: str) -> None:
    """Raise if a CUDA graph is being captured, because its replays would be wrong."""
    if is_captured(device):
        raise RuntimeError(three_beats(needed, came, remedy))


def tf32_allowed() -> bool:
    """Whether PyTorch's settings allow TF32 in float32 matrix products.

    From torch 2.9 on this reads ``fp32_precision``, which also reflects ``allow_tf32``. Reading ``allow_tf32`` raises
    once ``fp32_precision`` has been set.
    """
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return matmul.allow_tf32 if precision is None else precision == "tf32"


@functools.cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16: every GPU that Triton supports, except NVIDIA's before Ampere."""
    if device.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def rounds_to_nearest() -> bool:
    """Whether kernels should divide and take square roots correctly rounded."""
    choice = os.environ.get(_ROUNDING, "device")
    check_choice("multicontrast", _ROUNDING, choice, _ROUNDINGS)
    return choice == "nearest"
