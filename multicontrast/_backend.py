"""Which back end runs an operation: plain PyTorch, or Triton.

``MULTICONTRAST_BACKEND`` is read at each call:

``auto``
    Triton for CUDA tensors where Triton is installed, plain PyTorch elsewhere. The default.
``torch``
    Plain PyTorch everywhere.
``triton``
    The Triton kernels everywhere. On CPU tensors they are launched all the same, which works under
    ``TRITON_INTERPRET=1`` and with a driver that runs compiled kernels on the CPU.

``MULTICONTRAST_ROUNDING``, likewise, is how the kernels divide and take square roots where the result shows it, in the
float32 gradient of the 3x3 Gram eigenvalue:

``device``
    With the device's approximate operations: the gradient errs by at most 5.5 eps. The default.
``nearest``
    Correctly rounded, as a CPU does: at most 3 eps, for nearly twice the instructions.

Nothing here imports Triton or asks a driver anything; the kernels' own modules do, when first used.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multicontrast._checks import check_choice

_VARIABLE = "MULTICONTRAST_BACKEND"
_CHOICES = ("auto", "torch", "triton")
_ROUNDING = "MULTICONTRAST_ROUNDING"
_ROUNDINGS = ("device", "nearest")


# Whether the package is installed, not whether a device can run it; finding it does not import it.
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


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a transform of ``torch.func`` or a forward-mode derivative is under way, which operators know not."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def rounds_to_nearest() -> bool:
    """Whether kernels should divide and take square roots correctly rounded."""
    choice = os.environ.get(_ROUNDING, "device")
    check_choice("multicontrast", _ROUNDING, choice, _ROUNDINGS)
    return choice == "nearest"
